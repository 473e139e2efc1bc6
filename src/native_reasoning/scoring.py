"""One forward pass over prompt groups: log π of every trace token, answer token and forced tag.

Each distinct trace of a prompt is one row of *suffix* behind the prompt; the empty trace is always
among them (it gives the baseline b), and an empty sampled trace is that same row::

    prefix   x_1 … x_{P−1}                                  once per prompt, padded on the left
    suffix   x_P  z_1 … z_n  tag  gap  y*_1 … y*_T          one row per distinct trace, padded right

The prefix is forwarded once *with gradients*, its cache is given to each of its rows, and only
positions that are scored are projected to the vocabulary. ``pack`` says what to forward,
``install_scoring`` makes the model's own ``forward`` do it (so that DDP, FSDP and autocast wrap it
like any other forward), ``unpack`` gives ``Scores`` per group.
"""

import functools
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from native_reasoning.rollout.hf import inference, left_pad, positions
from native_reasoning.template import Template
from native_reasoning.types import Example, PromptGroup, Scores, Traces

#: Relative rounding of a forward pass: below it two rewards count as equal (types.Scores).
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}


def rounding_of(dtype: torch.dtype) -> float:
    """``ROUNDING``, with the coarsest for types that are not floating point (quantised weights)."""
    return ROUNDING.get(dtype, 5e-3)


@dataclass(frozen=True, eq=False)
class Batch:
    """Everything one forward needs: R suffix rows behind G prefixes.

    ``prefix``, ``prefix_mask`` (G, P); ``suffix``, ``suffix_mask``, ``scored``, ``in_trace``
    (R, S); ``group_of_row``, ``tag_at`` (R,); ``end_ids`` (E,). ``scored`` marks the positions
    whose next token is scored, at ``temperature`` where ``in_trace``, else at 1; at ``tag_at``,
    where the closing tag is predicted, the end-of-turn tokens ``end_ids`` are scored too. Logits
    beyond ``vocabulary`` are padding. ``share`` False forwards the prompt
    again with every row.
    """

    prefix: Tensor
    prefix_mask: Tensor
    suffix: Tensor
    suffix_mask: Tensor
    scored: Tensor
    in_trace: Tensor
    group_of_row: Tensor
    tag_at: Tensor
    end_ids: Tensor
    vocabulary: int
    temperature: float = 1.0
    share: bool = True


@dataclass(frozen=True, eq=False)
class Packed:
    """A batch with the way back: ``row_of[g]`` has the row of the empty trace, then of each trace;
    ``answer_at[r]`` is the first answer target of row r (target j is predicted at position j)."""

    batch: Batch
    groups: tuple[PromptGroup, ...]
    traces: tuple[Traces, ...]
    row_of: tuple[tuple[int, ...], ...]
    answer_at: tuple[int, ...]


def pack(
    groups: Sequence[PromptGroup],
    traces: Sequence[Traces],
    template: Template,
    device: torch.device | str = "cpu",
    *,
    temperature: float = 1.0,
    share: bool = True,
) -> Packed:
    """The rows of these groups, each distinct one once."""
    rows: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}  # -> (row, answer_at)
    row_of = []
    for g, (group, sampled) in enumerate(zip(groups, traces, strict=True)):
        indices = []
        every = [(template.empty_trace(), True), *zip(sampled.ids, sampled.closed, strict=True)]
        for ids, closed in every:
            before = template.answer_prompt(group.prompt_ids[-1:], ids, closed)
            key = (g, (*before, *group.answer_ids))
            indices.append(rows.setdefault(key, (len(rows), len(before) - 1))[0])
        row_of.append(tuple(indices))
    after = len(template.gap_ids) + len(template.boundary.close_ids)
    width = max(len(ids) for _, ids in rows)
    suffix = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(suffix)
    scored = torch.zeros_like(suffix, dtype=torch.bool)
    in_trace = torch.zeros_like(scored)
    for (_, ids), (r, answer_at) in rows.items():
        suffix[r, : len(ids)] = torch.tensor(ids)
        mask[r, : len(ids)] = 1
        in_trace[r, : answer_at - len(template.gap_ids)] = True
        scored[r, answer_at : len(ids) - 1] = True
    prefix, prefix_mask = left_pad(
        [group.prompt_ids[:-1] for group in groups], torch.device(device)
    )
    batch = Batch(
        prefix=prefix,
        prefix_mask=prefix_mask,
        suffix=suffix.to(device),
        suffix_mask=mask.to(device),
        scored=(scored | in_trace).to(device),
        in_trace=in_trace.to(device),
        group_of_row=torch.tensor([g for g, _ in rows], device=device),
        tag_at=torch.tensor([max(at - after, 0) for _, at in rows.values()], device=device),
        end_ids=torch.tensor(template.end_ids, device=device),
        vocabulary=template.vocabulary,
        temperature=temperature,
        share=share and prefix.shape[1] > 0,
    )
    answer_at = tuple(at for _, at in rows.values())
    return Packed(batch, tuple(groups), tuple(traces), tuple(row_of), answer_at)


# -- The forward -----------------------------------------------------------------------------------

_INSTALLED: "weakref.WeakSet[PreTrainedModel]" = weakref.WeakSet()


def install_scoring(model: PreTrainedModel) -> None:
    """Lets ``model(score=batch)`` return log-probabilities (R, S − 1 + E): of each target, 0 where
    it is not scored, then of each end-of-turn token in place of the closing tag.

    Every other call is as before. It must be the model's own forward that does this: a forward that
    went around it would go around DDP's, FSDP's and autocast's wrapping too.
    """
    if model in _INSTALLED:
        return
    _INSTALLED.add(model)
    patched, original = vars(model).get("forward"), model.forward

    @functools.wraps(original)
    def forward(self: PreTrainedModel, *args, score: Batch | None = None, **kwargs):
        plain = patched or functools.partial(type(self).forward, self)  # a deep copy's is its own
        if score is None:
            return plain(*args, **kwargs)
        return _score(self, plain, score)

    model.forward = types.MethodType(forward, model)


def _score(model: PreTrainedModel, plain: Callable, batch: Batch) -> Tensor:
    prefix_mask = batch.prefix_mask[batch.group_of_row]
    mask = torch.cat([prefix_mask, batch.suffix_mask], dim=1)
    if batch.share:
        cache = DynamicCache(config=model.config)
        model.base_model(
            input_ids=batch.prefix,
            attention_mask=batch.prefix_mask,
            position_ids=positions(batch.prefix_mask),
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_select_indices(batch.group_of_row)
        ids, skipped, options = batch.suffix, 0, {"past_key_values": cache, "use_cache": True}
    else:
        ids = torch.cat([batch.prefix[batch.group_of_row], batch.suffix], dim=1)
        skipped, options = batch.prefix.shape[1], {"use_cache": False}
    position_ids = positions(mask)[:, mask.shape[1] - ids.shape[1] :]
    chosen = batch.scored[:, :-1]

    def keep_scored(module: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][:, skipped:-1][chosen][None],)

    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)
    hook = head.register_forward_pre_hook(keep_scored)
    try:
        logits = plain(
            input_ids=ids, attention_mask=mask, position_ids=position_ids, **options
        ).logits[0]
    finally:
        hook.remove()
    return _token_logps(logits, batch)


def _token_logps(logits: Tensor, batch: Batch) -> Tensor:
    """What ``model(score=batch)`` returns, in at least float32, from logits at scored positions."""
    chosen = batch.scored[:, :-1]
    logits = logits[:, : batch.vocabulary]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if batch.temperature != 1:
        in_trace = batch.in_trace[:, :-1][chosen]
        logits = logits / torch.where(in_trace, batch.temperature, 1.0)[:, None]
    targets, norm = batch.suffix[:, 1:][chosen], logits.logsumexp(-1)
    logps = logits.gather(-1, targets[:, None])[:, 0] - norm
    laid_out = logps.new_zeros(chosen.shape).masked_scatter(chosen, logps)
    place = chosen.flatten().cumsum(0).view(chosen.shape) - 1  # of each scored position in logits
    tags = place.gather(1, batch.tag_at[:, None])[:, 0]
    ends = logits[tags][:, batch.end_ids] - norm[tags, None]
    return torch.cat([laid_out, ends], dim=1)


def unpack(
    packed: Packed, logps: Tensor, template: Template, rounding: float = 1e-5
) -> list[Scores]:
    """The scores of each group from what ``model(score=batch)`` returned."""
    out = []
    ends = dict(zip(template.end_ids, range(-len(template.end_ids), 0), strict=True))  # columns
    for group, traces, rows in zip(packed.groups, packed.traces, packed.row_of, strict=True):
        t, longest = len(group.answer_ids), max(traces.lengths)
        index = torch.tensor(rows[1:], device=logps.device)
        at = torch.arange(longest, device=logps.device)
        mask = at < torch.tensor(traces.lengths, device=logps.device)[:, None]
        # the decision to end the turn stands where the spliced tag stands
        stops = traces.stops()
        ended = torch.tensor([-1 if end is None else len(ids) for ids, end in stops]).to(at)
        column = torch.tensor([0 if end is None else ends[end] for _, end in stops]).to(at)
        trace = torch.where(
            at == ended[:, None], logps[index, column][:, None], logps[index, :longest]
        )
        answers = torch.stack([logps[r, packed.answer_at[r] :][:t] for r in rows])
        tag = len(template.boundary.close_ids)
        forced = [
            logps.new_zeros(()) if closed else logps[r, n : n + tag].sum()
            for r, n, closed in zip(rows[1:], map(len, traces.ids), traces.closed, strict=True)
        ]
        out.append(
            Scores(
                trace=trace * mask,
                trace_mask=mask,
                answer=answers[1:],
                baseline=answers[0],
                forced_tag=torch.stack(forced),
                closed=torch.tensor(traces.closed, device=logps.device),
                rounding=rounding,
            )
        )
    return out


# -- Which way to forward --------------------------------------------------------------------------


def can_share_prompts(model: PreTrainedModel, template: Template) -> bool:
    """Tries the shared prompt against plain rows on this architecture: True if they agree.

    Caches of linear-attention layers cannot be repeated, for one. The trial prompt is longer than a
    sliding window of up to 2,048 tokens (4,096 on an accelerator), because a window is where
    sharing could go wrong; for a wider window it is short.
    """
    window = getattr(model.config.get_text_config(), "sliding_window", None) or 0
    length = window + 8 if window <= (2048 if model.device.type == "cpu" else 4096) else 16
    usable = [i for i in range(template.vocabulary) if i not in template.control_ids][:97]
    prompt = tuple(usable[(7 * i) % len(usable)] for i in range(length))
    example = Example((("user", ""),), "", row_id=0, line=0)
    groups = [
        PromptGroup(example, prompt, (*usable[:3], template.end_ids[0])),
        PromptGroup(example, prompt[: length // 2], (usable[0], template.end_ids[0])),
    ]
    traces = [Traces(((usable[1], usable[2]), (usable[3],)), (False, False))] * 2
    with inference(model):
        try:
            shared, plain = (
                model(score=pack(groups, traces, template, model.device, share=share).batch)
                for share in (True, False)
            )
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return False
    tolerance = min(
        100 * rounding_of(next(model.parameters()).dtype), 0.01
    )  # mistakes are above 0.03
    return bool((shared - plain).abs().mean() <= tolerance * plain.abs().mean())
