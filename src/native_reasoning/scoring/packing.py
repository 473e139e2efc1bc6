"""Which rows a forward over prompt groups has, each distinct one once.

The rows of a prompt stand behind it: its empty trace with the reference answer, each trace with the
reference answer, and each trace with the answer that was sampled after it, where one was. There are
three layouts, and the one that costs least is taken:

``shared``: the prompt once, its cache for each row, rows padded to the longest. What all prompts
begin with, such as a system prompt, is forwarded once for all of them.
``packed``: prompt and rows one after the other in one long row, under a mask that lets each row see
the prompt and itself. Nothing is padded, no cache is needed (activation checkpointing forbids one),
but attention looks at the square of the whole.
``rows``: prompt and row, for each row; prompts are padded on the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.model.forward import left_pad, padded, shared_start

LAYOUTS = ("shared", "packed", "rows")

#: How much longer attention is taken to be under a mask of its own than without; what the choices
#: that follow from it cost is measured by benchmarks/layouts/run.py.
MASKED = 2.0


@dataclass(frozen=True, eq=False)
class LongRows:
    """One long row for each group, (G, P + L): ``ids``, ``at`` (positions, those of a row going on
    from the prompt's), and ``owner``: 0 for the prompt, 1 + r for row r, −1 for padding.
    ``place`` (R, S) is where each suffix position stands in the flattened rows."""

    ids: Tensor
    at: Tensor
    owner: Tensor
    place: Tensor

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What each position must not see, to be added to attention scores (G, 1, L, L): other
        rows, padding, what comes later, and what lies ``window`` tokens back."""
        owner, distance = self.owner, self.at[:, :, None] - self.at[:, None, :]
        mine = (owner[:, None, :] == 0) | (owner[:, :, None] == owner[:, None, :])
        seen = mine & (owner[:, None, :] >= 0) & (distance >= 0)
        seen = seen if window is None else seen & (distance < window)
        seen |= torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)  # padding: itself
        zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return zeros.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Everything one forward needs: R suffix rows behind G prefixes.

    ``prefix``, ``prefix_mask`` (G, P); ``suffix``, ``suffix_mask``, ``scored``, ``sampled``
    (R, S); ``group_of_row``, ``tag_at`` (R,); ``end_ids`` (E,). ``scored`` marks the positions
    whose next token is scored, at ``temperature`` where ``sampled``, else at 1; at ``tag_at``,
    where the closing tag is predicted, the end-of-turn tokens ``end_ids`` are scored too. Logits
    beyond ``vocabulary`` are padding. ``layout`` is one of ``LAYOUTS``; all prompts begin with the
    same ``common`` tokens, and ``long`` has the rows of "packed".
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
    common: int = 0
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


#: The distinct rows of a batch, in order of appearance: (group, whether its answer is one that was
#: sampled at another temperature, ids) of each, with its number and its first answer target.
_Rows = dict[tuple[int, bool, tuple[int, ...]], tuple[int, int]]


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
    found, row_of, sampled_in = _Rows(), [], []

    def row(g: int, ids: tuple[int, ...], closed: bool, answer: tuple[int, ...] = ()) -> int:
        """The row of a trace of group g with the answer that was sampled after it, or ()."""
        before = template.answer_prompt(groups[g].prompt_ids[-1:], ids, closed)
        apart = temperature != 1 and bool(answer)
        key = (g, apart, (*before, *(answer or groups[g].answer_ids)))
        return found.setdefault(key, (len(found), len(before) - 1))[0]

    for g, sampled in enumerate(traces):
        first = (row(g, template.empty_trace(), True),) if empty else ()
        pairs = list(zip(sampled.ids, sampled.closed, strict=True))
        scored_rows = tuple(row(g, *pair) for pair in pairs)
        row_of.append((*first, *scored_rows))
        sampled_in.append(
            tuple(
                row(g, *pair, answer) if answer else scored
                for pair, answer, scored in zip(pairs, sampled.answered(), scored_rows, strict=True)
            )
        )
    prompts = [group.prompt_ids[:-1] for group in groups]
    common = shared_start(prompts)
    layout = cheapest(layouts, prompts, [(g, ids) for g, _, ids in found], hidden, common)
    if layout == "shared" and not any(prompts):
        layout = "rows"  # there is nothing to share
    batch = _batch(found, prompts, template, torch.device(device), temperature, layout)
    batch = replace(batch, common=common)
    answer_at = tuple(at for _, at in found.values())
    return Packed(batch, tuple(groups), tuple(traces), tuple(row_of), tuple(sampled_in), answer_at)


def cheapest(
    allowed: Sequence[str],
    prompts: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, Sequence[int]]],
    hidden: int,
    common: int = 0,
) -> str:
    """The layout with the least work: multiplications with a layer's weights, about 12 H² for each
    token, and attention, 2 H for each pair of positions. All prompts begin with the same ``common``
    tokens."""
    groups, count = len(prompts), len(rows)
    prompt, suffix = max(map(len, prompts)), max(len(ids) for _, ids in rows)
    sizes = [len(prompt) for prompt in prompts]  # with all rows
    for g, ids in rows:
        sizes[g] += len(ids)
    long = max(sizes)
    work = {
        "shared": (common + groups * (prompt - common) + count * suffix, groups * prompt**2 / 2
                   + count * suffix * (prompt + suffix)),
        "packed": (groups * long, MASKED * groups * long**2),
        "rows": (count * (prompt + suffix), count * (prompt + suffix) ** 2 / 2),
    }  # fmt: skip
    return min(allowed, key=lambda name: 12 * hidden * work[name][0] + 2 * work[name][1])


@dataclass(frozen=True)
class Size:
    """What a group comes to in a forward: tokens of its prompt, rows behind it, and tokens of the
    longest of these."""

    prompt: int
    rows: int
    suffix: int


def size_of(
    group: PromptGroup, traces: Traces, template: Template, ks: Sequence[int] | None = None
) -> Size:
    """The size of a group with these of its traces, None for all, as if no two rows were alike."""
    ks = range(len(traces.ids)) if ks is None else ks
    around = 1 + len(template.boundary.close_ids) + len(template.gap_ids)
    pairs = [(traces.ids[k], traces.answered()[k]) for k in ks]
    longest = max(len(ids) + max(len(group.answer_ids), len(answer)) for ids, answer in pairs)
    rows = 1 + sum(1 + bool(answer) for _, answer in pairs)  # the first is the empty trace's
    return Size(len(group.prompt_ids) - 1, rows, around + longest)


def tokens_of(sizes: Sequence[Size], layout: str) -> int:
    """The tokens that a forward of these groups has, padding included; what all prompts begin with
    counts for each."""
    prompt, suffix = max(s.prompt for s in sizes), max(s.suffix for s in sizes)
    rows = sum(s.rows for s in sizes)
    return rows * (prompt + suffix) if layout == "rows" else len(sizes) * prompt + rows * suffix


def _batch(
    rows: _Rows,
    prompts: Sequence[Sequence[int]],
    template: Template,
    device: torch.device,
    temperature: float,
    layout: str,
) -> Batch:
    """The rows as tensors, behind ``prompts`` without their last tokens."""
    after = len(template.gap_ids) + len(template.boundary.close_ids)
    suffixes = [(g, ids) for g, _, ids in rows]
    suffix = padded([ids for _, ids in suffixes])
    mask = padded([[1] * len(ids) for _, ids in suffixes])
    scored = torch.zeros_like(suffix, dtype=torch.bool)
    at_temperature = torch.zeros_like(scored)
    for (_, answer_sampled, ids), (r, answer_at) in rows.items():
        at_temperature[r, : answer_at - len(template.gap_ids)] = True
        at_temperature[r, answer_at : len(ids) - 1] |= answer_sampled
        scored[r, answer_at : len(ids) - 1] = True
    scored |= at_temperature
    prefix, prefix_mask = left_pad(prompts, device)
    return Batch(
        prefix=prefix,
        prefix_mask=prefix_mask,
        suffix=suffix.to(device),
        suffix_mask=mask.to(device),
        scored=scored.to(device),
        sampled=at_temperature.to(device),
        group_of_row=torch.tensor([g for g, _ in suffixes], device=device),
        tag_at=torch.tensor([max(at - after, 0) for _, at in rows.values()], device=device),
        end_ids=torch.tensor(template.end_ids, device=device),
        vocabulary=template.vocabulary,
        temperature=temperature,
        layout=layout,
        long=long_rows(prompts, suffixes, device) if layout == "packed" else None,
    )


def long_rows(
    prompts: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, Sequence[int]]],
    device: torch.device,
) -> LongRows:
    """``rows`` are (group, suffix ids); each group's rows follow its prompt."""
    ids, at = [list(prompt) for prompt in prompts], [[*range(len(prompt))] for prompt in prompts]
    owner, first = [[0] * len(prompt) for prompt in prompts], list[int]()
    for r, (g, suffix) in enumerate(rows):
        first.append(len(ids[g]))
        ids[g] += suffix
        at[g] += range(len(prompts[g]), len(prompts[g]) + len(suffix))
        owner[g] += [1 + r] * len(suffix)
    width = max(map(len, ids))
    starts = [g * width + start for (g, _), start in zip(rows, first, strict=True)]
    place = [range(i, i + len(suffix)) for i, (_, suffix) in zip(starts, rows, strict=True)]
    tensors = padded(ids), padded(at), padded(owner, -1), padded(place)
    return LongRows(*(tensor.to(device) for tensor in tensors))
