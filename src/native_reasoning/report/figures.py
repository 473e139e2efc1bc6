"""The figures, one by one: plotly figures of one run, or of several over each other.

``FIGURES`` says what each shows; a page (page.py) and a notebook get the same.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from native_reasoning.errors import ConfigError, did_you_mean
from native_reasoning.names import COLLAPSE, STAGES, STATES
from native_reasoning.report.gains import TENTHS, by_place, late_tokens
from native_reasoning.runs import Run, run_names

#: A longer curve is drawn as means over equally many steps.
MOST_POINTS = 1000
#: Readable on white and on black, and apart for the colour-blind.
COLOURS = ("#2f7fd1", "#d1620a", "#0f9470", "#a45bc8", "#a8810f", "#c2477f", "#5f7a8a", "#8c6d4f")
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Series:
    """A column of a run's metrics, or of its evaluations if it begins with ``eval_``. ``spread``
    names what is drawn around it: "interval" (its ``_low`` and ``_high``) or "error" (two of its
    ``_se``)."""

    column: str
    label: str
    spread: str = ""


@dataclass(frozen=True)
class Curves:
    """A figure over optimiser steps. ``explains`` is one sentence for people."""

    title: str
    unit: str
    explains: str
    series: tuple[Series, ...]
    log: bool = False


CURVES = {
    "accuracy": Curves(
        "Accuracy on held-out questions",
        "share",
        "Right answers after a sampled trace and after none; bars are 95 % intervals.",
        (
            Series("eval_accuracy", "with thinking", "interval"),
            Series("eval_accuracy_no_think", "without", "interval"),
        ),
    ),
    "reward": Curves(
        "Reward",
        "reward",
        "What traces are worth, beside what an empty one is.",
        (Series("reward", "with a trace"), Series("reward_baseline", "without")),
    ),
    "uplift": Curves(
        "Uplift",
        "nats per token",
        "How much likelier a reference token is after a trace than after none: above 0, it helps.",
        (
            Series("uplift", "training questions"),
            Series("clean_uplift", "tokens not copied from the trace"),
            Series("eval_uplift", "held-out questions", "interval"),
        ),
    ),
    "answer_logp": Curves(
        "Log-probability of the reference answer",
        "nats per token",
        "Both should rise; if only the lower one falls, uplift is a worse start.",
        (Series("answer_logp", "with a trace"), Series("answer_logp_no_think", "without")),
    ),
    "specificity": Curves(
        "Specificity",
        "nats per token",
        "How much better a question's own trace does than another question's; bars are two "
        "standard errors.",
        (Series("specificity", "specificity", "error"),),
    ),
    "dependence": Curves(
        "Trace dependence",
        "nats per trace token",
        "How much likelier a trace is after its own question than after another.",
        (Series("trace_dependence", "trace dependence"),),
    ),
    "gains": Curves(
        "Gain by difficulty",
        "nats per token",
        "The same by how probable the answer's token is without thinking: under 0.1, under 0.5, "
        "and the rest.",
        (
            Series("gain_hard", "hard tokens"),
            Series("gain_middle", "middle"),
            Series("gain_easy", "easy"),
        ),
    ),
    "leakage": Curves(
        "Leakage",
        "share",
        "Answer tokens that stand in the trace already, and answers that stand there whole.",
        (Series("leakage", "tokens"), Series("restated", "whole answers")),
    ),
    "length": Curves(
        "Trace length",
        "tokens",
        "With the closing tag.",
        (Series("trace_length", "training"), Series("eval_trace_length", "held-out", "interval")),
    ),
    "shares": Curves(
        "Shares of traces",
        "share",
        "Closed by the tag, empty, and better than no trace.",
        (Series("closed", "closed"), Series("empty", "empty"), Series("helped", "helped")),
    ),
    "entropy": Curves(
        "Trace entropy",
        "nats per token",
        "How undecided the model is while it thinks.",
        (Series("trace_entropy", "entropy"),),
    ),
    "distinct": Curves(
        "Variety",
        "share",
        "Different traces in a group, and groups whose rewards are all equal: nothing is learned "
        "from those.",
        (Series("distinct", "distinct traces"), Series("flat_groups", "flat groups")),
    ),
    "sampled": Curves(
        "Sampled answers in training",
        "share",
        "Of presets that sample an answer after each trace.",
        (Series("sampled_correct", "right"), Series("sampled_complete", "in the right format")),
    ),
    "loss": Curves(
        "Loss terms",
        "loss",
        "Not a measure of progress: advantages are centred, so near 0 is normal.",
        (
            Series("loss_trace", "trace"),
            Series("loss_answer", "answer"),
            Series("loss_format", "format"),
            Series("loss_kl", "KL"),
        ),
    ),
    "gradient": Curves(
        "Gradient norm", "norm", "Before clipping.", (Series("grad_norm", "gradient norm"),), True
    ),
    "guard": Curves(
        "Collapse guard",
        "",
        "What the guard said of each step.",
        (Series("collapse_state", "state"),),
    ),
}
#: Name: title, explanation. All but the curves are drawn by a function of their own.
FIGURES = {
    **{name: (curves.title, curves.explains) for name, curves in CURVES.items()},
    "places": ("Uplift along the answer", "Mean over its first tenth of tokens, its second, …"),
    "time": ("Time of a step", "Median seconds of each stage."),
}


def figure(name: str, *runs: Run) -> go.Figure:
    """One of ``FIGURES``, of one run or more; without data where they have none.

    Raises ConfigError for a name that is none.
    """
    if name not in FIGURES:
        raise ConfigError(
            f"there is no figure {name!r}{did_you_mean(name, FIGURES)}",
            why="the figures have names",
            fix=f"one of: {', '.join(FIGURES)}",
        )
    names = [html.escape(name, quote=False) for name in run_names(runs)]  # plotly reads tags
    drawn = {"places": _places, "time": _time}.get(name)
    found = drawn(runs, names) if drawn else _curves(CURVES[name], runs, names)
    found.update_layout(
        title=FIGURES[name][0], hovermode="x unified", margin={"l": 56, "r": 12, "t": 40, "b": 44}
    )
    return found


def thinned(values: pd.Series) -> pd.Series:
    """At most ``MOST_POINTS`` means over equally many steps, each at its middle step; of what the
    guard said the worst, for a mean of states is none."""
    if len(values) <= MOST_POINTS:
        return values
    part = np.arange(len(values)) * MOST_POINTS // len(values)
    steps = pd.Series(values.index.to_numpy(float)).groupby(part).mean().round().astype(int)
    parts = values.groupby(part)
    kept = parts.max() if values.name == COLLAPSE else parts.mean()
    return pd.Series(kept.to_numpy(), index=steps.to_numpy(), name=values.name)


def _curves(curves: Curves, runs: Sequence[Run], names: Sequence[str]) -> go.Figure:
    found = go.Figure()
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        for j, series in enumerate(curves.series):
            values = run.column(series.column)
            if not values.empty and not (series.column == "clean_uplift" and _same(run)):
                alone = len(runs) == 1
                found.add_trace(
                    go.Scatter(
                        **_line(run, series, values),
                        name=series.label if alone else _label(curves, series, name),
                        meta=[name, series.label],
                        line={
                            "color": COLOURS[(j if alone else i) % len(COLOURS)],
                            "dash": "solid" if alone else DASHES[j % len(DASHES)],
                        },
                    )
                )
    found.update_xaxes(title="step")
    found.update_yaxes(title=curves.unit, type="log" if curves.log else "linear")
    if curves is CURVES["guard"]:
        found.update_yaxes(tickvals=[0, 1, 2], ticktext=STATES, range=[-0.2, 2.2])
    return found


def _label(curves: Curves, series: Series, run: str) -> str:
    return run if len(curves.series) == 1 else f"{run}: {series.label}"


def _same(run: Run) -> bool:
    """Whether nothing was ever copied: clean uplift is then uplift on a sample."""
    return run.column("leakage").abs().sum() == 0


def _line(run: Run, series: Series, values: pd.Series) -> dict[str, object]:
    drawn = thinned(values)
    marks = series.column.startswith("eval_") or len(drawn) <= 30
    line: dict[str, object] = {
        "x": drawn.index.tolist(),
        "y": [float(f"{value:.5g}") for value in drawn],
        "mode": "lines+markers" if marks else "lines",
    }
    ends: dict[str, pd.Series] = {}
    if series.spread == "interval":
        high, low = (run.column(f"{series.column}_{end}") for end in ("high", "low"))
        ends = {"array": high - values, "arrayminus": values - low}
    if series.spread == "error":
        ends = {"array": 2 * run.column(f"{series.column}_se")}
    if ends and len(drawn) == len(values):
        sizes = {key: end.reindex(values.index).fillna(0) for key, end in ends.items()}
        line["error_y"] = {
            "type": "data",
            "thickness": 1,
            **{key: [float(f"{x:.4g}") for x in size] for key, size in sizes.items()},
        }
    return line


def _places(runs: Sequence[Run], names: Sequence[str]) -> go.Figure:
    found = go.Figure()
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        table = by_place(late_tokens(run))
        table = table[np.isfinite(table["uplift"])]
        if len(table):
            bars = {"x": table["tenth"].tolist(), "y": [round(y, 5) for y in table["uplift"]]}
            found.add_trace(
                go.Bar(**bars, name=name, meta=[name, ""], marker_color=COLOURS[i % len(COLOURS)])
            )
    found.update_xaxes(title="tenth of the answer", tickvals=list(range(1, TENTHS + 1)))
    found.update_yaxes(title="nats per token")
    return found


def _time(runs: Sequence[Run], names: Sequence[str]) -> go.Figure:
    found = go.Figure()
    for stage in (*STAGES, "other"):
        medians = []
        for run in runs:
            name = f"{stage}_seconds"
            known = run.timings[name].dropna() if name in run.timings else pd.Series(dtype=float)
            medians.append(round(float(known.median()), 5) if len(known) else 0.0)
        if any(medians):
            found.add_trace(go.Bar(y=list(names), x=medians, name=stage, orientation="h"))
    found.update_layout(barmode="stack", colorway=COLOURS)
    found.update_xaxes(title="seconds")
    return found
