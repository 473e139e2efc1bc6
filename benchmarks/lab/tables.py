"""Results of the lab as Markdown tables: a row for each cell, that is for runs that differ only in
base and seed."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from lab.candidates import CANDIDATES
from lab.experiments import EXPERIMENTS, SETTINGS
from lab.measure import COLLAPSED, END, LEARNT, POINT, first_point

Result = dict[str, Any]

_SHARES = {
    "accuracy": "accuracy, %",
    "accuracy_greedy": "greedy, %",
    "accuracy_no_think": "no trace, %",
    "exact": "whole answer, %",
    "useful": "useful, %",
}
_NUMBERS = {"uplift_hard": "uplift, hard", "trace_length": "length"}
_LABELS = ("family", "preset", "changed", "steps", "runs")
_LEARNING = ("learnt", "steps to learn", "most empty, %", "emptied")
_ENDS = ("entropy", "specificity", "guard", "sampled tokens", "CPU s")
#: What the brief table leaves out.
_FULL_ONLY = {"greedy, %", "useful, %", *_ENDS}


def table(name: str, results: Sequence[Result], full: bool = False) -> str:
    """The experiment's question and table, in ``full`` with every column.

    What is the same in all rows is said above them, and a column that is empty is left out.
    """
    cells: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        cells.setdefault(label_of(result["run"]), []).append(result)
    rows = [
        _cell(label, held_out, runs)
        for label, runs in cells.items()
        for held_out in runs[0]["held_out"]
    ]
    same = [head for head in _LABELS if len({row[head] for row in rows}) == 1]
    heads = [
        head
        for head in rows[0]
        if head not in same and any(row[head] for row in rows) and (full or head not in _FULL_ONLY)
    ]
    said = ", ".join(f"{head} {rows[0][head]}" for head in same if rows[0][head])
    lines = [EXPERIMENTS[name].question]
    if said:
        lines.append(f"All rows: {said}.")
    lines += ["", _row(heads), _row(["---"] * len(heads))]
    lines += [_row([row[head] for head in heads]) for row in rows]
    return "\n".join(lines) + "\n"


def label_of(run: dict[str, Any]) -> tuple[str, ...]:
    """Family, preset, what else is changed, and steps."""
    changes = tuple(tuple(change) for change in run["changes"])
    known = {(changes, ""): name for name, (_, changes) in CANDIDATES.items() if changes}
    known |= {(s.changes, s.control): s.name for s in SETTINGS if s.changes or s.control}
    named = known.get((changes, run["control"]))
    told = named or ", ".join(f"{name} {value:g}" for name, value in changes)
    if run["noise"]:
        told = f"{run['noise']:.0%} random digits"
    return run["family"], run["preset"], told, str(run["steps"])


def _cell(label: tuple[str, ...], held_out: str, runs: Sequence[Result]) -> dict[str, str]:
    """A row by its heads."""
    family, preset, changed, steps = label
    several = len(runs[0]["held_out"]) > 1
    sets = [run["held_out"][held_out] for run in runs]
    labels = [held_out if several else family, f"`{preset}`", changed, steps, str(len(runs))]
    learning = [*_learning(runs, sets), _most_empty(runs), _emptied(runs)]
    return {
        **dict(zip(_LABELS, labels, strict=True)),
        **dict(zip(_LEARNING, learning, strict=True)),
        **{head: _spread([100 * one[key] for one in sets], 1) for key, head in _SHARES.items()},
        **{head: _spread([one[key] for one in sets], 2) for key, head in _NUMBERS.items()},
        **dict(zip(_ENDS, _ending(runs), strict=True)),
    }


def _learning(runs: Sequence[Result], sets: Sequence[dict[str, float]]) -> list[str]:
    """How many runs learnt, with Wilson's interval and by base, and by which step they had."""
    learnt = [one["accuracy"] >= LEARNT for one in sets]
    bases = sorted({run["run"]["base"] for run in runs})
    by_base = [
        sum(ok for ok, run in zip(learnt, runs, strict=True) if run["run"]["base"] == base)
        for base in bases
    ]
    steps = [s for run in runs if (s := steps_to_learn(run)) is not None]
    counted = (
        f"{sum(learnt)} ({'+'.join(map(str, by_base))}; {_percent(wilson(sum(learnt), len(runs)))})"
    )
    return [counted, f"{median(steps):.0f} ({len(steps)} runs)" if steps else ""]


def _most_empty(runs: Sequence[Result]) -> str:
    """The largest share of empty traces in a run, at any point of its curve."""
    shares = [100 * max(e) for run in runs if (e := run["curves"].get("empty"))]
    return _spread(shares, 0) if shares else ""


def _emptied(runs: Sequence[Result]) -> str:
    """Runs whose traces were nearly all empty at some point, and of these who learnt again, and how
    many steps later."""
    starts = [first_point(run["curves"].get("empty", []), COLLAPSED) for run in runs]
    later = [
        (point - start) * POINT
        for run, start in zip(runs, starts, strict=True)
        if start is not None
        and (point := first_point(run["curves"]["hard"], LEARNT, start)) is not None
    ]
    count = sum(start is not None for start in starts)
    back = f", {len(later)} back after {median(later):.0f}" if later else ""
    return f"{count}{back}"


def _ending(runs: Sequence[Result]) -> list[str]:
    """Entropy of the last 20 steps, specificity, the guard's worst states, tokens, seconds."""
    entropy = [fmean(e[-END:]) for r in runs if (e := r["curves"].get("trace_entropy"))]
    specific = [r["specificity"] for r in runs if r["specificity"] is not None]
    worst = Counter(r["states"]["worst"] for r in runs if r["states"])
    return [
        f"{fmean(entropy):.2f}" if entropy else "",
        f"{fmean(specific):.2f} ({len(specific)} runs)" if specific else "",
        " ".join(f"{count} {state}" for state, count in worst.items() if state != "healthy"),
        f"{median(r['sampled_tokens'] for r in runs):,.0f}",
        f"{median(r['cpu_seconds'] for r in runs):.0f}",
    ]


def steps_to_learn(result: Result) -> int | None:
    """The step by which the hard tokens' probability first was ``LEARNT``; None if it never was."""
    point = first_point(result["curves"]["hard"], LEARNT)
    return None if point is None else (point + 1) * POINT


def best_changes(results: Sequence[Result]) -> dict[str, tuple[tuple[str, Any], ...]]:
    """For each preset the changed settings whose runs have the highest mean accuracy; of equal ones
    the first."""
    found: dict[str, dict[tuple[tuple[str, Any], ...], list[float]]] = {}
    for result in results:
        run, (held_out, *_) = result["run"], result["held_out"].values()
        changes = tuple((name, value) for name, value in run["changes"])
        found.setdefault(run["preset"], {}).setdefault(changes, []).append(held_out["accuracy"])
    return {
        preset: max(tried, key=lambda changes: fmean(tried[changes]))
        for preset, tried in found.items()
    }


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share, k of n (Wilson 1927).

    >>> tuple(round(x, 3) for x in wilson(0, 15))
    (0.0, 0.204)
    """
    centre, wide = (k + z * z / 2) / (n + z * z), z / (n + z * z)
    half = wide * math.sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def _percent(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.0%}–{interval[1]:.0%}".replace("%–", "–")


def _spread(values: Sequence[float], digits: int) -> str:
    """The mean, and the smallest and largest of the runs."""
    mean, low, high = (f"{x:.{digits}f}" for x in (fmean(values), min(values), max(values)))
    return f"{mean} ({low}–{high})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
