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

import jinja2
from plotly.offline import get_plotlyjs

from native_reasoning import __version__
from native_reasoning.config.errors import printable
from native_reasoning.report.figures import colour
from native_reasoning.report.packed import compressed, packed
from native_reasoning.report.runs import Run, run_names
from native_reasoning.report.sections import figure_parts, run_parts, warnings
from native_reasoning.report.verdict import nought

GENERATOR = "native-reasoning"
#: By this a page is known again, near its beginning (page.html).
MARK = f'<meta name="generator" content="{GENERATOR} '
#: Bytes of a page, at most; traces that do not fit are left out, and it says so.
MOST_BYTES = 15_000_000
SCRIPTS = ("data.js", "curves.js", "inspector.js", "page.js")


def build(runs: Sequence[Run], *, watch: str = "", most_bytes: int = MOST_BYTES) -> bytes:
    """The page, UTF-8. ``watch`` is its version where a server refreshes it (watch.py)."""
    figures = figure_parts(runs)
    figure_data = compressed({figure.name: figure.json for figure in figures})
    values = {
        "title": ", ".join(run_names(runs)),
        "generator": f"{GENERATOR} {__version__}",
        "watch": watch,
        "warnings": warnings(runs),
        "runs": run_parts(runs),
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
