"""The pictures of the documentation, made anew: ``python docs/make_images.py``.

Runs ``nrt demo`` (about a minute), opens its report in headless Chromium (playwright, ``chromium``
on the path) in light, in dark and as wide as a phone, and a training run in a terminal (tmux), half
way through. Look at each picture before it is committed.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.text import Text

from native_reasoning.demo import base_path, make_rows

IMAGES = Path(__file__).parent / "images"
COLUMNS, LINES = 118, 14
NRT = [sys.executable, "-m", "native_reasoning.cli"]


def main() -> None:
    """Writes every picture."""
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as place, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        demo = Path(place) / "demo"
        subprocess.run([*NRT, "demo", "--out", str(demo)], check=True, capture_output=True)
        reports(browser, demo / "report.html")
        terminal(browser, Path(place))
        browser.close()


def reports(browser: Browser, report: Path) -> None:
    """The report of the demo: verdict and curves, a trace, dark, and on a phone."""
    page = opened(browser, report, 1280, 860, "light")
    page.screenshot(path=IMAGES / "report-light.png")
    page.fill("#f-from", "15")  # where some traces help already and others do not yet
    page.fill("#f-to", "30")
    page.select_option("#f-order", "spread")
    page.locator("#groups button").first.click()
    page.evaluate("document.getElementById('traces').scrollIntoView()")
    page.locator(".trace-card .token.gain").first.hover()
    page.screenshot(path=IMAGES / "report-traces.png")
    dark = opened(browser, report, 1280, 860, "dark")
    dark.evaluate("document.getElementById('curves').scrollIntoView()")
    dark.wait_for_timeout(1000)
    dark.screenshot(path=IMAGES / "report-dark.png")
    phone = opened(browser, report, 390, 800, "light")
    phone.screenshot(path=IMAGES / "report-phone.png")


def opened(browser: Browser, report: Path, width: int, height: int, scheme: str) -> Page:
    """The page, once its curves and traces are there."""
    size = {"width": width, "height": height}
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("body[data-ready]")
    page.wait_for_timeout(1000)
    return page


def terminal(browser: Browser, place: Path) -> None:
    """A training run in a terminal of ``COLUMNS``, after its first trace was shown."""
    data = place / "qa.jsonl"
    rows = make_rows("style_shift", "train", 8000, 0)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    command = (
        f"OMP_NUM_THREADS=1 {' '.join(NRT)} train --model {base_path()} --data {data} "
        f"--out {place / 'run'} --max-steps 500 --learning-rate 5e-4 --max-trace-length 16 "
        "--num-generations 8 --per-device-train-batch-size 16 --gradient-accumulation-steps 1 "
        "--save-strategy no"
    )
    session = ["tmux", "-L", "nrt-images"]
    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    subprocess.run(
        [*session, "new-session", "-d", *size, f"clear; {command}; sleep 99"], check=True
    )
    screen = ""
    for _ in range(240):
        time.sleep(0.5)
        asked = [*session, "capture-pane", "-p", "-e"]
        screen = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
        if "advantage" in screen:
            break
    time.sleep(1.5)
    screen = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    subprocess.run([*session, "kill-server"], check=True)
    drawn = Console(record=True, width=COLUMNS, file=open("/dev/null", "w"))  # noqa: SIM115
    shown = screen.replace(str(place), "…").replace(str(base_path().parents[3]), "…")
    drawn.print(Text.from_ansi(shown.rstrip()))
    page = browser.new_page(viewport={"width": 1200, "height": 320})
    page.set_content(drawn.export_svg(title="nrt train"))
    page.locator("svg").screenshot(path=IMAGES / "terminal.png")


if __name__ == "__main__":
    main()
