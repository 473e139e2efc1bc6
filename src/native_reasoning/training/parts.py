"""A micro-batch in parts of fewer rows, for groups that do not fit into memory.

The signal is known beforehand and the loss is a sum over traces, so any split gives the same
gradient (up to rounding).
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from native_reasoning.data.rows import Traces
from native_reasoning.objective.types import Judgement, Scores, Signal, Verdict
from native_reasoning.rollout.window import MicroBatch, Recall


def split(micro: MicroBatch, rows: int) -> list[MicroBatch]:
    """Parts of at most ``rows`` traces, each of one group where a group has more, else of whole
    groups as long as they fit. The traces of a group are sorted by length before they are cut, so
    that little is padded. ``micro`` has its recalls."""
    assert micro.recalls is not None
    parts: list[list[tuple[int, list[int]]]] = []
    room = 0
    for g, traces in enumerate(micro.traces):
        cuts = pieces(traces, rows)
        for ks in cuts:
            if len(ks) > room or len(cuts) > 1:
                parts.append([])
                room = rows
            parts[-1].append((g, ks))
            room -= len(ks)
    return [_part(micro, cells) for cells in parts]


def _part(micro: MicroBatch, cells: Sequence[tuple[int, list[int]]]) -> MicroBatch:
    assert micro.recalls is not None
    verdicts = micro.verdicts
    return MicroBatch(
        groups=tuple(micro.groups[g] for g, _ in cells),
        traces=tuple(_traces(micro.traces[g], ks) for g, ks in cells),
        verdicts=verdicts and tuple(_verdict(verdicts[g], ks) for g, ks in cells),
        recalls=tuple(_recall(micro.recalls[g], ks) for g, ks in cells),
    )


def _traces(traces: Traces, ks: list[int]) -> Traces:
    return Traces(*(tuple(of[k] for k in ks) if of else () for of in vars(traces).values()))


def _verdict(verdict: Verdict, ks: list[int]) -> Verdict:
    return Verdict(*(None if x is None else x[ks] for x in vars(verdict).values()))  # type: ignore[arg-type]


def pieces(traces: Traces, rows: int) -> list[list[int]]:
    """The numbers of the traces in pieces of at most ``rows``: all of them as they are, or sorted
    by length, so that little is padded."""
    count = len(traces.ids)
    if rows >= count:
        return [[*range(count)]]
    order = sorted(range(count), key=lambda k: len(traces.ids[k]))
    return [order[i : i + rows] for i in range(0, count, rows)]


def cut(micro: MicroBatch, g: int, ks: list[int]) -> MicroBatch:
    """These traces of one group, without recalls."""
    verdicts = micro.verdicts and (_verdict(micro.verdicts[g], ks),)
    return MicroBatch((micro.groups[g],), (_traces(micro.traces[g], ks),), verdicts)


def cut_scores(scores: Scores, ks: list[int]) -> Scores:
    """The scores of these traces, as wide as the longest of them."""
    longest = int(scores.trace_mask[ks].sum(-1).max())

    def tokens(x: Tensor) -> Tensor:
        return x[ks][:, :longest]

    return replace(
        scores,
        **{name: _at(getattr(scores, name), ks) for name in _BY_ROW},
        trace=tokens(scores.trace),
        trace_mask=tokens(scores.trace_mask),
        verdict=None if scores.verdict is None else _verdict(scores.verdict, ks),
        ema=None,
        frozen=_judgement(scores.frozen, ks, longest),
    )


def join(found: Sequence[Scores], cuts: Sequence[list[int]]) -> Scores:
    """The scores of all traces of a group from those of its pieces."""
    if len(found) == 1:
        return found[0]
    first, device = found[0], found[0].trace.device
    back = torch.tensor([k for ks in cuts for k in ks], device=device).argsort()

    def rows(tensors: Sequence[Any]) -> Any:
        if tensors[0] is None:
            return None
        if tensors[0].dim() < 2:
            return torch.cat([*tensors])[back]
        width = max(x.shape[1] for x in tensors)
        return torch.cat([pad(x, (0, width - x.shape[1])) for x in tensors])[back]

    def said(name: str) -> Judgement | None:
        one = [getattr(scores, name) for scores in found]
        if one[0] is None:
            return None
        answer, trace = rows([j.answer for j in one]), rows([j.trace for j in one])
        return Judgement(one[0].baseline, answer=answer, trace=trace)

    verdict = None
    if first.verdict is not None:
        each = [vars(scores.verdict) for scores in found]
        verdict = Verdict(**{name: rows([v[name] for v in each]) for name in each[0]})
    names = ("trace", "trace_mask", *_BY_ROW)
    whole = {name: rows([getattr(scores, name) for scores in found]) for name in names}
    return replace(first, **whole, verdict=verdict, frozen=said("frozen"), ema=said("ema"))


def _at(x: Tensor | None, ks: list[int]) -> Any:
    return None if x is None else x[ks]


def _recall(recall: Recall, ks: list[int]) -> Recall:
    signal, scores = recall.signal, cut_scores(recall.scores, ks)
    weights = {name: _at(getattr(signal, name), ks) for name in _SIGNAL_BY_ROW}
    tokens = _at(signal.trace_weights, ks)
    tokens = None if tokens is None else tokens[:, : scores.trace.shape[1]]
    return replace(recall, scores=scores, signal=replace(signal, **weights, trace_weights=tokens))


def _judgement(said: Judgement | None, ks: list[int], longest: int) -> Judgement | None:
    if said is None or said.trace is None:
        return said
    return Judgement(said.baseline, trace=said.trace[ks][:, :longest])


_BY_ROW = ("answer", "forced_tag", "closed", "trace_length", "answer_length")
_SIGNAL_BY_ROW = ("rewards", "advantages", "answer_weights", "token_rewards", "helped")
assert {*_BY_ROW, *_SIGNAL_BY_ROW} <= {f.name for kind in (Scores, Signal) for f in fields(kind)}
