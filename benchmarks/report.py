"""A report of many traces: how long it takes to make, how large it is, how quick it answers.

    python benchmarks/report.py [--traces 20000] [--write]

The run is made up: traces of about 150 words drawn from 4,000 by Zipf's law, references of 40
tokens, 8 traces a question, 500 logged steps. ``nrt report`` is timed as a process of its own. The
page is opened by headless Chromium (playwright; ``chromium`` on the path): first contentful paint,
until traces and figures are there, and each of six filters until the list has been drawn anew.
"""

import argparse
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from playwright.sync_api import sync_playwright

from native_reasoning.records import RunFolder, TraceRow

K, STEPS, TOKENS, WORDS, VOCABULARY = 8, 500, 40, 150, 4000
SEARCHES = ("a", "wordlet", "zzz", "12", "e 1", "nothing like it")
HERE = Path(__file__).parent


def make_run(folder: Path, traces: int) -> None:
    """A run folder with so many traces."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(random.choice(letters, random.integers(2, 9))) for _ in range(VOCABULARY)]
    weights = 1 / np.arange(1, VOCABULARY + 1)
    records = RunFolder.create(folder, resume=False)
    records.write_config({"preset": "nrt-ws", "max_steps": STEPS}, data_hash="0" * 64, seed=0)
    per_step = traces // K // STEPS

    def text(count: int) -> str:
        return " ".join(random.choice(words, count, p=weights / weights.sum()))

    for step in range(1, STEPS + 1):
        values = random.random(30)
        records.append_metrics(step, {f"metric_{i}": float(x) for i, x in enumerate(values)})
        records.append_metrics(
            step, {"uplift": float(values[0]), "reward": float(values[1]), "collapse_state": 0.0}
        )
        for row in range(per_step):
            answer = text(TOKENS)
            baseline = -random.exponential(1.5, TOKENS + 1)
            for k in range(K):
                records.add_traces(
                    [
                        TraceRow(
                            step=step,
                            row_id=row + per_step * (step % 50),
                            k=k,
                            prompt=text(30),
                            trace=text(int(random.integers(WORDS // 2, WORDS * 3 // 2))),
                            answer=answer,
                            sampled_answer="",
                            closed=True,
                            ended=False,
                            length=WORDS,
                            reward=float(random.random()),
                            baseline_reward=0.1,
                            advantage=float(random.normal()),
                            answer_logps=(baseline + random.normal(0, 0.3, TOKENS + 1)).tolist(),
                            baseline_logps=baseline.tolist(),
                            answer_tokens=[*(f" {word}" for word in answer.split()), "<eos>"],
                        )
                    ]
                )
    records.flush_traces(STEPS)


def built(folder: Path, out: Path) -> float:
    """Seconds of ``nrt report``, the process included."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "native_reasoning.cli", "report", str(folder)]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    return time.perf_counter() - began


def opened(out: Path) -> dict[str, float]:
    """Milliseconds in a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(out.as_uri(), wait_until="commit")
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        ready = page.evaluate("performance.now()")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        filters = [
            page.evaluate(
                """async (wanted) => {
                    const box = document.getElementById("f-text");
                    const began = performance.now();
                    box.value = wanted;
                    box.dispatchEvent(new Event("input", { bubbles: true }));
                    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
                    return performance.now() - began;
                }""",
                wanted,
            )
            for wanted in SEARCHES
        ]
        browser.close()
    return {
        "first_paint_ms": round(paint),
        "ready_ms": round(ready),
        "filter_first_ms": round(filters[0]),
        "filter_median_ms": round(statistics.median(filters)),
        "filter_slowest_ms": round(max(filters)),
    }


def main() -> None:
    """Prints the numbers as JSON, and writes them beside this file if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--traces", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    with TemporaryDirectory() as place:
        run, out = Path(place) / "run", Path(place) / "report.html"
        make_run(run, asked.traces)
        seconds = [built(run, out) for _ in range(asked.repeats)]
        kept = re.search(r'id="kept"[^>]*>([^<]*)<', out.read_text("utf-8"))[1]
        views = [opened(out) for _ in range(asked.repeats)]
        result = {
            "traces": asked.traces,
            "machine": f"{platform.machine()}, 2 cores, Python {platform.python_version()}",
            "repeats": asked.repeats,
            "built_seconds": [round(x, 1) for x in seconds],
            "megabytes": round(out.stat().st_size / 1e6, 2),
            "text_megabytes": round(
                sum(file.stat().st_size for file in run.rglob("*.parquet")) / 1e6, 1
            ),
            "traces_on_the_page": kept,
            "views": views,
        }
    print(json.dumps(result, indent=1))
    if asked.write:
        (HERE / "report.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
