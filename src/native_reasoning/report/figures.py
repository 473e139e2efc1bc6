"""The figures, one by one: plotly figures of one run, or of several over each other.

``FIGURES`` says what each shows; a page (page.py) and a notebook get the same.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from native_reasoning.config.errors import ConfigError, did_you_mean
from native_reasoning.records.metrics import COLLAPSE, METRICS, STAGES, STATES, Metric
from native_reasoning.report.gains import TENTHS, by_place
from native_reasoning.report.runs import Run, run_names


@dataclass(frozen=True)
class Curves:
    """A figure over optimiser steps: columns of a run (``Run.column``), by name."""

    title: str
    columns: tuple[str, ...]
    explains: str
    log: bool = False


def _curves(title: str, columns: str, explains: str = "", log: bool = False) -> Curves:
    """Unless it is given, the explanation is what the metrics say of themselves."""
    names = tuple(columns.split())
    return Curves(title, names, explains or " ".join(METRICS[n].sentence for n in names), log)


#: The curves in their order on a page.
CURVES = {
    "accuracy": _curves(
        "Accuracy on held-out questions",
        "eval_accuracy eval_accuracy_no_think",
        "Right answers after a sampled trace and after none; bars are 95 % intervals.",
    ),
    "reward": _curves("Reward", "reward reward_baseline"),
    "entropy": _curves("Trace entropy", "trace_entropy"),
    "variety": _curves("Variety of traces", "distinct flat_groups narrow_groups"),
    "kinds": _curves(
        "Reward by kind of answer token",
        "reward_share_end reward_share_space spread_share_end spread_share_space",
        "What the end of the turn and white space have of it, and of its variance in a group. "
        "Above a half, traces are judged by their format.",
    ),
    "uplift": _curves(
        "Uplift",
        "uplift clean_uplift eval_uplift",
        "How much likelier a reference token is after a trace than after none: above 0, it helps.",
    ),
    "answer_logp": _curves(
        "Log-probability of the reference answer",
        "answer_logp answer_logp_no_think",
        "Both should rise; if only the lower one falls, uplift is a worse start.",
    ),
    "specificity": _curves(
        "Specificity",
        "specificity",
        "How much better a question's own trace does than another question's; bars are two "
        "standard errors.",
    ),
    "dependence": _curves("Trace dependence", "trace_dependence"),
    "gains": _curves(
        "Gain by difficulty",
        "gain_hard gain_middle gain_easy",
        "Specificity by how probable the answer's token is without thinking: under 0.1, under 0.5, "
        "and the rest.",
    ),
    "leakage": _curves("Leakage", "leakage restated"),
    "length": _curves("Trace length", "trace_length eval_trace_length", "With the closing tag."),
    "shares": _curves("Shares of traces", "closed empty helped"),
    "sampled": _curves("Sampled answers in training", "sampled_correct sampled_complete"),
    "loss": _curves(
        "Loss terms",
        "loss_trace loss_answer loss_format loss_kl",
        "Not a measure of progress: advantages are centred, so near 0 is normal.",
    ),
    "gradient": _curves("Gradient norm", "grad_norm", log=True),
    "guard": _curves("Collapse guard", COLLAPSE),
    "seconds": _curves(
        "Time of a step",
        " ".join(f"{name}_seconds" for name in ("step", *STAGES, "other")),
        "Seconds of each stage: a run that slows down rises.",
    ),
}
#: Name: title, explanation.
FIGURES = {
    **{name: (curves.title, curves.explains) for name, curves in CURVES.items()},
    "places": ("Uplift along the answer", "Mean over its first tenth of tokens, its second, …"),
}
#: A longer curve is drawn as means over equally many steps.
MOST_POINTS = 1000
#: Readable on white and on black, the first eight apart for the colour-blind.
COLOURS = (
    *("#2f7fd1", "#d1620a", "#0f9470", "#a45bc8", "#a8810f", "#c2477f", "#5f7a8a", "#8c6d4f"),
    *("#6b6bd6", "#d04545", "#3f8f3f", "#2a8fa8"),
)
DASHES = (
    *("solid", "dash", "dot", "dashdot", "longdash", "longdashdot"),
    *("2px 8px", "16px 4px", "12px 3px 3px 3px 3px 3px", "1px 2px"),
)


def metric_of(column: str) -> Metric:
    """What a column of a run is. ``answer_logp_no_think`` is written of evaluations alone."""
    return METRICS.get(column) or METRICS[f"eval_{column}"]


def label_of(column: str) -> str:
    """A metric's label, that of an evaluation apart from the same of training."""
    of_both = column.startswith("eval_") and column.removeprefix("eval_") in METRICS
    return metric_of(column).label + (", held-out" if of_both else "")


def figure(name: str, *runs: Run) -> go.Figure:
    """One of ``FIGURES`` as a plotly figure, of one run or more; without data where they have none.

    Raises ConfigError for a name that is none.
    """
    if name not in FIGURES:
        raise ConfigError(
            f"there is no figure {name!r}{did_you_mean(name, FIGURES)}",
            why="the figures have names",
            fix=f"one of: {', '.join(FIGURES)}",
        )
    drawn = _lines(CURVES[name], runs) if name in CURVES else _places(runs)
    drawn.update_layout(
        title=FIGURES[name][0], hovermode="x unified", margin={"l": 56, "r": 12, "t": 40, "b": 44}
    )
    return drawn


def colour(i: int) -> str:
    """That of the curve or run ``i``."""
    return COLOURS[i % len(COLOURS)]


def thinned(values: pd.Series) -> pd.Series:
    """At most ``MOST_POINTS`` means over equally many steps, each at its middle step; of what the
    guard said the worst, for a mean of states is none."""
    if len(values) <= MOST_POINTS:
        return values
    part = np.arange(len(values)) * MOST_POINTS // len(values)
    kept = values.groupby(part).agg("max" if values.name == COLLAPSE else "mean")
    steps = values.index.to_series().groupby(part).mean().round().astype(int)
    return kept.set_axis(steps.to_numpy())


def shown_columns(curves: Curves, run: Run) -> list[tuple[str, pd.Series]]:
    """The columns that a run has, but for stages that took no time, and for clean uplift where
    nothing was ever copied: it is uplift on a sample."""
    idle = {"clean_uplift"} if not run.column("leakage").any() else set[str]()
    known = [(name, run.column(name)) for name in curves.columns if name not in idle]
    return [(n, v) for n, v in known if len(v) and (v.any() or not n.endswith("_seconds"))]


def _lines(curves: Curves, runs: Sequence[Run]) -> go.Figure:
    drawn, alone = go.Figure(), len(runs) == 1
    for i, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        shown = html.escape(name, quote=False)  # plotly reads tags
        for column, values in shown_columns(curves, run):
            j, label = curves.columns.index(column), label_of(column)
            whole = shown if len(curves.columns) == 1 else f"{shown}: {label}"
            drawn.add_trace(
                go.Scatter(
                    **_line(run, column, values),
                    name=label if alone else whole,
                    meta=[name, label],
                    line={"color": colour(j), "dash": "solid"}
                    if alone
                    else {"color": colour(i), "dash": DASHES[j]},
                )
            )
    drawn.update_xaxes(title="step")
    unit = metric_of(curves.columns[0]).unit
    drawn.update_yaxes(title=unit, type="log" if curves.log else "linear")
    if COLLAPSE in curves.columns:
        drawn.update_yaxes(tickvals=[0, 1, 2], ticktext=STATES, range=[-0.2, 2.2])
    return drawn


def _line(run: Run, column: str, values: pd.Series) -> dict[str, object]:
    """The points, with an evaluation's interval or with two standard errors, where all points are
    there and a run has them."""
    drawn = thinned(values)
    marks = column.startswith("eval_") or len(drawn) <= 30
    line: dict[str, object] = {
        "x": drawn.index.tolist(),
        "y": [float(f"{value:.5g}") for value in drawn],
        "mode": "lines+markers" if marks else "lines",
    }
    errors = 2 * run.column(f"{column}_se")
    low, high = run.column(f"{column}_low"), run.column(f"{column}_high")
    ends = (
        {"array": errors} if len(errors) else {"array": high - values, "arrayminus": values - low}
    )
    if len(drawn) == len(values) and any(end.notna().any() for end in ends.values()):
        line["error_y"] = {"type": "data", "thickness": 1} | {
            key: [float(f"{size:.4g}") for size in end.reindex(values.index).fillna(0)]
            for key, end in ends.items()
        }
    return line


def _places(runs: Sequence[Run]) -> go.Figure:
    drawn = go.Figure()
    for i, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        table = by_place(run.late_tokens)
        table = table[np.isfinite(table["uplift"])]
        if len(table):
            bars = {"x": table["tenth"].tolist(), "y": [round(y, 5) for y in table["uplift"]]}
            looks = {
                "name": html.escape(name, quote=False),
                "meta": [name, ""],
                "marker_color": colour(i),
            }
            drawn.add_trace(go.Bar(**bars, **looks))
    drawn.update_xaxes(title="tenth of the answer", tickvals=list(range(1, TENTHS + 1)))
    drawn.update_yaxes(title=METRICS["uplift"].unit)
    return drawn
