"""The figures, one by one: plotly figures of one run, or of several over each other.

``FIGURES`` says what each shows; a page (page.py) and a notebook get the same.
"""

import colorsys
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
    explains: str
    columns: tuple[str, ...]
    log: bool = False


def _curves(title: str, explains: str, columns: str, log: bool = False) -> Curves:
    return Curves(title, explains, tuple(columns.split()), log)


def _alone(name: str, log: bool = False) -> Curves:
    """A metric by itself, in its own words."""
    metric = METRICS[name]
    return Curves(f"{metric.label[0].upper()}{metric.label[1:]}", metric.sentence, (name,), log)


#: The curves in their order on a page.
CURVES = {
    "accuracy": _curves(
        "Accuracy on held-out questions",
        "Right answers after a sampled trace and after none; bars are 95 % intervals.",
        "eval_accuracy eval_accuracy_no_think",
    ),
    "reward": _curves(
        "Reward",
        "What traces are worth, beside what an empty one is.",
        "reward reward_baseline",
    ),
    "kinds": _curves(
        "Reward by kind of answer token",
        "Of the reward, and of its spread within groups, which is all that tells traces apart. The "
        "rest is the answer's own. Above a half, traces are judged by their format.",
        "reward_share_end reward_share_space spread_share_end spread_share_space",
    ),
    "uplift": _curves(
        "Uplift",
        "How much likelier a reference token is after a trace than after none: above 0, it helps.",
        "uplift clean_uplift eval_uplift",
    ),
    "answer_logp": _curves(
        "Log-probability of the reference answer",
        "Both should rise; if only the lower one falls, uplift is a worse start.",
        "answer_logp answer_logp_no_think",
    ),
    "specificity": _curves(
        "Specificity",
        "How much better a question's own trace does than another question's; bars are two "
        "standard errors.",
        "specificity",
    ),
    "dependence": _alone("trace_dependence"),
    "gains": _curves(
        "Gain by difficulty",
        "The same by how probable the answer's token is without thinking: under 0.1, under 0.5, "
        "and the rest.",
        "gain_hard gain_middle gain_easy",
    ),
    "leakage": _curves(
        "Leakage",
        "Answer tokens that stand in the trace already, and answers that stand there whole.",
        "leakage restated",
    ),
    "length": _curves("Trace length", "With the closing tag.", "trace_length eval_trace_length"),
    "shares": _curves(
        "Shares of traces",
        "Closed by the tag, empty, and better than no trace.",
        "closed empty helped",
    ),
    "entropy": _alone("trace_entropy"),
    "distinct": _curves(
        "Variety",
        "Different traces in a group, and groups whose rewards are all equal: nothing is learned "
        "from those.",
        "distinct flat_groups",
    ),
    "sampled": _curves(
        "Sampled answers in training",
        "Of presets that sample an answer after each trace.",
        "sampled_correct sampled_complete",
    ),
    "loss": _curves(
        "Loss terms",
        "Not a measure of progress: advantages are centred, so near 0 is normal.",
        "loss_trace loss_answer loss_format loss_kl",
    ),
    "gradient": _alone("grad_norm", log=True),
    "guard": _curves("Collapse guard", "What the guard said of each step.", COLLAPSE),
    "seconds": _curves(
        "Time of a step",
        "Seconds of each stage: a run that slows down rises.",
        " ".join(f"{name}_seconds" for name in ("step", *STAGES, "other")),
    ),
}
#: Name: title, explanation.
FIGURES = {
    **{name: (curves.title, curves.explains) for name, curves in CURVES.items()},
    "places": ("Uplift along the answer", "Mean over its first tenth of tokens, its second, …"),
}
#: A longer curve is drawn as means over equally many steps.
MOST_POINTS = 1000
#: Readable on white and on black, and apart for the colour-blind.
COLOURS = ("#2f7fd1", "#d1620a", "#0f9470", "#a45bc8", "#a8810f", "#c2477f", "#5f7a8a", "#8c6d4f")
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
    """``COLOURS``, then more of about the same lightness, a golden angle of hue apart."""
    if i < len(COLOURS):
        return COLOURS[i]
    light = np.array(colorsys.hsv_to_rgb(i * 0.381966 % 1, 1, 1))  # linear light
    now, wanted = light @ (0.2126, 0.7152, 0.0722), (0.14, 0.26)[i % 2]
    mixed = light * wanted / now if now > wanted else 1 - (1 - light) * (1 - wanted) / (1 - now)
    return "#" + "".join(f"{round(255 * x ** (1 / 2.2)):02x}" for x in mixed)


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


def shown_columns(curves: Curves, run: Run) -> list[tuple[str, pd.Series]]:
    """The columns that a run has, but for stages that took no time, and for clean uplift where
    nothing was ever copied: it is uplift on a sample."""
    idle = {"clean_uplift"} if not run.column("leakage").any() else set[str]()
    known = [(name, run.column(name)) for name in curves.columns if name not in idle]
    return [(n, v) for n, v in known if len(v) and (v.any() or not n.endswith("_seconds"))]


def _lines(curves: Curves, runs: Sequence[Run]) -> go.Figure:
    drawn, alone = go.Figure(), len(runs) == 1
    for i, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        for column, values in shown_columns(curves, run):
            j, label = curves.columns.index(column), label_of(column)
            whole = _shown(name) if len(curves.columns) == 1 else f"{_shown(name)}: {label}"
            drawn.add_trace(
                go.Scatter(
                    **_line(run, column, values),
                    name=label if alone else whole,
                    meta=[name, label],
                    line={
                        "color": colour(j if alone else i),
                        "dash": "solid" if alone else DASHES[j],
                    },
                )
            )
    drawn.update_xaxes(title="step")
    unit = metric_of(curves.columns[0]).unit
    drawn.update_yaxes(title=unit, type="log" if curves.log else "linear")
    if COLLAPSE in curves.columns:
        drawn.update_yaxes(tickvals=[0, 1, 2], ticktext=STATES, range=[-0.2, 2.2])
    return drawn


def _shown(name: str) -> str:
    """The name of a run as plotly shows it, which reads tags."""
    return html.escape(name, quote=False)


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
    ends = {
        "array": run.column(f"{column}_high") - values,
        "arrayminus": values - run.column(f"{column}_low"),
    }
    errors = 2 * run.column(f"{column}_se")
    known = {"array": errors} if len(errors) else {k: e for k, e in ends.items() if e.notna().any()}
    if known and len(drawn) == len(values):
        sizes = {key: end.reindex(values.index).fillna(0) for key, end in known.items()}
        line["error_y"] = {
            "type": "data",
            "thickness": 1,
            **{key: [float(f"{x:.4g}") for x in size] for key, size in sizes.items()},
        }
    return line


def _places(runs: Sequence[Run]) -> go.Figure:
    drawn = go.Figure()
    for i, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        table = by_place(run.late_tokens)
        table = table[np.isfinite(table["uplift"])]
        if len(table):
            bars = {"x": table["tenth"].tolist(), "y": [round(y, 5) for y in table["uplift"]]}
            looks = {"name": _shown(name), "meta": [name, ""], "marker_color": colour(i)}
            drawn.add_trace(go.Bar(**bars, **looks))
    drawn.update_xaxes(title="tenth of the answer", tickvals=list(range(1, TENTHS + 1)))
    drawn.update_yaxes(title=METRICS["uplift"].unit)
    return drawn
