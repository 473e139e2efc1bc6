"""The figures, one by one: plotly figures of one run, or of several over each other.

``FIGURES`` says what each shows; a page (page.py) and a notebook get the same.
"""

import colorsys
import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from native_reasoning.config.errors import ConfigError, did_you_mean
from native_reasoning.records.metrics import COLLAPSE, STAGES, STATES
from native_reasoning.report.curves import CURVES, Curves, Series
from native_reasoning.report.gains import TENTHS, by_place
from native_reasoning.report.runs import Run, run_names

#: A longer curve is drawn as means over equally many steps.
MOST_POINTS = 1000
#: Readable on white and on black, and apart for the colour-blind.
COLOURS = ("#2f7fd1", "#d1620a", "#0f9470", "#a45bc8", "#a8810f", "#c2477f", "#5f7a8a", "#8c6d4f")
DASHES = (
    *("solid", "dash", "dot", "dashdot", "longdash", "longdashdot"),
    *("2px 8px", "16px 4px", "12px 3px 3px 3px 3px 3px", "1px 2px"),
)
#: Name: title, explanation. All but the curves are drawn by a function of their own.
FIGURES = {
    **{name: (curves.title, curves.explains) for name, curves in CURVES.items()},
    "places": ("Uplift along the answer", "Mean over its first tenth of tokens, its second, …"),
    "time": ("Time of a step", "Median seconds of each stage."),
}


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
    names = run_names(runs)
    drawn = {"places": _places, "time": _time}.get(name)
    found = drawn(runs, names) if drawn else _curves(CURVES[name], runs, names)
    found.update_layout(
        title=FIGURES[name][0], hovermode="x unified", margin={"l": 56, "r": 12, "t": 40, "b": 44}
    )
    return found


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


def _curves(curves: Curves, runs: Sequence[Run], names: Sequence[str]) -> go.Figure:
    found = go.Figure()
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        for j, series in enumerate(curves.series):
            values = run.column(series.column)
            if not values.empty and not _idle(run, series.column, values):
                alone = len(runs) == 1
                found.add_trace(
                    go.Scatter(
                        **_line(run, series, values),
                        name=series.label if alone else _label(curves, series, _shown(name)),
                        meta=[name, series.label],
                        line={
                            "color": colour(j if alone else i),
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


def _shown(name: str) -> str:
    """The name of a run as plotly shows it, which reads tags."""
    return html.escape(name, quote=False)


def _idle(run: Run, column: str, values: pd.Series) -> bool:
    """Stages that took no time; clean uplift where nothing was ever copied: uplift on a sample."""
    if column == "clean_uplift":
        return run.column("leakage").abs().sum() == 0
    return column.endswith("_seconds") and not values.any()


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
        table = by_place(run.late_tokens)
        table = table[np.isfinite(table["uplift"])]
        if len(table):
            bars = {"x": table["tenth"].tolist(), "y": [round(y, 5) for y in table["uplift"]]}
            looks = {"name": _shown(name), "meta": [name, ""], "marker_color": colour(i)}
            found.add_trace(go.Bar(**bars, **looks))
    found.update_xaxes(title="tenth of the answer", tickvals=list(range(1, TENTHS + 1)))
    found.update_yaxes(title="nats per token")
    return found


def _time(runs: Sequence[Run], names: Sequence[str]) -> go.Figure:
    found = go.Figure()
    for stage in (*STAGES, "other"):
        known = [run.column(f"{stage}_seconds") for run in runs]
        medians = [round(float(one.median()), 5) if len(one) else 0.0 for one in known]
        if any(medians):
            bars = {"y": [_shown(name) for name in names], "x": medians}
            found.add_trace(go.Bar(**bars, name=stage, orientation="h"))
    colours = [colour(i) for i in range(len(STAGES) + 1)]
    found.update_layout(barmode="stack", colorway=colours)
    found.update_xaxes(title="seconds")
    return found
