"""Results of the lab as Markdown tables: a row for each cell, that is for runs that differ only in
base and seed."""

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from native_reasoning.lab.experiments import EXPERIMENTS, SETTINGS
from native_reasoning.lab.measure import COLLAPSED, LEARNT, POINT, first_point, state_of

Result = dict[str, Any]

_TITLES = {
    "accuracy": "accuracy, %",
    "accuracy_greedy": "greedy, %",
    "accuracy_no_think": "no trace, %",
    "uplift_hard": "uplift, hard",
    "useful": "useful, %",
    "trace_length": "length",
}


def table(name: str, results: Sequence[Result]) -> str:
    """The experiment's question and table."""
    cells: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        cells.setdefault(label_of(result["run"]), []).append(result)
    heads = ["family", "preset", "changed", "runs", "learnt", "emptied", "steps to learn"]
    heads += [*_TITLES.values(), "entropy", "specificity", "s"]
    lines = [EXPERIMENTS[name].question, "", _row(heads), _row(["---"] * len(heads))]
    for label, runs in cells.items():
        for held_out in runs[0]["held_out"]:
            lines.append(_row(_cell(label, held_out, runs)))
    return "\n".join(lines) + "\n"


def label_of(run: dict[str, Any]) -> tuple[str, str, str]:
    """Family, preset, and what else is changed."""
    changes = tuple(tuple(change) for change in run["changes"])
    known = {(changes, control): name for name, changes, control in SETTINGS}
    named = known.get((changes, run["control"]))
    told = named or " ".join([*(f"{k} {v}" for k, v in changes), run["control"]]).strip()
    if run["noise"]:
        told = f"{run['noise']:.0%} random answers"
    return run["family"], run["preset"], told


def _cell(label: tuple[str, str, str], held_out: str, runs: Sequence[Result]) -> list[str]:
    family = held_out if len(runs[0]["held_out"]) > 1 else label[0]
    sets = [run["held_out"][held_out] for run in runs]
    learnt = sum(state_of(run["curves"]) == "learnt" for run in runs)
    steps = [s for run in runs if (s := steps_to_learn(run)) is not None]
    values = [
        _spread([one[key] for one in sets], 100 if title.endswith("%") else 1)
        for key, title in _TITLES.items()
    ]
    entropy = [fmean(run["curves"]["trace_entropy"][-2:]) for run in runs]
    specific = [run["specificity"] for run in runs if run["specificity"] is not None]
    return [
        family,
        f"`{label[1]}`",
        label[2],
        str(len(runs)),
        f"{learnt} ({_percent(wilson(learnt, len(runs)))})",
        f"{sum(map(emptied, runs))}",
        f"{median(steps):.0f}" if steps else "",
        *values,
        f"{fmean(entropy):.2f}",
        f"{fmean(specific):.2f}" if specific else "",
        f"{median(run['cpu_seconds'] for run in runs):.0f}",
    ]


def emptied(result: Result) -> bool:
    """Whether nearly all traces were empty at any point of the run."""
    return first_point(result["curves"].get("empty", []), COLLAPSED) is not None


def steps_to_learn(result: Result) -> int | None:
    """The step by which the hard tokens' probability first was ``LEARNT``; None if it never was."""
    point = first_point(result["curves"]["hard"], LEARNT)
    return None if point is None else (point + 1) * POINT


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


def _spread(values: Sequence[float], factor: float) -> str:
    """The mean, and the smallest and largest of the runs."""
    shown = [value * factor for value in values]
    digits = 1 if factor == 100 else 2
    mean, low, high = (f"{x:.{digits}f}" for x in (fmean(shown), min(shown), max(shown)))
    return f"{mean} ({low}–{high})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
