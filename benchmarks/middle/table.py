"""The runs as tables in Markdown: ``python benchmarks/middle/table.py [FOLDER]``.

A cell is the mean over seeds of the accuracy on a family's held-out problems, in per cent, with the
95 % interval of Student's t over the seeds where there are at least three. *Best* is the better of
sampled thinking and none: the fair number for a method that has not learned to think.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from families import FAMILIES
from scipy.stats import t

#: Fewer seeds have no interval.
FEWEST = 3
NUMBERS = ("accuracy", "accuracy_no_think")


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval; all three the mean where it has none."""
    mean, n = fmean(values), len(values)
    half = t.ppf(0.975, n - 1) * stdev(values) / n**0.5 if n >= FEWEST else 0.0
    return mean, mean - half, mean + half


def values(runs: list[dict[str, Any]], family: str, name: str) -> list[float]:
    """A number of one family, by seed; ``best`` is the larger mean of ``NUMBERS``."""
    if name == "best":
        return max((values(runs, family, each) for each in NUMBERS), key=fmean)
    return [run["families"][family][name] for run in runs]


def read(folder: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(method, trained on) → its runs by seed; runs on the tuning split are left out."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["split"] == "heldout":
            found.setdefault((run["method"], run["family"]), []).append(run)
    return found


def lines(found: dict[tuple[str, str], list[dict[str, Any]]]) -> Iterator[str]:
    """The whole table, a row for each method and number."""
    yield "| method | trained on | seeds | number | " + " | ".join(FAMILIES) + " |"
    yield "|---" * (4 + len(FAMILIES)) + "|"
    for (method, trained), runs in sorted(found.items()):
        for name in NUMBERS:
            cells = [cell(values(runs, family, name)) for family in FAMILIES]
            label = "thinking" if name == "accuracy" else "without"
            yield f"| {method} | {trained} | {len(runs)} | {label} | {' | '.join(cells)} |"


def cell(numbers: list[float]) -> str:
    """``61.2 (55.0–67.4)`` per cent."""
    mean, low, high = (100 * x for x in interval(numbers))
    return f"{mean:.1f}" + (f" ({low:.1f}–{high:.1f})" if low < high else "")


def verdict(found: dict[tuple[str, str], list[dict[str, Any]]]) -> Iterator[str]:
    """For each family: are the intervals of nrt-ws, thinking, and of sft, its best, apart?"""
    ours, theirs = found.get(("nrt-ws", "mixed"), []), found.get(("sft", "mixed"), [])
    if min(len(ours), len(theirs)) < FEWEST:
        yield "fewer than three seeds: no verdict"
        return
    for family in FAMILIES:
        a, b = values(ours, family, "accuracy"), values(theirs, family, "best")
        apart = interval(a)[1] > interval(b)[2]
        yield f"{family}: nrt-ws {cell(a)}, sft {cell(b)}: {'above' if apart else 'not apart'}"


def main(folder: Path) -> None:
    """Prints both."""
    found = read(folder)
    print("\n".join([*lines(found), "", *verdict(found)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("runs"))
