"""What goes wrong on one of two ranks: both do the same about it; and what the others do when one
is killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from launch import TESTS, start
from native_reasoning.demo import base_path, make_rows
from native_reasoning.records.disk import damage
from native_reasoning.records.folder import QUARANTINE, read_metrics
from native_reasoning.training.resume import checkpoints

WORKER = TESTS / "ranks_worker.py"


def test_trouble_on_one_rank_is_everybodys(tmp_path):
    processes = start("ddp", 2, [sys.executable, str(WORKER), str(tmp_path)])
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    one, other = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert one["received"] == signal.SIGTERM
    assert one["steps"] == 3
    assert "already holds a run" in one["refused"]
    run = tmp_path / "run"
    assert [m["skipped_updates"] for m in read_metrics(run)] == [1, 0, 0]
    rows = [json.loads(line) for line in (run / QUARANTINE).read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 1]
    assert len({row["row_id"] for row in rows}) == 2  # of either rank
    (saved,) = checkpoints(run)
    assert saved.name == "checkpoint-3"
    assert damage(saved) == []


def test_a_rank_that_fails_says_why_and_the_other_that_it_lost_it(tmp_path):
    processes = start("ddp", 2, [sys.executable, str(WORKER), str(tmp_path), "mistake"])
    other, failed = (process.communicate()[1] for process in processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert "RuntimeError: a mistake of its own" in failed
    assert "lost another one" not in failed
    assert "rank 0 of 2 lost another one" in other


def train(folder: Path, data: Path, *more: str) -> list[subprocess.Popen]:
    """Two ranks of a run from the command line, on their way."""
    command = [sys.executable, "-m", "native_reasoning.cli", "train", "--model", str(base_path())]
    command += ["--data", str(data), "--out", str(folder), "--max-steps", "6", "--save-steps", "1"]
    command += ["--gradient-accumulation-steps", "2", "--num-generations", "4", "--use-cpu"]
    return start("ddp", 2, [*command, "--max-trace-length", "12", "--learning-rate", "1e-3", *more])


def end(ranks: list[subprocess.Popen]) -> None:
    for rank in ranks:
        _, errors = rank.communicate()
        assert rank.returncode == 0, errors


def kill(ranks: list[subprocess.Popen], victim: int, folder: Path) -> None:
    """Kills one rank as soon as ``folder`` is there; the other ends by itself and says why."""
    while not folder.exists():
        assert all(rank.poll() is None for rank in ranks)
        time.sleep(0.02)
    ranks[victim].kill()
    ranks[victim].communicate()
    other = 1 - victim
    _, errors = ranks[other].communicate()
    assert ranks[other].returncode == 2
    assert f"error: rank {other} of 2 lost another one" in errors
    assert "--resume" in errors


def test_when_a_rank_is_killed_the_other_ends_and_the_run_goes_on_to_the_same_bits(tmp_path):
    data = tmp_path / "qa.jsonl"
    rows = make_rows("short_answer", "train", 12, seed=5)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    end(train(whole, data))
    kill(train(broken, data), 1, broken / "checkpoint-1")
    kill(train(broken, data, "--resume"), 0, broken / "checkpoint-4")
    end(train(broken, data, "--resume"))
    one, other = (load_file(run / "final" / "model.safetensors") for run in (whole, broken))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
