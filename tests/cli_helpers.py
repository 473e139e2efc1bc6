"""Small data files, small settings, and the command as a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import native_reasoning

SOURCE = str(Path(native_reasoning.__file__).parent.parent)
# fmt: off
LENGTHS = ["--use-cpu", "--max-trace-length", "6", "--max-answer-length", "24"]
SMALL = [
    *LENGTHS, "--num-generations", "2", "--max-steps", "2", "--per-device-train-batch-size", "2",
    "--eval-samples", "2",
]
# fmt: on


def write_rows(path: Path, rows) -> str:
    """A JSONL file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sums(low: int, high: int) -> list[dict[str, str]]:
    """Questions and answers about sums."""
    return [
        {"question": f"What is {a} + {b}?", "answer": str(a + b)}
        for a in range(low, high)
        for b in range(3)
    ]


def start(*arguments: str, cwd: Path) -> subprocess.Popen:
    """The command as a process of its own."""
    env = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "native_reasoning.cli", *map(str, arguments)],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
