"""What lm-eval's samples add up to: one number per benchmark and way of asking, with its error."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any


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


@dataclass(frozen=True)
class Mean:
    """A mean over questions with its standard error, None for a single one."""

    n: int
    value: float
    stderr: float | None


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of at least one value and its standard error, sd/√n with n − 1 in sd, as lm-eval's
    ``mean_stderr``.

    >>> mean_of([0.0, 1.0, 1.0, 0.0])
    Mean(n=4, value=0.5, stderr=0.28867513459481287)
    """
    n = len(values)
    return Mean(n, fmean(values), stdev(values) / sqrt(n) if n > 1 else None)


def mean_over(means: Sequence[Mean]) -> Mean:
    """The plain mean over benchmarks, each counted once, with the error of that mean."""
    k = len(means)
    errors = [m.stderr for m in means]
    known = [e for e in errors if e is not None]
    stderr = sqrt(sum(e * e for e in known)) / k if len(known) == k else None
    return Mean(k, fmean(m.value for m in means), stderr)


def gain_of(off: Sequence[Item], on: Sequence[Item]) -> Mean:
    """What thinking adds, question by question: a paired difference. Both were asked the same."""
    asked = [[(i.subset, i.doc_id, i.prompt_hash) for i in items] for items in (off, on)]
    assert asked[0] == asked[1]
    return mean_of([b.value - a.value for a, b in zip(off, on, strict=True)])
