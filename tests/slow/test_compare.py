"""``nrt compare`` as processes: stopped, killed and resumed, it ends as one that nobody stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cli_helpers import SOURCE, write_rows
from native_reasoning.demo import base_path, make_rows
from native_reasoning.records.folder import read_metrics, read_questions

# fmt: off
SMALL = [
    "--presets", "sft,nrt-ws:objective.answer_coef=0.5", "--max-steps", "40",
    "--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "1",
    "--num-generations", "4", "--max-trace-length", "16", "--max-answer-length", "20",
    "--learning-rate", "5e-4", "--use-cpu",
]
# fmt: on
LAST = "nrt-ws_objective.answer_coef=0.5-42"


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """A comparison in a process group of its own."""
    env = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "native_reasoning.cli", "compare", *arguments, "--out", "compared"],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def given(folder: Path) -> list[str]:
    folder.mkdir()
    train = write_rows(folder / "train.jsonl", make_rows("style_shift", "train", 160, 0))
    test = write_rows(folder / "test.jsonl", make_rows("style_shift", "heldout", 30, 1))
    return ["--model", str(base_path()), "--data", train, "--eval-data", test, *SMALL]


def wait_for(folder: Path, pattern: str) -> None:
    end = time.monotonic() + 300
    while not list((folder / "compared").glob(pattern)):
        assert time.monotonic() < end, sorted((folder / "compared").rglob("*"))
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """A comparison that nobody stopped, and its stdout."""
    folder = tmp_path_factory.mktemp("compare") / "whole"
    process = start(folder, *given(folder))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return folder / "compared", out


def test_a_comparison_that_was_stopped_and_killed_ends_as_one_that_was_not(whole, tmp_path):
    folder = tmp_path / "killed"
    arguments = given(folder)
    process = start(folder, *arguments)
    wait_for(folder, "sft-42/checkpoint-*")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert err.rstrip().endswith("go on with: nrt compare --out compared")

    process = start(folder)  # all else stands in the folder
    wait_for(folder, f"{LAST}/checkpoint-*")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    assert not (folder / "compared" / "compare.json").exists()
    done = read_metrics(folder / "compared" / LAST)[-1]["step"]
    assert done < 40, "it was killed too late to show anything"
    trained = (folder / "compared" / "sft-42" / "final").stat().st_mtime_ns

    process = start(folder, *arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "sft-42 (2 of 3): finished before" in err
    for name in ("compare.json", "compare.md"):
        assert (folder / "compared" / name).read_text() == (whole[0] / name).read_text()
    assert out == whole[1]
    assert (folder / "compared" / "sft-42" / "final").stat().st_mtime_ns == trained


def test_what_it_leaves(whole):
    folder, out = whole
    result = json.loads((folder / "compare.json").read_text())
    assert [*result["arms"]] == ["base", "sft", LAST.replace("_", ":", 1).removesuffix("-42")]
    assert out.startswith(result["verdict"]["headline"])
    assert (folder / "compare.md").read_text().startswith(result["verdict"]["headline"])
    assert result["verdict"]["headline"] in (folder / "report.html").read_text("utf-8")
    assert result["failed"] == {}
    assert {arm["steps"] for arm in result["arms"].values()} == {0, 40}
    for run in ("sft-42", LAST):
        assert (folder / run / "final").is_dir()
        assert not list((folder / run).glob("checkpoint-*"))  # nothing goes on from them
        rows = read_questions(folder / run)
        assert [(row["step"], row["row_id"]) for row in rows] == [(40, i) for i in range(30)]
    plan = yaml.safe_load((folder / "compare.yaml").read_text())
    assert plan["presets"] == "sft,nrt-ws:objective.answer_coef=0.5"
    assert plan["learning_rate"] == 5e-4


def test_another_arm_joins_and_one_that_fails_ends_no_other(whole):
    folder, _ = whole
    before = json.loads((folder / "compare.json").read_text())
    presets = "format-only:max_prompt_length=2,permuted:max_steps=4"  # the first keeps no row
    process = start(folder.parent, "--presets", presets)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    failed = "format-only_max_prompt_length=2-42"
    assert f"{failed} failed (exit code 2); the other runs go on" in err
    result = json.loads((folder / "compare.json").read_text())
    assert result["failed"] == {failed: "exit code 2"}
    assert f"{failed} failed: exit code 2." in out
    for label, arm in before["arms"].items():
        assert result["arms"][label] == arm
    assert result["arms"]["permuted:max_steps=4"]["steps"] == 4
    assert "The arms differ in optimiser steps" in out
