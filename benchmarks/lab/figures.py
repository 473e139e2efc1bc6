"""The lab's figures: ``python benchmarks/lab/figures.py``, from the results beside this file.

Needs playwright and a ``chromium`` on the path (pictures.py). Writes docs/images/lab-*.png.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

sys.path.insert(0, str(Path(__file__).parents[1]))
import pictures

from lab.measure import POINT, state_of
from lab.runner import read_results

HERE = Path(__file__).parent
COLOURS = {"learnt": "#0f9470", "collapsed": "#c2477f", "neither": "#a8810f"}
NAMED = {"collapsed": "ends with empty traces"}
REWARDS = {
    "nrt-ws": "hard tokens weigh most",
    "nrt-am": "mean probability",
    "nrt-gm": "geometric mean",
    "nrt-logp": "log-probability",
}
Result = dict[str, Any]


def style_shift() -> go.Figure:
    """How probable the hard digit is while each reward trains, without a clip and with it."""
    results = read_results(HERE, "style")
    forms = {"no clip (as released)": "-released", "clip at the empty trace": ""}
    cells = [
        (said, [r for r in results if r["run"]["preset"] == preset + ending])
        for ending in forms.values()
        for preset, said in REWARDS.items()
    ]
    titles = [
        f"<b>{said}</b><br>{sum(state_of(r) == 'learnt' for r in runs)} of {len(runs)} runs learn"
        for said, runs in cells
    ]
    figure = make_subplots(
        2, 4, subplot_titles=titles, shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.16
    )
    for place, (_, runs) in enumerate(cells):
        row, column = divmod(place, 4)
        for run in runs:
            values = run["curves"]["hard"]
            line = go.Scatter(
                x=[(i + 1) * POINT for i in range(len(values))],
                y=values,
                mode="lines",
                line={"color": COLOURS[state_of(run)], "width": 1.5},
                opacity=0.7,
                showlegend=False,
            )
            figure.add_trace(line, row + 1, column + 1)
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    figure.update_xaxes(title="steps", row=2)
    for row, said in enumerate(forms, start=1):
        figure.update_yaxes(title=f"{said}<br>hard digit right", row=row, col=1)
    return _finished(figure, "Does the model learn to think? Style shift; a line is a run", 640)


def dots(title: str, row_of: Callable[[Result], str], panels: dict[str, list[Result]]) -> go.Figure:
    """Accuracies of single runs: a panel for each set of results, a row for each kind of run."""
    every = [result for results in panels.values() for result in results]
    rows = list(dict.fromkeys(map(row_of, every)))
    figure = make_subplots(1, len(panels), subplot_titles=list(panels), shared_yaxes=True)
    for column, results in enumerate(panels.values(), start=1):
        for result in results:
            held_out, *_ = result["held_out"].values()
            marks = {
                "accuracy_no_think": {"color": "#8a8f98", "symbol": "line-ns-open", "size": 9},
                "accuracy": {"color": COLOURS[state_of(result)], "size": 9, "opacity": 0.7},
            }
            for key, marker in marks.items():
                dot = go.Scatter(
                    x=[held_out[key]],
                    y=[row_of(result)],
                    mode="markers",
                    marker=marker,
                    showlegend=False,
                )
                figure.add_trace(dot, 1, column)
    figure.update_yaxes(categoryorder="array", categoryarray=rows[::-1], range=[-1, len(rows)])
    figure.update_xaxes(range=[-0.03, 1.05], tickformat=".0%", title="hard digits right")
    said = f"{title} A dot is a run, a grey stroke the same run without a trace"
    return _finished(figure, said, 200 + 22 * len(rows))


def every_method() -> go.Figure:
    """All methods in both tasks of the demo."""
    panels = {
        "style shift, 100 steps": read_results(HERE, "presets"),
        "short answer, 80 steps": read_results(HERE, "short"),
    }
    return dots("Which methods learn to think?", lambda r: r["run"]["preset"], panels)


def what_decides() -> go.Figure:
    """The default, and the plain mean without a clip, in every variant of the task."""
    results = read_results(HERE, "tasks")
    panels = {
        preset: [r for r in results if r["run"]["preset"] == preset]
        for preset in ("nrt-ws", "nrt-am-released")
    }
    return dots("What of the task decides it?", lambda r: r["run"]["family"], panels)


def long_answers() -> go.Figure:
    """Answers of 111 words."""
    panels = {"111 words, 3 hard digits, 60 steps": read_results(HERE, "long")}

    def row(result: Result) -> str:
        return f"{result['run']['family']} {result['run']['preset']}"

    return dots("And on long answers?", row, panels)


FIGURES = {
    "lab-style": style_shift,
    "lab-methods": every_method,
    "lab-tasks": what_decides,
    "lab-long": long_answers,
}


def _finished(figure: go.Figure, title: str, height: int) -> go.Figure:
    """Title, size and the colours' meanings."""
    for state, colour in COLOURS.items():
        line = {"color": colour, "width": 4}
        name = NAMED.get(state, state)
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="lines", line=line, name=name))
    return figure.update_layout(
        template="plotly_white",
        title=title,
        width=1200,
        height=height,
        legend={"orientation": "h", "yref": "container", "y": 0.01, "x": 0.35},
        margin={"t": 110, "b": 90},
    )


if __name__ == "__main__":
    pictures.save(FIGURES)
