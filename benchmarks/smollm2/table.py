"""The runs of 26 November 2026 as Markdown: ``python benchmarks/smollm2/table.py``.

They were made with the code of commit cd8934a; today ``nrt compare benchmarks/smollm2/gcd.yaml``
makes such runs, and a table of its own. Every number is a mean over held-out questions, each first
averaged over seeds, with a 95 % bootstrap interval over questions. *As used*: after a sampled trace
where the method trains with traces, after none for ``base`` and ``sft``; *against sft*: the
difference on the same questions.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from native_reasoning.evaluation.grading import bootstrap_interval

RUNS = Path(__file__).with_name("runs")
METHODS, SETS = ("base", "sft", "nrt-ws", "verifree"), ("gcd", "pubmedqa")
HEADS = ("method", "seeds", "accuracy as used, %", "with trace", "greedy", "none", "none, greedy")
LIKELY = ("answer log-p as used", "against sft", "with trace", "none", "trace length", "closed, %")


def main() -> None:
    """Both tables of each set."""
    for data in SETS:
        runs = {method: load(data, method) for method in METHODS}
        made = {method: found for method, found in runs.items() if found}
        print(f"### {data}\n")
        print(row([*HEADS, *LIKELY]))
        print(row(["---"] * len([*HEADS, *LIKELY])))
        for method in made:
            print(row(cells(method, made)))
        print()


def load(data: str, method: str) -> list[dict[str, Any]]:
    """The runs of a cell."""
    paths = sorted(RUNS.glob(f"{data}-{method}-[0-9]*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def cells(method: str, made: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row of the table."""
    runs = made[method]
    of = {name: by_question(runs, name) for name in runs[0]["questions"][0]}
    end = ending(method)
    likely = of["answer_logp" + end]
    against = ""
    if "sft" in made and method != "sft":
        sft = by_question(made["sft"], "answer_logp_no_think")
        against = told([a - b for a, b in zip(likely, sft, strict=True)], 2)
    return [
        f"`{method}`",
        str(len(runs)),
        told([100 * x for x in of["accuracy" + end]], 1),
        *(f"{100 * fmean(of[f'accuracy{x}']):.1f}" for x in ("", "_greedy")),
        *(f"{100 * fmean(of[f'accuracy_no_think{x}']):.1f}" for x in ("", "_greedy")),
        told(likely, 2),
        against,
        f"{fmean(of['answer_logp']):.2f}",
        f"{fmean(of['answer_logp_no_think']):.2f}",
        f"{fmean(of['trace_length']):.0f}",
        f"{100 * fmean(of['closed']):.0f}",
    ]


def ending(method: str) -> str:
    """Which numbers are those of the method as it is used."""
    return "_no_think" if method in ("base", "sft") else ""


def by_question(runs: Sequence[dict[str, Any]], name: str) -> list[float]:
    """A number of each question, averaged over the runs."""
    values = [[question[name] for question in run["questions"]] for run in runs]
    return [fmean(column) for column in zip(*values, strict=True)]


def told(values: Sequence[float], digits: int) -> str:
    """The mean and its interval."""
    interval = bootstrap_interval(values)
    numbers = (fmean(values), interval.low, interval.high)
    mean, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{mean} ({low} to {high})"


def row(texts: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(texts) + " |"


if __name__ == "__main__":
    main()
