"""Which rows a forward over prompt groups has, each distinct one once.

The rows of a prompt stand behind it: its empty trace with the reference answer, each trace with the
reference answer, and each trace with the answer that was sampled after it, where one was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.model.forward import left_pad
from native_reasoning.scoring.layouts import LongRows, cheapest, long_rows


@dataclass(frozen=True, eq=False)
class Batch:
    """Everything one forward needs: R suffix rows behind G prefixes.

    ``prefix``, ``prefix_mask`` (G, P); ``suffix``, ``suffix_mask``, ``scored``, ``sampled``
    (R, S); ``group_of_row``, ``tag_at`` (R,); ``end_ids`` (E,). ``scored`` marks the positions
    whose next token is scored, at ``temperature`` where ``sampled``, else at 1; at ``tag_at``,
    where the closing tag is predicted, the end-of-turn tokens ``end_ids`` are scored too. Logits
    beyond ``vocabulary`` are padding. ``layout`` is one of layouts.py; ``long`` has the rows of
    "packed".
    """

    prefix: Tensor
    prefix_mask: Tensor
    suffix: Tensor
    suffix_mask: Tensor
    scored: Tensor
    sampled: Tensor
    group_of_row: Tensor
    tag_at: Tensor
    end_ids: Tensor
    vocabulary: int
    temperature: float = 1.0
    layout: str = "shared"
    long: LongRows | None = None


@dataclass(frozen=True, eq=False)
class Packed:
    """A batch with the way back: ``row_of[g]`` has the row of the empty trace, if it is there, then
    of each trace with the reference answer, ``sampled_in[g]`` the row of each trace as it was
    sampled; ``answer_at[r]`` is the first answer target of row r (target j is predicted at position
    j)."""

    batch: Batch
    groups: tuple[PromptGroup, ...]
    traces: tuple[Traces, ...]
    row_of: tuple[tuple[int, ...], ...]
    sampled_in: tuple[tuple[int, ...], ...]
    answer_at: tuple[int, ...]


class _Rows:
    """The distinct rows of a batch, in order of appearance.

    ``apart``: a row whose answer was sampled is not shared with one whose answer is the reference,
    because the two are scored at different temperatures.
    """

    def __init__(self, template: Template, apart: bool) -> None:
        self.template, self.apart = template, apart
        self.found: dict[tuple[int, bool, tuple[int, ...]], tuple[int, int]] = {}

    def place(
        self,
        g: int,
        group: PromptGroup,
        ids: tuple[int, ...],
        closed: bool,
        answer: tuple[int, ...] = (),
    ) -> int:
        """The row of a trace of group g with the answer that was sampled after it, or ()."""
        before = self.template.answer_prompt(group.prompt_ids[-1:], ids, closed)
        key = (g, self.apart and bool(answer), (*before, *(answer or group.answer_ids)))
        return self.found.setdefault(key, (len(self.found), len(before) - 1))[0]


def pack(
    groups: Sequence[PromptGroup],
    traces: Sequence[Traces],
    template: Template,
    device: torch.device | str = "cpu",
    *,
    temperature: float = 1.0,
    layouts: Sequence[str] = ("shared",),
    hidden: int = 1,
    empty: bool = True,
) -> Packed:
    """The rows of these groups, each distinct one once, in the layout that costs least for a model
    of width ``hidden``. ``empty`` False leaves out the rows of the empty traces, where the baseline
    is known."""
    rows, row_of, sampled_in = _Rows(template, temperature != 1), [], []
    for g, (group, sampled) in enumerate(zip(groups, traces, strict=True)):
        first = (rows.place(g, group, template.empty_trace(), True),) if empty else ()
        pairs = list(zip(sampled.ids, sampled.closed, strict=True))
        scored_rows = tuple(rows.place(g, group, *pair) for pair in pairs)
        row_of.append((*first, *scored_rows))
        sampled_in.append(
            tuple(
                rows.place(g, group, *pair, answer) if answer else row
                for pair, answer, row in zip(pairs, sampled.answered(), scored_rows, strict=True)
            )
        )
    prompts = [group.prompt_ids[:-1] for group in groups]
    suffixes = [(g, ids) for g, _, ids in rows.found]
    layout = cheapest(layouts, prompts, suffixes, hidden)
    if layout == "shared" and not any(prompts):
        layout = "rows"  # there is nothing to share
    batch = _batch(rows, prompts, torch.device(device), temperature, layout)
    answer_at = tuple(at for _, at in rows.found.values())
    return Packed(batch, tuple(groups), tuple(traces), tuple(row_of), tuple(sampled_in), answer_at)


def _batch(
    rows: _Rows,
    prompts: Sequence[Sequence[int]],
    device: torch.device,
    temperature: float,
    layout: str,
) -> Batch:
    """The rows as tensors, behind ``prompts`` without their last tokens."""
    template = rows.template
    after = len(template.gap_ids) + len(template.boundary.close_ids)
    width = max(len(ids) for _, _, ids in rows.found)
    suffix = torch.zeros(len(rows.found), width, dtype=torch.long)
    mask = torch.zeros_like(suffix)
    scored = torch.zeros_like(suffix, dtype=torch.bool)
    at_temperature = torch.zeros_like(scored)
    for (_, answer_sampled, ids), (r, answer_at) in rows.found.items():
        suffix[r, : len(ids)] = torch.tensor(ids)
        mask[r, : len(ids)] = 1
        at_temperature[r, : answer_at - len(template.gap_ids)] = True
        at_temperature[r, answer_at : len(ids) - 1] |= answer_sampled
        scored[r, answer_at : len(ids) - 1] = True
    scored |= at_temperature
    prefix, prefix_mask = left_pad(prompts, device)
    suffixes = [(g, ids) for g, _, ids in rows.found]
    return Batch(
        prefix=prefix,
        prefix_mask=prefix_mask,
        suffix=suffix.to(device),
        suffix_mask=mask.to(device),
        scored=scored.to(device),
        sampled=at_temperature.to(device),
        group_of_row=torch.tensor([g for g, _, _ in rows.found], device=device),
        tag_at=torch.tensor([max(at - after, 0) for _, at in rows.found.values()], device=device),
        end_ids=torch.tensor(template.end_ids, device=device),
        vocabulary=template.vocabulary,
        temperature=temperature,
        layout=layout,
        long=None if layout != "packed" else _to(long_rows(prompts, suffixes), device),
    )


def _to(long: LongRows, device: torch.device | str) -> LongRows:
    return LongRows(*(tensor.to(device) for tensor in vars(long).values()))
