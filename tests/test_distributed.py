"""Two gloo processes give every rank the gradient of the single process."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from native_reasoning.records import read_held_out, read_metrics, read_traces

TESTS = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(
    folder: Path, ranks: int, batch: int, rows: int, window: int = 1, preset: str = "nrt-ws"
) -> list[torch.Tensor]:
    """The first step's gradient on each rank."""
    folder.mkdir()
    command = [sys.executable, str(TESTS / "distributed_worker.py"), str(folder)]
    command += [str(batch), str(rows), str(window), preset]
    base = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        env = base | (place if ranks > 1 else {})
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"gradient-{rank}.pt") for rank in range(ranks)]


# 5 rows at 4 prompts a step: the second step has one real prompt, so one rank has none at all
# rlpr: sampled answers, a first policy, a mean over tokens of all ranks and a filter; nover: an EMA
@pytest.mark.parametrize(
    ("rows", "window", "preset"),
    [(5, 1, "nrt-ws"), (12, 2, "nrt-ws"), (5, 1, "rlpr"), (12, 2, "nover")],
)
def test_every_rank_has_the_gradient_of_the_single_process(rows, window, preset, tmp_path):
    (single,) = run(tmp_path / "one", 1, 4, rows, window, preset)
    several = run(tmp_path / "two", 2, 2, rows, window, preset)
    assert single.norm() > 0
    for gradient in several:
        assert (gradient - single).norm() <= 1e-5 * single.norm()
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert read_traces(two).num_rows == read_traces(one).num_rows
    first = [
        sorted(
            (r["row_id"], r["k"], r["trace"])
            for r in read_traces(run).to_pylist()
            if r["step"] == 1
        )
        for run in (one, two)
    ]
    assert first[0] == first[1]
    assert (two / "checkpoint-3" / "model.safetensors").exists()
    exchanged = re.compile(r"specificity|trace_dep|leak|restated|clean_uplift|(gain|uplift)_[hme]")
    for line, other in zip(read_metrics(one)[:1], read_metrics(two)[:1], strict=True):
        # a rank exchanges traces among its own prompts, so these have other partners
        a, b = ({k: v for k, v in x.items() if not exchanged.match(k)} for x in (line, other))
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    told = [read_held_out(run).to_pylist() for run in (one, two)]
    assert [r["row_id"] for r in told[0]] == [r["row_id"] for r in told[1]] == [0, 1, 2]
    assert [r["prompt"] for r in told[0]] == [r["prompt"] for r in told[1]]
    evals = [torch.load(tmp_path / "two" / f"metrics-{rank}.pt") for rank in range(2)]
    assert evals[0] == evals[1]
