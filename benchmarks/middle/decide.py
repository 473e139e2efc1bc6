"""The rule for the default objective, applied: ``python benchmarks/middle/decide.py``.

Reads lab/candidates.jsonl, candidates/, runs/ and second-base/ and prints, for each candidate and
family, by how many points it is above the present default (``one``), with the 95 % interval, and
what follows. The rule is in README.md. Pairs of base and seed that both
have count.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from families import FAMILIES
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.candidates import CANDIDATES
from lab.experiments import PAIRS

HERE = Path(__file__).parent
PRESENT = "one"
#: The lab's numbers: the hard digits, and the whole answer.
LAB = {"style_shift": ("accuracy", "exact"), "long": ("accuracy", "exact")}
#: What the first pass ranks by.
LEADING = ("sums", "dates", "kinship")

#: Candidate → family → a value for each pair of the lab, or each seed here.
Found = dict[str, dict[str, dict[Any, float]]]
#: Mean, low and high, in points above the present default; how many pairs or seeds.
Difference = tuple[float, float, float, int]


def read() -> tuple[Found, int]:
    """Everything that was run, in per cent, and the questions of a family of the middle tier."""
    found: Found = {name: {} for name in CANDIDATES}
    names = {json.dumps(run): name for name, run in CANDIDATES.items()}
    questions = 0
    for line in (HERE.parent / "lab" / "candidates.jsonl").read_text("utf-8").splitlines():
        result = json.loads(line)
        run = result["run"]
        name = names[json.dumps((run["preset"], run["changes"]))]
        for number in LAB[run["family"]]:
            value = 100 * result["held_out"][run["family"]][number]
            cells = found[name].setdefault(f"{run['family']} {number}", {})
            cells[run["base"], run["seed"]] = value
    folders = ("candidates", "runs", "second-base")
    for path in sorted(path for x in folders for path in HERE.glob(f"{x}/*-mixed-?.json")):
        result = json.loads(path.read_text("utf-8"))
        result["method"] = {"nrt-ws": PRESENT}.get(result["method"], result["method"])
        if result["method"] not in CANDIDATES:
            continue
        for family in FAMILIES:
            about = result["families"][family]
            questions = about["questions"]
            cells = found[result["method"]].setdefault(family, {})
            cells[path.parent.name == "second-base", result["seed"]] = 100 * about["accuracy"]
    return found, questions


def paired(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Mean of the differences with Student's interval; of fewer than two, no bounds."""
    each = [a - b for a, b in zip(one, other, strict=True)]
    mean, n = fmean(each), len(each)
    half = t.ppf(0.975, n - 1) * stdev(each) / n**0.5 if n > 1 else float("inf")
    return mean, mean - half, mean + half, n


def of_shares(one: Sequence[float], other: Sequence[float], questions: int) -> Difference:
    """Difference of two shares of ``questions`` times seeds, with the normal interval."""
    p, q, n = fmean(one), fmean(other), len(one)
    half = 1.96 * ((p * (100 - p) + q * (100 - q)) / (n * questions)) ** 0.5
    return p - q, p - q - half, p - q + half, n


def differences(found: Found, name: str, questions: int) -> dict[str, Difference]:
    """A candidate against the present default on each family that both have."""
    told = {}
    for family, present in found[PRESENT].items():
        keys = sorted(present.keys() & found[name].get(family, {}).keys())
        if not keys:
            continue
        one, other = ([cells[key] for key in keys] for cells in (found[name][family], present))
        here = family in FAMILIES
        told[family] = of_shares(one, other, questions) if here else paired(one, other)
    return told


def cell(told: Difference | None, family: str) -> str:
    """``+1.0 (+0.4 to +1.6)``, with the number of pairs where some are missing."""
    if told is None:
        return ""
    mean, low, high, n = told
    bounds = f" ({low:+.1f} to {high:+.1f})" if low > -float("inf") else ""
    part = f", {n} of {len(PAIRS)} pairs" if family not in FAMILIES and n < len(PAIRS) else ""
    return f"{mean:+.1f}{bounds}{part}"


def verdict(found: Found, name: str, told: dict[str, Difference]) -> str:
    """Where it is worse and better, what it has of the families, and what is missing."""
    worse = [family for family, (_, _, high, _) in told.items() if high < 0]
    better = [family for family, (_, low, _, _) in told.items() if low > 0]
    missing = [family for family in families() if family not in told]
    short = [family for family, x in told.items() if family not in FAMILIES and x[3] < len(PAIRS)]
    leading = [fmean(found[name][f].values()) for f in LEADING if f in found[name]]
    parts = [f"worse: {', '.join(worse) or 'nowhere'}", f"better: {', '.join(better) or 'nowhere'}"]
    if len(leading) == len(LEADING):
        parts.append(f"mean of {', '.join(LEADING)}: {fmean(leading):.1f} %")
    parts += [f"not run: {', '.join(missing)}"] if missing else []
    parts += [f"in part: {', '.join(short)}"] if short else []
    return "; ".join(parts)


def families() -> list[str]:
    """Every family by the name of its column."""
    return [f"{name} {number}" for name, numbers in LAB.items() for number in numbers] + [*FAMILIES]


def main() -> None:
    """Prints the table, the verdicts, and who leads where."""
    found, questions = read()
    columns = [family for family in families() if family in found[PRESENT]]
    print("| candidate | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    present = [fmean(found[PRESENT][family].values()) for family in columns]
    print(f"| `{PRESENT}`, % | " + " | ".join(f"{x:.1f}" for x in present) + " |")
    told = {name: differences(found, name, questions) for name in CANDIDATES}
    for name in CANDIDATES:
        if name != PRESENT and told[name]:
            cells = [cell(told[name].get(family), family) for family in columns]
            print(f"| `{name}` | {' | '.join(cells)} |")
    print()
    for name in CANDIDATES:
        if told[name]:
            print(f"- `{name}`: {verdict(found, name, told[name])}")
    for family in columns:
        whole = found[PRESENT][family].keys()
        complete = [name for name in CANDIDATES if found[name].get(family, {}).keys() >= whole]
        mean, name = max((fmean(found[name][family].values()), name) for name in complete)
        print(f"- largest mean on {family}, of {len(complete)}: `{name}` ({mean:.1f} %)")


if __name__ == "__main__":
    main()
