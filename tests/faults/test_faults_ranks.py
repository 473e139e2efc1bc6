"""What goes wrong on one of two ranks: both do the same about it; and what the others do when one
is killed."""

import json
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from launch import start
from native_reasoning.config.errors import DataError, RunError
from native_reasoning.demo import base_path, make_rows
from native_reasoning.model import ranks
from native_reasoning.records.disk import damage
from native_reasoning.records.folder import QUARANTINE, read_metrics
from native_reasoning.training.resume import checkpoints

WORKER = Path(__file__).parent / "ranks_worker.py"


def test_trouble_on_one_rank_is_everybodys(tmp_path):
    processes = start("ddp", 2, [sys.executable, str(WORKER), str(tmp_path)])
    for process in processes:
        _, errors = process.communicate(timeout=120)
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
    other, failed = (process.communicate(timeout=120)[1] for process in processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert "RuntimeError: a mistake of its own" in failed
    assert "lost another one" not in failed
    assert "rank 0 of 2 lost another one" in other


GONE = "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"


def exchange(*args) -> None:
    raise RuntimeError(GONE)


def raised(*errors: Exception) -> RuntimeError:
    """The last of the errors, each raised while the one before it was on its way."""
    try:
        if errors[1:]:
            try:
                raise raised(*errors[:-1])
            finally:
                raise errors[-1]
        raise errors[-1]
    except RuntimeError as error:
        return error


@pytest.fixture
def two_ranks(monkeypatch):
    state = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    monkeypatch.setattr(ranks, "PartialState", lambda: state)
    monkeypatch.setattr(ranks, "broadcast_object_list", exchange)


def test_only_an_exchange_that_failed_means_a_lost_rank(two_ranks):
    lost = ranks.lost_rank(raised(RuntimeError(GONE)))
    assert isinstance(lost, RunError)
    assert "Connection closed by peer" in lost.why
    lost = ranks.lost_rank(raised(RuntimeError(GONE), RuntimeError(GONE)))
    assert isinstance(lost, RunError)
    for text in ("CUDA out of memory", "DataLoader worker timed out", "gloo has no such operation"):
        assert ranks.lost_rank(raised(RuntimeError(text))) is None


def test_what_a_rank_failed_with_by_itself_comes_before_an_exchange_that_failed(two_ranks):
    own = RunError("its own", why="", fix="")
    assert ranks.lost_rank(raised(own, RuntimeError(GONE))) is own
    assert ranks.lost_rank(raised(own, RuntimeError(GONE), RuntimeError(GONE))) is own
    error = raised(RuntimeError("a mistake of its own"), RuntimeError(GONE))
    assert ranks.lost_rank(error) is None
    assert "a mistake of its own" in "".join(traceback.format_exception(error))


def test_the_first_rank_says_why_it_failed_where_nobody_is_left_to_hear_it(two_ranks):
    def make():
        raise DataError("its own", why="", fix="")

    with pytest.raises(DataError, match="its own"):
        ranks.from_first_rank(make)
    with pytest.raises(RuntimeError, match="closed by peer"):
        ranks.from_first_rank(lambda: 1)


def train(folder: Path, data: Path, *more: str) -> list[subprocess.Popen]:
    """Two ranks of a run from the command line, on their way."""
    command = [sys.executable, "-m", "native_reasoning.cli", "train", "--model", str(base_path())]
    command += ["--data", str(data), "--out", str(folder), "--max-steps", "6", "--save-steps", "1"]
    command += ["--gradient-accumulation-steps", "2", "--num-generations", "4", "--use-cpu"]
    return start("ddp", 2, [*command, "--max-trace-length", "12", "--learning-rate", "1e-3", *more])


def end(ranks: list[subprocess.Popen]) -> None:
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors


def kill(ranks: list[subprocess.Popen], victim: int, folder: Path) -> None:
    """Kills one rank as soon as ``folder`` is there; the other ends by itself and says why."""
    while not folder.exists():
        assert all(rank.poll() is None for rank in ranks)
        time.sleep(0.02)
    ranks[victim].kill()
    ranks[victim].communicate()
    other = 1 - victim
    began = time.monotonic()
    _, errors = ranks[other].communicate(timeout=60)
    assert time.monotonic() - began < 60
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
