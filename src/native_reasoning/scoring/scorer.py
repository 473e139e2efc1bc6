"""One forward pass over prompt groups: log π of every trace token, answer token and forced tag.

Each distinct trace of a prompt is one row of *suffix* behind the prompt; the empty trace is always
among them (it gives the baseline b), and an empty sampled trace is that same row::

    prefix   x_1 … x_{P−1}                                  once per prompt, padded on the left
    suffix   x_P  z_1 … z_n  tag  gap  y*_1 … y*_T          one row per distinct trace, padded right

A trace with a sampled answer ŷ has a second row, with ŷ in the place of y*.
The prefix is forwarded once *with gradients* and its cache is given to each of its rows, or it
stands before each; what all prefixes begin with is forwarded once for all of them. Only positions
that are scored are projected to the vocabulary. packing.py says what to forward,
``install_scoring`` makes the model's own ``forward`` do it (so that DDP, FSDP and autocast wrap it
like any other forward), ``unpack`` gives ``Scores`` per group.
"""

import functools
import math
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.model.forward import (
    padded,
    positions,
    prefill,
    sees_whole_rows,
    split_start,
    together,
)
from native_reasoning.objective.types import Scores
from native_reasoning.scoring.head import Choice, direct_head, logps_inside, takes_embeddings
from native_reasoning.scoring.packing import Batch, Packed, Size, pack, size_of, tokens_of


def rounding_of(dtype: torch.dtype) -> float:
    """Relative rounding of a forward pass: below it two rewards count as equal (types.Scores)."""
    return {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 5e-3)


_INSTALLED: "weakref.WeakSet[PreTrainedModel]" = weakref.WeakSet()


def install_scoring(model: PreTrainedModel) -> None:
    """Lets ``model(score=batch)`` return log-probabilities (R, S − 1 + E): of each target, 0 where
    it is not scored, then of each end-of-turn token in place of the closing tag.

    Every other call is as before. It must be the model's own forward that does this: a forward that
    went around it would go around DDP's, FSDP's and autocast's wrapping too.
    """
    if model in _INSTALLED:
        return
    direct, by_ids = direct_head(model), not takes_embeddings(model)
    _INSTALLED.add(model)
    patched, original = vars(model).get("forward"), model.forward

    @functools.wraps(original)
    def forward(
        self: PreTrainedModel, *args: Any, score: Batch | None = None, **kwargs: Any
    ) -> Any:
        plain = patched or functools.partial(type(self).forward, self)  # a deep copy's is its own
        if score is None:
            return plain(*args, **kwargs)
        return _score(self, None if direct else plain, score, by_ids)

    model.forward = types.MethodType(forward, model)


def _score(
    model: PreTrainedModel, plain: Callable[..., Any] | None, batch: Batch, by_ids: bool
) -> Tensor:
    """What ``model(score=batch)`` returns. ``plain`` None: logits are a linear map of the hidden
    states, and head.py takes the log-probabilities; else the model's own forward makes them.
    ``by_ids``: embeddings alone are not enough."""
    inputs, take = _inputs(model, batch, by_ids)
    head, wanted = model.get_output_embeddings(), choice(batch)
    assert isinstance(head, torch.nn.Module)
    if plain is None:
        logps = logps_inside(head, take(model.base_model(**inputs)[0]), wanted)
    else:
        with head.register_forward_pre_hook(lambda module, args: (take(args[0])[None],)):
            logps = _of_logits(plain(**inputs).logits[0], wanted)
    chosen, rows, ends = batch.scored[:, :-1], len(batch.suffix), len(batch.end_ids)
    count = len(logps) - rows * ends
    laid_out = logps.new_zeros(chosen.shape).masked_scatter(chosen, logps[:count])
    return torch.cat([laid_out, logps[count:].view(rows, ends)], dim=1)


def _inputs(
    model: PreTrainedModel, batch: Batch, by_ids: bool
) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    """Arguments of the forward whose hidden states are wanted, and what takes the states at scored
    positions (N, H) out of them."""
    chosen = batch.scored[:, :-1]
    if batch.long is not None:
        long = batch.long
        mask = long.mask(_window(model), model.dtype)
        options = {"attention_mask": mask, "position_ids": long.at, "use_cache": False}
        places = long.place[:, :-1][chosen]
        return {"input_ids": long.ids, **options}, lambda hidden: hidden.flatten(0, 1)[places]
    name, share = "input_ids", batch.layout == "shared"
    whole = share and sees_whole_rows(model, batch.prefix.shape[1] + batch.suffix.shape[1])
    common = batch.common if whole else 0
    start, prefix, seen = split_start(batch.prefix, batch.prefix_mask, common)
    parts = (start, prefix, batch.suffix)
    if not by_ids:  # one look-up for all: each has a gradient as large as the table
        embedded = model.get_input_embeddings()(torch.cat([part.flatten() for part in parts]))
        pieces = embedded.split([part.numel() for part in parts])
        parts = [x.unflatten(0, part.shape) for x, part in zip(pieces, parts, strict=True)]
        name = "inputs_embeds"
    start, prefix, suffix = parts
    mask = torch.cat([seen[batch.group_of_row], batch.suffix_mask], dim=1)
    inputs: dict[str, Any] = {"attention_mask": mask, "use_cache": share}
    if share:
        cache = DynamicCache(config=model.config)
        prefill(model, cache, name, start, prefix, seen)
        cache.batch_select_indices(batch.group_of_row)
        inputs |= {name: suffix, "past_key_values": cache}
    else:
        inputs[name] = torch.cat([prefix[batch.group_of_row], suffix], dim=1)
    width = inputs[name].shape[1]
    inputs["position_ids"] = positions(mask)[:, mask.shape[1] - width :]
    skipped = width - batch.suffix.shape[1]
    return inputs, lambda hidden: hidden[:, skipped:-1][chosen]


def _window(model: PreTrainedModel) -> int | None:
    """The sliding window of all layers, None where they have none. Raises NotImplementedError where
    layers differ: one mask does not fit them."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    if len(kinds) > 1:
        raise NotImplementedError("layers of several kinds")
    if kinds and kinds != {"sliding_attention"}:
        return None
    return getattr(config, "sliding_window", None)


def choice(batch: Batch) -> Choice:
    """The log-probabilities that a batch asks for, with its scored positions in order: each target,
    then, for each row, the end-of-turn tokens where its closing tag is predicted."""
    chosen = batch.scored[:, :-1]
    place = chosen.flatten().cumsum(0).view(chosen.shape) - 1  # of each scored position
    tags = place.gather(1, batch.tag_at[:, None])  # (R, 1)
    targets, ends = batch.suffix[:, 1:][chosen], batch.end_ids
    scale = None
    if batch.temperature != 1:
        sampled = batch.sampled[:, :-1][chosen].double()
        scale = sampled / batch.temperature + (1 - sampled)
    return Choice(
        at=torch.cat(
            [torch.arange(len(targets), device=tags.device), tags.repeat(1, len(ends)).flatten()]
        ),
        token=torch.cat([targets, ends.repeat(len(tags))]),
        vocabulary=batch.vocabulary,
        scale=scale,
    )


def _of_logits(logits: Tensor, choice: Choice) -> Tensor:
    """``chosen_logps`` from whole logits (N, V)."""
    logits = logits[:, : choice.vocabulary]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if choice.scale is not None:
        logits = logits * choice.scale.to(logits.dtype)[:, None]
    return logits[choice.at, choice.token] - logits.logsumexp(-1)[choice.at]


def unpack(
    packed: Packed,
    logps: Tensor,
    template: Template,
    rounding: float = 1e-5,
    baselines: Sequence[Tensor] | None = None,
) -> list[Scores]:
    """The scores of each group from what ``model(score=batch)`` returned. ``baselines`` are known
    where the empty traces were not forwarded."""
    out, tag = [], len(template.boundary.close_ids)
    for g, (group, traces) in enumerate(zip(packed.groups, packed.traces, strict=True)):
        rows, t = packed.row_of[g], len(group.answer_ids)
        answers = torch.stack([logps[r, packed.answer_at[r] :][:t] for r in rows])
        if baselines is None:
            rows, baseline, answers = rows[1:], answers[0], answers[1:]
        else:
            baseline = baselines[g]
        forced = [
            logps.new_zeros(()) if closed else logps[r, n : n + tag].sum()
            for r, n, closed in zip(rows, map(len, traces.ids), traces.closed, strict=True)
        ]
        at = _sampled_places(packed, g, template, logps.shape[1]).to(logps.device)
        index = torch.tensor(packed.sampled_in[g], device=logps.device)
        answered = None
        if traces.answers:
            answered = torch.tensor([len(a) for a in traces.answers], device=logps.device)
        out.append(
            Scores(
                trace=logps[index[:, None], at.clamp(min=0)] * (at >= 0),
                trace_mask=at >= 0,
                answer=answers,
                baseline=baseline,
                forced_tag=torch.stack(forced),
                closed=torch.tensor(traces.closed, device=logps.device),
                rounding=rounding,
                trace_length=torch.tensor(template.trace_lengths(traces), device=logps.device),
                answer_length=answered,
            )
        )
    return out


def _sampled_places(packed: Packed, g: int, template: Template, width: int) -> Tensor:
    """(K, L) where in its row of log-probabilities each sampled token of group g stands, in order;
    −1 pads. The decision to end the turn, scored where the spliced tag stands, has columns of its
    own behind the rest."""
    ends = {end: width - len(template.end_ids) + i for i, end in enumerate(template.end_ids)}
    traces, places = packed.traces[g], []
    for row, (ids, end), answer in zip(
        packed.sampled_in[g], traces.stops(), traces.answered(), strict=True
    ):
        decision = [] if end is None else [ends[end]]
        first = packed.answer_at[row]
        places.append([*range(len(ids)), *decision, *range(first, first + len(answer))])
    return padded(places, -1)


@dataclass
class Scorer:
    """Scores groups under any model that ``install_scoring`` has prepared: ``pack``, forward,
    ``unpack``, with one run's settings. ``hidden`` is the model's width, for the choice among
    ``layouts``. A forward may have ``max_tokens``, and ``enough`` where it has several groups:
    ``fits`` says so, and callers see to it."""

    template: Template
    device: torch.device
    temperature: float
    layouts: tuple[str, ...]
    rounding: float
    hidden: int = 1
    max_tokens: float = math.inf
    enough: float = math.inf

    def fits(self, sizes: Sequence[Size]) -> bool:
        """Whether groups of these sizes may be in one forward."""
        most = self.max_tokens if len(sizes) == 1 else min(self.max_tokens, self.enough)
        return tokens_of(sizes, self.layouts[0]) <= most

    def __call__(
        self,
        model: torch.nn.Module,
        groups: Sequence[PromptGroup],
        traces: Sequence[Traces],
        baselines: Sequence[Tensor] | None = None,
    ) -> list[Scores]:
        """The scores of each group, with gradients if they are on. Where the ``baselines`` are
        known, the empty traces are not forwarded."""
        packed = pack(
            groups,
            traces,
            self.template,
            self.device,
            temperature=self.temperature,
            layouts=self.layouts,
            hidden=self.hidden,
            empty=baselines is None,
        )
        logps = model(score=packed.batch)
        return unpack(packed, logps, self.template, self.rounding, baselines)

    def of_pairs(
        self, model: torch.nn.Module, pairs: Sequence[tuple[PromptGroup, Traces]]
    ) -> list[Scores]:
        """The scores of each group after its traces, as many in a forward as fit."""

        def fits(part: Sequence[tuple[PromptGroup, Traces]]) -> bool:
            return self.fits([size_of(*pair, self.template) for pair in part])

        return [
            one for part in together(pairs, fits) for one in self(model, *zip(*part, strict=True))
        ]
