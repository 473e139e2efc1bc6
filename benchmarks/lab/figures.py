"""The lab's figures: ``python benchmarks/lab/figures.py``, from the results beside this file.

Needs playwright and a ``chromium`` on the path. Writes docs/images/lab-*.png.
"""

import shutil
from pathlib import Path

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright
from plotly.subplots import make_subplots

from native_reasoning.lab.measure import POINT, state_of
from native_reasoning.lab.runner import read_results

HERE = Path(__file__).parent
IMAGES = HERE.parents[1] / "docs" / "images"
COLOURS = {"learnt": "#0f9470", "collapsed": "#c2477f", "neither": "#a8810f"}
REWARDS = {
    "nrt-ws": "hard tokens weigh most",
    "nrt-am": "mean probability",
    "nrt-gm": "geometric mean",
    "nrt-logp": "log-probability",
}


def style_shift() -> go.Figure:
    """How probable the hard digit is while each reward trains, without a clip and with it."""
    results = read_results(HERE, "style")
    rows = {"no clip (as released)": "-released", "clip at the empty trace": ""}
    titles, drawn = [], []
    for ending in rows.values():
        for preset, said in REWARDS.items():
            runs = [
                r
                for r in results
                if r["run"]["preset"] == preset + ending and r["run"]["steps"] == 300
            ]
            states = [state_of(run) for run in runs]
            titles.append(f"<b>{said}</b><br>{states.count('learnt')} of {len(runs)} runs learn")
            drawn.append(list(zip(runs, states, strict=True)))
    figure = make_subplots(
        2, 4, subplot_titles=titles, shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.16
    )
    for place, runs in enumerate(drawn):
        row, column = divmod(place, 4)
        for run, state in runs:
            values = run["curves"]["hard"]
            line = go.Scatter(
                x=[(i + 1) * POINT for i in range(len(values))],
                y=values,
                mode="lines",
                line={"color": COLOURS[state], "width": 1.5},
                opacity=0.7,
                showlegend=False,
            )
            figure.add_trace(line, row + 1, column + 1)
    for state, colour in COLOURS.items():
        named = go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"color": colour},
            name={"collapsed": "ends with empty traces"}.get(state, state),
        )
        figure.add_trace(named)
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    figure.update_xaxes(title="steps", row=2)
    for row, said in enumerate(rows, start=1):
        figure.update_yaxes(title=f"{said}<br>hard digit right", row=row, col=1)
    figure.update_layout(
        template="plotly_white",
        title="Does the model learn to think? Style shift; a line is a run",
        width=1200,
        height=640,
        legend={"orientation": "h", "y": -0.14},
        margin={"t": 110},
    )
    return figure


FIGURES = {"lab-style": style_shift}


def main() -> None:
    """Draws each in headless Chromium."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, make in FIGURES.items():
            figure = make()
            size = {"width": figure.layout.width, "height": figure.layout.height}
            page = browser.new_page(viewport=size)
            page.set_content(figure.to_html(include_plotlyjs=True, config={"staticPlot": True}))
            page.wait_for_selector(".main-svg")
            page.locator(".js-plotly-plot").screenshot(path=IMAGES / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
