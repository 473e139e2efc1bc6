"""Figures of the benchmarks as PNG files in docs/images, drawn by headless Chromium.

Needs playwright and a ``chromium`` on the path.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def save(figures: Mapping[str, Callable[[], go.Figure]]) -> None:
    """Draws each, in the size that its layout has, into a file of its name."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, make in figures.items():
            figure = make()
            size = {"width": figure.layout.width, "height": figure.layout.height}
            page = browser.new_page(viewport=size)
            page.set_content(figure.to_html(include_plotlyjs=True, config={"staticPlot": True}))
            page.wait_for_selector(".main-svg")
            page.locator(".js-plotly-plot").screenshot(path=IMAGES / f"{name}.png")
        browser.close()
