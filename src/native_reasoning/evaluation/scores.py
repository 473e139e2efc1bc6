"""What lm-eval's samples add up to: one number per benchmark and way of asking, with its error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from native_reasoning.evaluation.benchmarks import Benchmark


@dataclass(frozen=True)
class Item:
    """One question asked in one way: its ``value`` by the benchmark's metric, lm-eval's ``answer``
    after its filter, and the trace before it (None where there was none)."""

    benchmark: str
    subset: str
    doc_id: int
    mode: str
    value: float
    answer: Any
    prompt_hash: str
    trace: str | None = None
    trace_length: int | None = None
    closed: bool | None = None


def mean_of(values: Sequence[float]) -> dict[str, float | None]:
    """The mean of at least one value and its standard error, sd/√n with n − 1 in sd, as lm-eval's
    ``mean_stderr``.

    >>> mean_of([0.0, 1.0, 1.0, 0.0])
    {'value': 0.5, 'stderr': 0.28867513459481287}
    """
    n = len(values)
    return {"value": fmean(values), "stderr": stdev(values) / sqrt(n) if n > 1 else None}


def mean_over(cells: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The plain mean over benchmarks, each counted once, with the error of that mean."""
    errors = [cell["stderr"] for cell in cells]
    value = fmean(cell["value"] for cell in cells)
    stderr = None if None in errors else sqrt(sum(e * e for e in errors)) / len(errors)
    return {"value": value, "stderr": stderr}


def gain_of(off: Sequence[Item], on: Sequence[Item]) -> dict[str, float | None]:
    """What thinking adds, question by question: a paired difference. Both were asked the same."""
    asked = [[(i.subset, i.doc_id, i.prompt_hash) for i in items] for items in (off, on)]
    assert asked[0] == asked[1]
    return mean_of([b.value - a.value for a, b in zip(off, on, strict=True)])


def row_of(benchmark: Benchmark, modes: Sequence[str], items: Sequence[Item]) -> dict[str, Any]:
    """A benchmark's row: its number in each way, and the gain."""
    by_mode = {mode: [i for i in items if i.mode == mode] for mode in modes}
    first = by_mode[modes[0]]
    row: dict[str, Any] = {
        "benchmark": benchmark.name,
        "metric": f"{benchmark.metric},{benchmark.filter}".removesuffix(",none"),
        "questions": len(first),
        "prompts": sha256("".join(i.prompt_hash for i in first).encode()).hexdigest()[:16],
    }
    for mode, some in by_mode.items():
        row[mode] = mean_of([i.value for i in some])
        if mode == "on":
            row[mode]["trace_length"] = fmean(i.trace_length or 0 for i in some)
            row[mode]["closed"] = fmean(bool(i.closed) for i in some)
    if len(modes) == 2:
        row["gain"] = gain_of(by_mode["off"], by_mode["on"])
    return row
