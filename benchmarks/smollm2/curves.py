"""The learning curves of table.py's runs: ``python benchmarks/smollm2/curves.py``.

Means of four steps; a line is a run. Writes docs/images/smollm2.png (pictures.py).
"""

import json
import sys
from pathlib import Path
from statistics import fmean

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from table import RUNS, SETS

sys.path.insert(0, str(Path(__file__).parents[1]))
import pictures

COLOURS = {"nrt-ws": "#0f9470", "verifree": "#c2477f"}  # those that sample
PANELS = {
    "reward": "reward",
    "reward_baseline": "reward of the empty trace",
    "uplift": "uplift, nats per token",
    "trace_length": "trace, tokens",
}
POINT = 4


def figure() -> go.Figure:
    """A row for each set, a column for each number."""
    drawn = make_subplots(
        len(SETS), len(PANELS), subplot_titles=[*PANELS.values()], vertical_spacing=0.12
    )
    named = set()
    for path in sorted(RUNS.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["method"] not in COLOURS:
            continue
        for column, name in enumerate(PANELS, start=1):
            values = run["curves"].get(name, [])
            points = [fmean(values[i : i + POINT]) for i in range(0, len(values), POINT)]
            line = go.Scatter(
                x=[min((i + 1) * POINT, len(values)) for i in range(len(points))],
                y=points,
                mode="lines",
                line={"color": COLOURS[run["method"]], "width": 2},
                name=run["method"],
                showlegend=run["method"] not in named,
            )
            named.add(run["method"])
            drawn.add_trace(line, [*SETS].index(run["data"]) + 1, column)
    for row, name in enumerate(SETS, start=1):
        drawn.update_yaxes(title=name, row=row, col=1)
    drawn.update_xaxes(title="steps", row=len(SETS))
    return drawn.update_layout(
        template="plotly_white",
        title="SmolLM2-135M-Instruct: what the traces were worth while training",
        width=1200,
        height=560,
        legend={"orientation": "h", "yref": "container", "y": 0.01, "x": 0.4},
        margin={"t": 90, "b": 80},
    )


if __name__ == "__main__":
    pictures.save({"smollm2": figure})
