"""One self-contained page about a run, or about several: ``build``.

Everything is inside: plotly's code, the figures, the traces. The page's own policy
(Content-Security-Policy) forbids it any request and any script but ours; text that models or files
wrote is only ever set as text.
"""

import base64
import gzip
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
import pyarrow.compute as pc
import yaml
from plotly.offline import get_plotlyjs

from native_reasoning import __version__
from native_reasoning.config.errors import printable
from native_reasoning.records.folder import QUARANTINE
from native_reasoning.report.figures import (
    COLOURS,
    CURVES,
    FIGURES,
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

#: Bytes of the traces of a page, at most; those that do not fit are left out, and it says so.
MOST_BYTES = 12_000_000
#: Steps that went wrong, told one by one.
MOST_TOLD = 10
SCRIPTS = ("data.js", "curves.js", "inspector.js", "page.js")


def build(runs: Sequence[Run], *, refresh: int = 0) -> bytes:
    """The page, UTF-8; it loads itself again every ``refresh`` seconds, 0 for never."""
    names = run_names(runs)
    figures = figure_parts(runs)
    figure_data = compressed({part["name"]: part.pop("drawn") for part in figures})
    traces, kept, there = packed(runs, MOST_BYTES)
    values = {
        "title": ", ".join(names),
        "generator": f"native-reasoning {__version__}",
        "refresh": refresh,
        "warnings": warnings(runs),
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
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode("ascii")


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
