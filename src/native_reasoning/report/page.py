"""One self-contained page about a run, or about several: ``build``.

Everything is inside: plotly's code, the figures, the traces. The page's own policy
(Content-Security-Policy) forbids it any request and any script but ours; text that models or files
wrote is only ever set as text.
"""

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from plotly.offline import get_plotlyjs

from native_reasoning import __version__
from native_reasoning.config.errors import printable
from native_reasoning.records.folder import QUARANTINE
from native_reasoning.report import comparison as compared
from native_reasoning.report.figures import (
    COLOURS,
    CURVES,
    FIGURES,
    figure,
    label_of,
    metric_of,
    shown_columns,
)
from native_reasoning.report.gains import by_difficulty, by_token, changed_words
from native_reasoning.report.runs import NO_TRACES, Run, run_names
from native_reasoning.report.verdict import answers_alone, nought, verdict

#: Bytes of the traces of a page, at most; those that do not fit are left out, and it says so.
MOST_BYTES = 12_000_000
#: Bytes of their text and numbers above which groups are left out before compression.
MOST_TEXT = 100_000_000
#: What all traces of a group have in common.
OF_GROUP = ["step", "row_id", "prompt", "answer", "answer_tokens", "baseline_logps"]
#: Steps that went wrong, told one by one.
MOST_TOLD = 10
SCRIPTS = ("data.js", "curves.js", "inspector.js", "page.js")


def build(
    runs: Sequence[Run], *, refresh: int = 0, comparison: Mapping[str, Any] | None = None
) -> bytes:
    """The page, UTF-8, with a ``comparison`` of the runs (``comparison.compare``) on top; it loads
    itself again every ``refresh`` seconds, 0 for never."""
    names = run_names(runs)
    figures = figure_parts(runs)
    figure_data = compressed({part["name"]: part.pop("drawn") for part in figures})
    traces, kept, there = packed(runs, MOST_BYTES)
    values = {
        "title": ", ".join(names if comparison is None else comparison["arms"]),
        "generator": f"native-reasoning {__version__}",
        "refresh": refresh,
        "warnings": warnings(runs),
        "comparison": None if comparison is None else comparison_part(comparison),
        "runs": [run_part(run, name) for run, name in zip(runs, names, strict=True)],
        "figures": figures,
        "colours": COLOURS,
        "kept": _kept(kept, there),
        "figure_data": figure_data,
        "trace_data": traces,
        "plotly": _plotly(),
        "css": _asset("page.css"),
        "script": "\n".join(map(_asset, SCRIPTS)),
        "nonce": hashlib.sha256(figure_data.encode()).hexdigest()[:24],
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = lambda text: printable(str(text))
    environment.filters["nought"] = nought
    page = environment.from_string(_asset("page.html")).render(values)
    return page.encode("utf-8", "replace")


def comparison_part(result: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison on a page: ``headline``, ``state``, ``header``, ``rows`` and ``notes``."""
    header, rows = compared.table(result)
    notes = [compared.IN_BRACKETS, *compared.lines(result)]
    return {**result["verdict"], "header": header, "rows": rows, "notes": notes}


def _kept(kept: int, there: int) -> str:
    if not there:
        return "No traces were recorded."
    if kept == there:
        return f"All {there:,} recorded traces."
    return (
        f"{kept:,} of {there:,} recorded traces, whole groups taken evenly over the run: the rest "
        "would make this page too large. All of them are in traces/*.parquet."
    )


def _asset(name: str) -> str:
    return (files("native_reasoning.report") / "assets" / name).read_text("utf-8")


@cache
def _plotly() -> str:
    return _zipped(get_plotlyjs(), 9)


def compressed(value: Any) -> str:
    """Base64 of gzip of JSON; the same value gives the same text."""
    return _zipped(json.dumps(value, separators=(",", ":"), allow_nan=False), 6)


def _zipped(text: str, level: int) -> str:
    return base64.b64encode(gzip.compress(text.encode(), level, mtime=0)).decode("ascii")


# -- Figures ---------------------------------------------------------------------------------------


def figure_parts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every figure for which the runs have data: ``name``, ``title``, ``explains``, what plotly
    draws, and the same in numbers: ``rows`` of label, first, last, lowest, highest value and the
    healthy range."""
    parts = []
    for name, (title, explains) in FIGURES.items():
        drawn: Any = figure(name, *runs).to_plotly_json()
        if drawn["data"]:
            for ours in ("template", "title"):
                drawn["layout"].pop(ours, None)
            rows = _numbers(name, runs) if name in CURVES else []
            parts.append(
                {"name": name, "title": title, "explains": explains, "drawn": drawn, "rows": rows}
            )
    return parts


def _numbers(name: str, runs: Sequence[Run]) -> list[tuple[str, ...]]:
    rows = []
    for run, run_name in zip(runs, run_names(runs), strict=True):
        for column, values in shown_columns(CURVES[name], run):
            label = label_of(column)
            named = label if len(runs) == 1 else f"{run_name}: {label}"
            ends = (values.iloc[0], values.iloc[-1], values.min(), values.max())
            numbers = (f"{value:.4g}" for value in ends)
            rows.append((named, *numbers, metric_of(column).healthy))
    return rows


# -- Runs ------------------------------------------------------------------------------------------


def run_part(run: Run, name: str) -> dict[str, Any]:
    """One run on a page. Tables are lists of rows; ``problems`` are what is missing, and steps that
    went wrong."""
    tokens = run.late_tokens
    known = NO_TRACES if answers_alone(run) else None  # it has none to record
    return {
        "name": name,
        "verdict": verdict(run),
        "problems": [one for one in (*run.problems, *_skipped(run)) if one != known],
        "facts": _facts(run),
        "config": yaml.safe_dump(run.config, allow_unicode=True, width=100) if run.config else "",
        "data_report": run.config.get("data_report", []),
        "difficulty": by_difficulty(run, tokens).to_dict("records"),
        "tokens": by_token(tokens).to_dict("records"),
        "words": changed_words(run).to_dict("records"),
    }


def _skipped(run: Run) -> list[str]:
    """Updates that were skipped and numbers that were not finite, a sentence each."""
    found = []
    if len(skipped := run.quarantine.index.unique()):
        found.append(f"updates were skipped {_at(skipped)}: their rows are in {QUARANTINE}")
    for table in (run.metrics, run.evaluations):
        if "non_finite" in table:
            lost = table["non_finite"].dropna()
            names = sorted({name for listed in lost for name in listed})
            found.append(f"not finite {_at(lost.index)}: {', '.join(names)}")
    return found


def _at(steps: pd.Index) -> str:
    """``at steps 3, 5 and 12 more``."""
    first = ", ".join(map(str, steps[:MOST_TOLD]))
    more = f" and {len(steps) - MOST_TOLD} more" if len(steps) > MOST_TOLD else ""
    return f"at step{'s' if len(steps) > 1 else ''} {first}{more}"


def _setting(run: Run, key: str) -> Any:
    return run.config.get(key) or run.config.get("config", {}).get(key)


def _facts(run: Run) -> list[tuple[str, str]]:
    steps = int(run.metrics.index.max()) if len(run.metrics) else 0
    asked = _setting(run, "max_steps")
    seconds = run.column("step_seconds").sum()
    kinds = {name: run.config.get(name, {}).items() for name in ("machine", "versions")}
    facts = [
        ("objective", _setting(run, "preset")),
        ("model", _setting(run, "model")),
        ("data", _setting(run, "data")),
        ("steps", f"{steps} of {asked}" if isinstance(asked, int) and asked > 0 else steps),
        ("seed", run.config.get("seed")),
        ("traces recorded", f"{run.traces.num_rows:,}"),
        ("time in steps", f"{seconds:,.0f} s" if seconds else None),
        ("updates skipped", len(run.quarantine.index.unique()) or None),
        *((name, ", ".join(f"{k} {value}" for k, value in kind)) for name, kind in kinds.items()),
        ("hash of the data", run.config.get("data_hash")),
        ("changed on resume", "; ".join(run.config.get("changed_on_resume", []))),
        ("folder", run.path),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


# -- Comparisons -----------------------------------------------------------------------------------


def warnings(runs: Sequence[Run]) -> list[str]:
    """What makes a comparison of the runs unfair."""
    found = []
    for what, value_of in (
        ("trained on different questions: their levels", lambda run: _setting(run, "data_hash")),
        ("begun from different models: their levels", lambda run: _setting(run, "model")),
        ("evaluated on different held-out questions: what was measured there", _held_out),
    ):
        groups: dict[object, list[str]] = {}
        for name, run in zip(run_names(runs), runs, strict=True):
            if value := value_of(run):
                groups.setdefault(value, []).append(name)
        if len(groups) > 1:
            told = " · ".join(map(", ".join, groups.values()))
            found.append(f"These runs were {what} cannot be compared ({told}).")
    if len({preset for run in runs if (preset := _setting(run, "preset"))}) > 1:
        found.append(
            "Rewards of different presets are on different scales: compare accuracy and uplift."
        )
    return found


def _held_out(run: Run) -> tuple[object, ...]:
    """Number and texts of the questions of the last evaluation; () if there was none."""
    newest = max(run.held_out["step"].to_pylist(), default=0)
    last = run.held_out.filter(pc.field("step") == newest)
    texts = zip(last["prompt"].to_pylist(), last["answer"].to_pylist(), strict=True)
    asked = run.column("eval_questions")
    return (asked.iloc[-1], frozenset(texts)) if len(asked) else ()


# -- Traces ----------------------------------------------------------------------------------------


def packed(runs: Sequence[Run], limit: int) -> tuple[str, int, int]:
    """Base64 of the compressed traces of all runs (a question's text once, numbers as whole
    thousandths), in at most ``limit`` bytes; how many traces there are in it, and how many there
    were. Where they do not fit, whole groups are left out, evenly over the run, all if need be::

        {"runs": [{"name": "first", "sets": [{
            "label": "training",
            "questions": [["how many?", "4", ["4", "<eos>"]], …],       prompt, answer, its tokens
            "groups": [[step, question, row_id, traces], …],            sorted by step and row
            "b": [[-2304, 0], …],                                       a group's b, nats / 1000
            "traces": ["2 and 2", …], "said": ["4", …],                 in the order of the groups
            "k": […], "length": […], "ends": […],                       how a trace ended, below
            "reward": […], "base": […], "advantage": […],               null where there is none
            "right": […], "right_no_think": […], "said_no_think": […],  held-out questions alone
            "l": [[-361, 0], …]                                         one entry a trace
        }]}]}

    ``ends``: 0 cut, 1 closed by the tag, 2 ended by an end-of-turn token, 3 not closed (of held-out
    traces it is not recorded how).
    """
    order = [(name, "ascending") for name in ("step", "row_id", "k")]
    tables = [
        {"training": run.traces.sort_by(order), "held-out": run.held_out.sort_by(order)}
        for run in runs
    ]
    every = [table for sets in tables for table in sets.values()]
    texts = ["trace", "sampled_answer", "answer_logps"]
    share = min(1.0, MOST_TEXT / max(sum(table.select(texts).nbytes for table in every), 1))
    while True:
        sets = [
            [_set(label, _thinned(table, share)) for label, table in of_run.items()]
            for of_run in tables
        ]
        carried = [
            {"name": name, "sets": [one for one in found if one["traces"]]}
            for name, found in zip(run_names(runs), sets, strict=True)
        ]
        blob = compressed({"runs": carried})
        kept = sum(len(one["traces"]) for found in sets for one in found)
        if len(blob) <= limit or not kept:
            return blob, kept, sum(table.num_rows for table in every)
        share *= 0.95 * max(limit, 0) / len(blob)


def _groups(table: pa.Table) -> np.ndarray:
    """The number of each trace's group, in a sorted table: 0, 0, 1, …"""
    keys = ["step", "row_id"]
    return table.select(keys).to_pandas().groupby(keys).ngroup().to_numpy()


def _thinned(table: pa.Table, share: float) -> pa.Table:
    """A share of the groups of a sorted table, evenly over the run."""
    groups = _groups(table)
    count = groups.max(initial=-1) + 1
    kept = np.linspace(0, count - 1, math.floor(count * share)).round()
    return table.filter(pa.array(np.isin(groups, kept)))


def _set(label: str, table: pa.Table) -> dict[str, Any]:
    """What the page carries of a sorted table."""
    _, starts, counts = np.unique(_groups(table), return_index=True, return_counts=True)
    of_group = table.select(OF_GROUP).take(starts).to_pylist()
    known = {n: table[n].to_pylist() for n in table.column_names if n not in OF_GROUP}
    questions: dict[tuple[Any, ...], int] = {}
    groups = []
    for row, count in zip(of_group, counts.tolist(), strict=True):
        text = (row["prompt"], row["answer"], tuple(row["answer_tokens"]))
        question = questions.setdefault(text, len(questions))
        groups.append([row["step"], question, row["row_id"], count])
    not_closed = [2 if ended else 0 for ended in known.get("ended", [])] or [3] * table.num_rows
    return {
        "label": label,
        "questions": [list(question) for question in questions],
        "groups": groups,
        "b": _thousandths([row["baseline_logps"] for row in of_group]),
        "traces": known["trace"],
        "said": known["sampled_answer"],
        "k": known["k"],
        "length": known["length"],
        "ends": [
            1 if closed else end for closed, end in zip(known["closed"], not_closed, strict=True)
        ],
        "reward": _short(known.get("reward", [])),
        "base": _short(known.get("baseline_reward", [])),
        "advantage": _short(known.get("advantage", [])),
        "right": _short(known.get("correct", [])),
        "right_no_think": _short(known.get("correct_no_think", [])),
        "said_no_think": known.get("answer_no_think", []),
        "l": _thousandths(known["answer_logps"]),
    }


def _thousandths(lists: Sequence[Sequence[float]]) -> list[list[int | None]]:
    """Nats as whole thousandths; None for what is not finite."""
    return [[round(1000 * x) if math.isfinite(x) else None for x in row] for row in lists]


def _short(values: Sequence[float]) -> list[float | None]:
    """Four digits of each; None for what is not finite."""
    return [float(f"{x:.4g}") if math.isfinite(x) else None for x in values]
