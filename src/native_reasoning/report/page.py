"""One self-contained page about a run, or about several: ``build``.

Everything is inside: plotly's code, the figures, the traces. The page's own policy
(Content-Security-Policy) forbids it any request and any script but ours; text that models or files
wrote is only ever set as text.
"""

import base64
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
import pyarrow as pa
import yaml
from plotly.offline import get_plotlyjs

from native_reasoning import __version__
from native_reasoning.config.errors import printable
from native_reasoning.records.folder import QUARANTINE
from native_reasoning.report.figures import (
    CURVES,
    FIGURES,
    colour,
    figure,
    label_of,
    metric_of,
    shown_columns,
)
from native_reasoning.report.gains import by_difficulty, by_token
from native_reasoning.report.packed import compressed, packed
from native_reasoning.report.runs import NO_TRACES, Run, run_names
from native_reasoning.report.verdict import answers_alone, nought, verdict
from native_reasoning.report.wording import changed_words

GENERATOR = "native-reasoning"
#: By this a page is known again, near its beginning (page.html).
MARK = f'<meta name="generator" content="{GENERATOR} '
#: Bytes of a page, at most; traces that do not fit are left out, and it says so.
MOST_BYTES = 15_000_000
SCRIPTS = ("data.js", "curves.js", "inspector.js", "page.js")
#: Steps that went wrong, told one by one; characters of a setting in a sentence.
MOST_TOLD, LONG = 20, 40


def build(runs: Sequence[Run], *, watch: str = "", most_bytes: int = MOST_BYTES) -> bytes:
    """The page, UTF-8. ``watch`` is its version where a server refreshes it (watch.py)."""
    figures = figure_parts(runs)
    figure_data = compressed({part["name"]: part.pop("drawn") for part in figures})
    values = {
        "title": ", ".join(run_names(runs)),
        "generator": f"{GENERATOR} {__version__}",
        "watch": watch,
        "warnings": warnings(runs),
        "runs": [run_part(run, name) for run, name in zip(runs, run_names(runs), strict=True)],
        "figures": figures,
        "colours": [colour(i) for i in range(len(runs))],
        "figure_data": figure_data,
        "plotly": _plotly(),
        "css": _asset("page.css"),
        "script": "\n".join(map(_asset, SCRIPTS)),
    }
    values["nonce"] = hashlib.sha256(figure_data.encode()).hexdigest()[:24]
    without = _rendered({**values, "trace_data": "", "kept": ""})
    traces, kept, there = packed(runs, most_bytes - len(without) - 1000)
    return _rendered({**values, "trace_data": traces, "kept": _kept(kept, there)})


def _rendered(values: dict[str, object]) -> bytes:
    return _template().render(values).encode("utf-8", "replace")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = lambda text: printable(str(text))
    environment.filters["nought"] = nought
    return environment.from_string(_asset("page.html"))


def _kept(kept: int, there: int) -> str:
    if not there:
        return "No traces were recorded."
    if kept == there:
        return f"All {there:,} recorded traces."
    return (
        f"{kept:,} of {there:,} recorded traces, whole groups taken evenly over the run: the rest "
        "would make this page too large. All of them are in traces/*.parquet."
    )


@cache
def _asset(name: str) -> str:
    return (files("native_reasoning.report") / "assets" / name).read_text("utf-8")


@cache
def _plotly() -> str:
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode("ascii")


# -- Figures ---------------------------------------------------------------------------------------


def figure_parts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every figure for which the runs have data: ``name``, ``title``, ``explains``, what plotly
    draws, and the same in numbers: ``rows`` of label, first, last, lowest, highest value and the
    healthy range."""
    parts = []
    for name, (title, explains) in FIGURES.items():
        drawn = json.loads(str(figure(name, *runs).to_json()))
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
        "data_report": _listed(run.config.get("data_report")),
        "difficulty": by_difficulty(run, tokens).to_dict("records"),
        "tokens": by_token(tokens).to_dict("records"),
        "words": changed_words(run).to_dict("records"),
    }


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
        for step, value in zip(lost.index.tolist(), lost, strict=True):
            names = _listed(value)
            are = "were" if len(names) > 1 else "was"
            found.append((step, f"step {step}: {', '.join(names)} {are} not finite"))
    told = [text for _, text in sorted(found, key=lambda one: one[0])]
    more = len(told) - MOST_TOLD
    return told[:MOST_TOLD] + ([f"… and {more} more"] if more > 0 else [])


def _listed(value: Any) -> list[str]:
    """Texts of what should be a list, in a file that anyone may have written."""
    return [str(one) for one in (value if isinstance(value, list) else [value] if value else [])]


def _named(value: Any) -> str:
    """``torch 2.13, …``; the same care."""
    pairs = value.items() if isinstance(value, dict) else []
    return ", ".join(f"{key} {inner}" for key, inner in pairs)


def _setting(run: Run, key: str) -> Any:
    return run.config.get(key) or (run.config.get("config") or {}).get(key)


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


# -- Comparisons -----------------------------------------------------------------------------------


def warnings(runs: Sequence[Run]) -> list[str]:
    """What makes a comparison of the runs unfair."""
    names, found = run_names(runs), []
    for key, what in (
        ("data_hash", "trained on different questions"),
        ("model", "begun from different models"),
    ):
        groups: dict[str, list[str]] = {}
        for name, run in zip(names, runs, strict=True):
            groups.setdefault(str(_setting(run, key) or ""), []).append(name)
        if len(groups) > 1:
            told = " · ".join(
                f"{', '.join(group)} ({_short(key, value) or 'not recorded'})"
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


def _short(key: str, value: str) -> str:
    """A path is told by its end."""
    if key != "model" or len(value) <= LONG:
        return value[:LONG]
    return f"…{value[1 - LONG :]}"


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
