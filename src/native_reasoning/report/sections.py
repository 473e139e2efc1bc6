"""What a page says in words and tables, beside its figures and traces: values for page.html."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml

from native_reasoning.records.folder import QUARANTINE
from native_reasoning.report.curves import CURVES
from native_reasoning.report.figures import FIGURES, figure
from native_reasoning.report.gains import by_difficulty, by_token
from native_reasoning.report.runs import NO_TRACES, Run, run_names
from native_reasoning.report.verdict import Verdict, answers_alone, verdict
from native_reasoning.report.wording import changed_words

#: Steps that went wrong, told one by one.
MOST_TOLD = 20
#: Characters of a setting in a sentence.
LONG = 40


@dataclass(frozen=True)
class RunPart:
    """One run on a page. Tables are lists of rows; ``problems`` are what is missing, and steps that
    went wrong."""

    name: str
    verdict: Verdict
    problems: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    config: str
    data_report: tuple[str, ...]
    difficulty: list[dict[str, Any]]
    tokens: list[dict[str, Any]]
    words: list[dict[str, Any]]


@dataclass(frozen=True)
class FigurePart:
    """One figure: what plotly draws, and the same in numbers: ``rows`` of label, first, last,
    lowest and highest value."""

    name: str
    title: str
    explains: str
    json: dict[str, Any]
    rows: list[tuple[str, ...]]


def run_parts(runs: Sequence[Run]) -> list[RunPart]:
    """A part for each run."""
    return [_run_part(run, name) for run, name in zip(runs, run_names(runs), strict=True)]


def figure_parts(runs: Sequence[Run]) -> list[FigurePart]:
    """Every figure for which the runs have data."""
    parts = []
    for name, (title, explains) in FIGURES.items():
        drawn = json.loads(str(figure(name, *runs).to_json()))
        if drawn["data"]:
            for ours in ("template", "title"):
                drawn["layout"].pop(ours, None)
            rows = _numbers(name, runs) if name in CURVES else []
            parts.append(FigurePart(name, title, explains, drawn, rows))
    return parts


def warnings(runs: Sequence[Run]) -> list[str]:
    """What makes a comparison of the runs unfair."""
    names, found = run_names(runs), []
    for key, what in (
        ("data_hash", "trained on different questions"),
        ("model", "begun from different models"),
    ):
        values = [str(_setting(run, key) or "") for run in runs]
        if len({*values}) > 1:
            short = _end if key == "model" else _beginning
            groups = {v: [n for n, w in zip(names, values, strict=True) if w == v] for v in values}
            told = " · ".join(
                f"{', '.join(group)} ({short(value) or 'not recorded'})"
                for value, group in groups.items()
            )
            found.append(f"These runs were {what}, so their levels cannot be compared: {told}.")
    asked = {name: n for name, run in zip(names, runs, strict=True) if (n := _asked(run))}
    questions = [set(known) for known in map(_held_out, runs) if known]
    if len({*asked.values()}) > 1 or any(known != questions[0] for known in questions):
        told = " · ".join(f"{name} ({count} questions)" for name, count in asked.items())
        found.append(
            "These runs were evaluated on different held-out questions, so their accuracy and "
            f"uplift there cannot be compared: {told or ', '.join(names)}."
        )
    if len({str(_setting(run, "preset")) for run in runs if _setting(run, "preset")}) > 1:
        found.append(
            "Rewards of different presets are on different scales: compare accuracy and uplift."
        )
    return found


def _beginning(value: str) -> str:
    return value[:LONG]


def _end(value: str) -> str:
    """A path is told by its end."""
    return value if len(value) <= LONG else f"…{value[1 - LONG :]}"


def _asked(run: Run) -> int:
    """Questions of the last evaluation; 0 if there was none."""
    counts = run.column("eval_questions")
    return int(counts.iloc[-1]) if len(counts) else 0


def _held_out(run: Run) -> list[tuple[str, str]]:
    """Those of them that were recorded, with their answers."""
    steps = run.held_out["step"].to_numpy()
    last = run.held_out.filter(pa.array(steps == steps.max(initial=0)))
    texts = (last[name].to_pylist() for name in ("prompt", "answer"))
    return [*zip(*texts, strict=True)]


def _skipped(run: Run) -> list[str]:
    """Steps whose update was skipped or whose numbers were not finite, a sentence each; of many
    the first ``MOST_TOLD``."""
    rows = Counter(run.quarantine.index.tolist())
    found = [
        (step, f"step {step}: update skipped, {count} rows in {QUARANTINE}")
        for step, count in rows.items()
    ]
    for table in (run.metrics, run.evaluations):
        lost = table["non_finite"].dropna() if "non_finite" in table else pd.Series(dtype=object)
        for step, names in zip(lost.index.tolist(), lost, strict=True):
            told, are = ", ".join(_listed(names)), "were" if len(_listed(names)) > 1 else "was"
            found.append((step, f"step {step}: {told} {are} not finite"))
    told = [text for _, text in sorted(found, key=lambda one: one[0])]
    more = len(told) - MOST_TOLD
    return told[:MOST_TOLD] + ([f"… and {more} more"] if more > 0 else [])


def _run_part(run: Run, name: str) -> RunPart:
    tokens = run.late_tokens
    known = NO_TRACES if answers_alone(run) else None  # it has none to record
    return RunPart(
        name=name,
        verdict=verdict(run),
        problems=tuple(one for one in (*run.problems, *_skipped(run)) if one != known),
        facts=tuple(_facts(run)),
        config=yaml.safe_dump(run.config, allow_unicode=True, width=100) if run.config else "",
        data_report=tuple(_listed(run.config.get("data_report"))),
        difficulty=_records(by_difficulty(run, tokens)),
        tokens=_records(by_token(tokens)),
        words=_records(changed_words(run)),
    )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _listed(value: Any) -> list[str]:
    """Texts of what should be a list, in a file that anyone may have written."""
    return [str(one) for one in (value if isinstance(value, list) else [value] if value else [])]


def _named(value: Any) -> str:
    """``torch 2.13, …``; the same care."""
    pairs = value.items() if isinstance(value, dict) else []
    return ", ".join(f"{key} {inner}" for key, inner in pairs)


def _setting(run: Run, key: str) -> Any:
    inner = run.config.get("config") or {}
    return run.config.get(key) or inner.get(key)


def _facts(run: Run) -> list[tuple[str, str]]:
    steps = int(run.metrics.index.max()) if len(run.metrics) else 0
    asked = _setting(run, "max_steps")
    seconds = run.column("step_seconds").sum()
    facts = [
        ("objective", _setting(run, "preset")),
        ("model", _setting(run, "model")),
        ("data", _setting(run, "data")),
        ("steps", f"{steps} of {asked}" if isinstance(asked, int) and asked > 0 else steps),
        ("seed", run.config.get("seed")),
        ("traces recorded", f"{run.traces.num_rows:,}"),
        ("time in steps", f"{seconds:,.0f} s" if seconds else None),
        ("updates skipped", len(run.quarantine.index.unique()) or None),
        *((key, _named(run.config.get(key))) for key in ("machine", "versions")),
        ("hash of the data", run.config.get("data_hash")),
        ("changed on resume", "; ".join(_listed(run.config.get("changed_on_resume")))),
        ("folder", run.path),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _numbers(name: str, runs: Sequence[Run]) -> list[tuple[str, ...]]:
    rows = []
    for run, run_name in zip(runs, run_names(runs), strict=True):
        for series in CURVES[name].series:
            values = run.column(series.column)
            if not values.empty:
                label = series.label if len(runs) == 1 else f"{run_name}: {series.label}"
                ends = (values.iloc[0], values.iloc[-1], values.min(), values.max())
                rows.append((label, *(f"{value:.4g}" for value in ends)))
    return rows
