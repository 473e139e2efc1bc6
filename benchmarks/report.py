"""A report of many traces: how long it takes to make, how large it is, how quick it answers.

    python benchmarks/report.py [--traces 20000] [--answer-tokens 40] [--write]

The run is made up: traces of about 150 words drawn from 4,000 by Zipf's law, references of 40
tokens, 8 traces a question, each question met ten times in 500 logged steps. ``--write`` does it
with references of 40 and of 300 tokens, and keeps both results beside this file. ``nrt report`` is
timed as a process of its own. The page is opened by headless Chromium (playwright; ``chromium`` on
the path): first contentful paint, until traces and figures are there, and each of six filters until
the list has been drawn anew.
"""

import argparse
import json
import os
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

from native_reasoning.records.folder import RunFolder, TraceRow

K, STEPS, WORDS, VOCABULARY = 8, 500, 150, 4000
#: Tokens of a reference in the results that are kept.
WRITTEN = (40, 300)
SEARCHES = ("a", "wordlet", "zzz", "12", "e 1", "nothing like it")
HERE = Path(__file__).parent


def make_run(folder: Path, traces: int, tokens: int) -> None:
    """A run folder with so many traces, and so many tokens in a reference."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(random.choice(letters, random.integers(2, 9))) for _ in range(VOCABULARY)]
    weights = 1 / np.arange(1, VOCABULARY + 1)
    records = RunFolder.create(folder, resume=False)
    records.write_config({"preset": "nrt-ws", "max_steps": STEPS}, data_hash="0" * 64, seed=0)
    groups = traces // K
    rows = max(groups // 10, 1)

    def text(count: int) -> str:
        return " ".join(random.choice(words, count, p=weights / weights.sum()))

    questions = [(text(30), text(tokens)) for _ in range(rows)]
    written: list[TraceRow] = []
    for step in range(1, STEPS + 1):
        values = random.random(30)
        records.append_metrics(step, {f"metric_{i}": float(x) for i, x in enumerate(values)})
        records.append_metrics(
            step, {"uplift": float(values[0]), "reward": float(values[1]), "collapse_state": 0.0}
        )
        for group in range(groups * (step - 1) // STEPS, groups * step // STEPS):
            prompt, answer = questions[group % rows]
            baseline = -random.exponential(1.5, tokens + 1)
            for k in range(K):
                written.append(
                    TraceRow(
                        step=step,
                        row_id=group % rows,
                        k=k,
                        prompt=prompt,
                        trace=text(int(random.integers(WORDS // 2, WORDS * 3 // 2))),
                        answer=answer,
                        sampled_answer="",
                        closed=True,
                        ended=False,
                        length=WORDS,
                        reward=float(random.random()),
                        baseline_reward=0.1,
                        advantage=float(random.normal()),
                        answer_logps=(baseline + random.normal(0, 0.3, tokens + 1)).tolist(),
                        baseline_logps=baseline.tolist(),
                        answer_tokens=[*(f" {word}" for word in answer.split()), "<eos>"],
                    )
                )
    records.write_traces(written, STEPS)


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


def measured(traces: int, tokens: int, repeats: int) -> dict[str, object]:
    """All numbers of one made-up run."""
    with TemporaryDirectory() as place:
        run, out = Path(place) / "run", Path(place) / "report.html"
        make_run(run, traces, tokens)
        seconds = [built(run, out) for _ in range(repeats)]
        kept = re.search(r'id="kept"[^>]*>([^<]*)<', out.read_text("utf-8"))[1]
        views = [opened(out) for _ in range(repeats)]
        cores, version = os.cpu_count(), platform.python_version()
        return {
            "traces": traces,
            "answer_tokens": tokens,
            "machine": f"{platform.machine()}, {cores} cores, Python {version}",
            "repeats": repeats,
            "built_seconds": [round(x, 1) for x in seconds],
            "megabytes": round(out.stat().st_size / 1e6, 2),
            "text_megabytes": round(
                sum(file.stat().st_size for file in run.rglob("*.parquet")) / 1e6, 1
            ),
            "traces_on_the_page": kept,
            "views": views,
        }


def main() -> None:
    """Prints the numbers as JSON, and writes them beside this file if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--traces", type=int, default=20_000)
    parser.add_argument("--answer-tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    lengths = WRITTEN if asked.write else (asked.answer_tokens,)
    results = [measured(asked.traces, tokens, asked.repeats) for tokens in lengths]
    text = json.dumps(results, indent=1)
    print(text)
    if asked.write:
        (HERE / "report.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
