"""What goes wrong on one of two ranks: both do the same about it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from native_reasoning.disk import damage
from native_reasoning.records import QUARANTINE, read_metrics
from native_reasoning.resume import checkpoints
from test_distributed import TESTS, free_port


def test_trouble_on_one_rank_is_everybodys(tmp_path):
    command = [sys.executable, str(Path(__file__).parent / "ranks_worker.py"), str(tmp_path)]
    base = {**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}
    base |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in ("0", "1"):
        env = {**base, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
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
