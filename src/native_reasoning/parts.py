"""A micro-batch in parts of fewer rows, for groups that do not fit into memory.

The signal is known beforehand and the loss is a sum over traces, so any split gives the same
gradient (up to rounding).
"""

from collections.abc import Sequence
from dataclasses import fields, replace

from torch import Tensor

from native_reasoning.types import Judgement, Scores, Signal, Traces, Verdict
from native_reasoning.window import MicroBatch, Recall


def split(micro: MicroBatch, rows: int) -> list[MicroBatch]:
    """Parts of at most ``rows`` traces, each of one group where a group has more, else of whole
    groups as long as they fit. The traces of a group are sorted by length before they are cut, so
    that little is padded. ``micro`` has its recalls."""
    assert micro.recalls is not None
    parts: list[list[tuple[int, list[int]]]] = []
    room = 0
    for g, traces in enumerate(micro.traces):
        order = sorted(range(len(traces.ids)), key=lambda k: len(traces.ids[k]))
        cuts = [order[i : i + rows] for i in range(0, len(order), rows)]
        for cut in cuts:
            if len(cut) > room or len(cuts) > 1:
                parts.append([])
                room = rows
            parts[-1].append((g, cut))
            room -= len(cut)
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


def _recall(recall: Recall, ks: list[int]) -> Recall:
    scores, signal = recall.scores, recall.signal
    longest = int(scores.trace_mask[ks].sum(-1).max())

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[ks]

    def tokens(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[ks][:, :longest]

    taken = {name: rows(getattr(scores, name)) for name in _BY_ROW}
    verdict = None if scores.verdict is None else _verdict(scores.verdict, ks)
    part = replace(
        scores,
        **taken,
        trace=tokens(scores.trace),
        trace_mask=tokens(scores.trace_mask),
        verdict=verdict,
        ema=None,
        frozen=_judgement(scores.frozen, ks, longest),
    )
    weights = {name: rows(getattr(signal, name)) for name in _SIGNAL_BY_ROW}
    part_signal = replace(signal, **weights, trace_weights=tokens(signal.trace_weights))
    return replace(recall, scores=part, signal=part_signal)


def _judgement(said: Judgement | None, ks: list[int], longest: int) -> Judgement | None:
    if said is None or said.trace is None:
        return said
    return Judgement(said.baseline, trace=said.trace[ks][:, :longest])


_BY_ROW = ("answer", "forced_tag", "closed", "trace_length", "answer_length")
_SIGNAL_BY_ROW = ("rewards", "advantages", "answer_weights", "helped")
assert {*_BY_ROW, *_SIGNAL_BY_ROW} <= {f.name for kind in (Scores, Signal) for f in fields(kind)}
