"""The runs as tables in Markdown: ``python benchmarks/middle/table.py [FOLDER]``.

A cell is the accuracy on a family's held-out problems in per cent, thinking / not: the mean over
seeds, with the 95 % interval of Student's t over the seeds where there are at least three. In the
verdicts ``sft`` has the better of thinking and none: the fair number for what does not train
traces.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from families import FAMILIES
from run import Run
from scipy.stats import t

#: Fewer seeds have no interval.
FEWEST = 3
#: After a trace, and after none.
NUMBERS = ("accuracy", "accuracy_no_think")
DECODINGS = {"Sampled at temperature 1": "", "Greedy": "_greedy"}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval; all three the mean where it has none."""
    mean, n = fmean(values), len(values)
    half = t.ppf(0.975, n - 1) * stdev(values) / n**0.5 if n >= FEWEST else 0.0
    return mean, mean - half, mean + half


def values(runs: list[dict[str, Any]], family: str, name: str) -> list[float]:
    """A number of one family, by seed."""
    return [run["families"][family][name] for run in runs]


def best(runs: list[dict[str, Any]], family: str, decoding: str) -> list[float]:
    """Of thinking and none, what has the larger mean."""
    return max((values(runs, family, name + decoding) for name in NUMBERS), key=fmean)


def read(folder: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(method, trained on) → its runs by seed; runs on the tuning split are left out."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["split"] == "heldout" and run["steps"] == Run.steps:
            found.setdefault((name_of(run), run["family"]), []).append(run)
    return found


def name_of(run: dict[str, Any]) -> str:
    """The method, with the answer's coefficient where it is not the preset's."""
    given = run.get("answer_coef")
    return run["method"] + (f", λ = {given:g}" if given is not None else "")


def lines(found: dict[tuple[str, str], list[dict[str, Any]]], decoding: str) -> Iterator[str]:
    """A table: a row for each method and what it was trained on."""
    yield "| method | trained on | seeds | " + " | ".join(FAMILIES) + " |"
    yield "|---" * (3 + len(FAMILIES)) + "|"
    for (method, trained), runs in sorted(found.items(), key=place):
        cells = [
            cell(values(runs, family, NUMBERS[0] + decoding))
            + f" / {100 * fmean(values(runs, family, NUMBERS[1] + decoding)):.0f}"
            for family in FAMILIES
        ]
        yield f"| `{method}` | {trained} | {len(runs)} | {' | '.join(cells)} |"


def place(item: tuple[tuple[str, str], Any]) -> tuple[bool, int, str, str]:
    """The base first, then sft, ours and the rivals; those of one family at the end."""
    (method, trained), _ = item
    first = ("base", "sft", "nrt-ws")
    return trained != "mixed", first.index(method) if method in first else 3, method, trained


def cell(numbers: list[float]) -> str:
    """``61.2 (55.0–67.4)`` per cent."""
    mean, low, high = (100 * x for x in interval(numbers))
    return f"{mean:.1f}" + (f" ({low:.1f}–{high:.1f})" if low < high else "")


def verdicts(found: dict[tuple[str, str], list[dict[str, Any]]], decoding: str) -> Iterator[str]:
    """For each method of enough seeds, families where its interval, thinking, is above or below
    that of sft at its best."""
    theirs = found.get(("sft", "mixed"), [])
    for (method, trained), runs in sorted(found.items(), key=place):
        if method in ("base", "sft") or trained != "mixed" or min(len(runs), len(theirs)) < FEWEST:
            continue
        told: dict[str, list[str]] = {"above": [], "below": []}
        for family in FAMILIES:
            _, low, high = interval(values(runs, family, NUMBERS[0] + decoding))
            _, their_low, their_high = interval(best(theirs, family, decoding))
            told["above"] += [family] if low > their_high else []
            told["below"] += [family] if high < their_low else []
        said = (f"{where} {', '.join(names) or 'nowhere'}" for where, names in told.items())
        yield f"- `{method}` against `sft`: {'; '.join(said)}"


def main(folder: Path) -> None:
    """Prints tables and verdicts."""
    found = read(folder)
    for name, decoding in DECODINGS.items():
        print(f"### {name}\n")
        print("\n".join([*lines(found, decoding), "", *verdicts(found, decoding), ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("runs"))
