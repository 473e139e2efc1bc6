"""A micro-batch in parts of fewer rows, for groups that do not fit into memory; what a step needs.

The signal is known beforehand and the loss is a sum over traces, so any split gives the same
gradient (up to rounding).
"""

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch.nn.functional import pad

from native_reasoning.config.errors import RunError
from native_reasoning.data.rows import Traces
from native_reasoning.objective.types import Judgement, Scores, Signal, Verdict
from native_reasoning.records.folder import read_timings
from native_reasoning.rollout.window import MicroBatch, Recall

Numbers = TypeVar("Numbers", Scores, Signal, Verdict, Judgement)

#: What has a row for each trace; the first ones have a column for each sampled token.
_BY_TOKEN = ("trace", "trace_mask", "trace_weights")
_BY_TRACE = (
    *_BY_TOKEN,
    *("answer", "forced_tag", "closed", "trace_length", "answer_length"),
    *("rewards", "advantages", "answer_weights", "token_rewards", "helped"),
    *("complete", "correct", "repetitive", "added"),
)
_INSIDE = ("verdict", "frozen", "ema")


def split(micro: MicroBatch, rows: int) -> list[MicroBatch]:
    """Parts of at most ``rows`` traces, each of one group where a group has more, else of whole
    groups as long as they fit. The traces of a group are sorted by length before they are cut, so
    that little is padded. ``micro`` has its recalls."""
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
    return [some(micro, cells) for cells in parts]


def pieces(traces: Traces, rows: int) -> list[list[int]]:
    """The numbers of the traces in pieces of at most ``rows``: all of them as they are, or sorted
    by length, so that little is padded."""
    count = len(traces.ids)
    if rows >= count:
        return [[*range(count)]]
    order = sorted(range(count), key=lambda k: len(traces.ids[k]))
    return [order[i : i + rows] for i in range(0, count, rows)]


def some(micro: MicroBatch, cells: Sequence[tuple[int, list[int]]]) -> MicroBatch:
    """Of each of these groups, by number, these traces."""
    verdicts, recalls = micro.verdicts, micro.recalls
    return MicroBatch(
        groups=tuple(micro.groups[g] for g, _ in cells),
        traces=tuple(_traces(micro.traces[g], ks) for g, ks in cells),
        verdicts=verdicts and tuple(_cut(verdicts[g], ks) for g, ks in cells),
        recalls=recalls and tuple(_recall(recalls[g], ks) for g, ks in cells),
    )


def _traces(traces: Traces, ks: list[int]) -> Traces:
    return Traces(*(tuple(of[k] for k in ks) if of else () for of in vars(traces).values()))


def _recall(recall: Recall, ks: list[int]) -> Recall:
    longest = int(recall.scores.trace_mask[ks].sum(-1).max())
    signal, scores = _cut(recall.signal, ks, longest), _cut(recall.scores, ks, longest)
    return replace(recall, signal=signal, scores=scores)


def _cut(numbers: Numbers, ks: list[int], longest: int | None = None) -> Numbers:
    """Those of these traces, of which none has more than ``longest`` tokens."""
    made: dict[str, Any] = {}
    everything: dict[str, Any] = vars(numbers)
    for name, value in everything.items():
        if name in _BY_TRACE and value is not None:
            made[name] = value[ks][:, :longest] if name in _BY_TOKEN else value[ks]
        elif name in _INSIDE and value is not None:
            made[name] = _cut(value, ks, longest)
    return replace(numbers, **made)


def join(found: Sequence[Numbers], cuts: Sequence[list[int]]) -> Numbers:
    """Those of all traces of a group from those of its pieces."""
    made: dict[str, Any] = {}
    for name, value in vars(found[0]).items():
        each: list[Any] = [getattr(one, name) for one in found]
        if name in _BY_TRACE and value is not None:
            if name in _BY_TOKEN:
                width = max(x.shape[1] for x in each)
                each = [pad(x, (0, width - x.shape[1])) for x in each]
            back = torch.tensor([k for ks in cuts for k in ks], device=value.device).argsort()
            made[name] = torch.cat(each)[back]
        elif name in _INSIDE and value is not None:
            made[name] = join(each, cuts)
    return replace(found[0], **made) if len(found) > 1 else found[0]


@contextmanager
def fitting(what: str, fix: str) -> Generator[None]:
    """Raises a RunError where memory runs out inside: out of memory with ``what``."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError) or not should_reduce_batch_size(error):
            raise
        said = (str(error).splitlines() or [""])[0]
        raise RunError(
            f"out of memory with {what}: {said}",
            why="they were computed together",
            fix=f"{fix}; --resume goes on from the last checkpoint",
        ) from None


def fewer_rows(rows: int) -> tuple[str, str]:
    """What ``fitting`` says of a forward of so many traces."""
    fewer = f"--rows-per-forward {rows // 2}, " if rows > 1 else ""
    fix = f"{fewer}--activation-checkpointing true, or a smaller --max-trace-length"
    return f"{rows} traces in a forward", fix


# -- What a step takes (``nrt train --dry-run``) --------------------------------------------------


def full_step(trainer: Any) -> dict[str, float | None]:
    """Trains one step on the longest rows, with traces that all run to ``max_trace_length``, and
    says what it took on this rank: ``seconds_per_step``, and the bytes of ``memory`` at its peak,
    those of the process on a CPU (None where the system does not say), those that torch has
    reserved on a GPU. ``trainer``, an NRTTrainer with ``max_steps`` 1, is of no use afterwards."""
    trainer.collector.take_longest()
    cuda = trainer.args.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer.forwards.sampler.stop = lambda ids: None
    trainer.train()
    # of the step alone: what comes once in a run is not multiplied by its steps; one rank writes it
    steps = [x["step_seconds"] for x in read_timings(trainer.folder) if "step_seconds" in x]
    peak = torch.cuda.max_memory_reserved() if cuda else _peak_of_process()
    return {"seconds_per_step": sum(steps), "memory": peak}


def _peak_of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
