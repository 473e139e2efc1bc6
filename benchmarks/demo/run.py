"""Runs ``nrt demo`` for several seeds and writes results.json beside this file.

    python benchmarks/demo/run.py [SEED ...]        (default: 0 1 2)

Each demo is a process of its own, one after the other. The JSON holds what the demo printed, the
machine and the versions; nothing is left out.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


def run(seed: int, folder: str) -> dict:
    """One demo's own JSON, with the wall time of the whole process."""
    command = [sys.executable, "-m", "native_reasoning.cli", "demo", "--json"]
    command += ["--seed", str(seed), "--out", f"{folder}/seed-{seed}"]
    began = time.perf_counter()
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(out.splitlines()[-1])
    seconds = round(time.perf_counter() - began, 1)
    return {**result, "process_seconds": seconds, "run": "(temporary)"}


def main(seeds: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, folder) for seed in seeds]
    written = {
        "command": "python benchmarks/demo/run.py " + " ".join(map(str, seeds)),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu_count": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "runs": runs,
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in ("base", "sft", "nrt-am-released", "nrt-logp-released", "nrt-ws"):
        print(name, [r[name]["accuracy"] for r in runs], [r[name]["trace_length"] for r in runs])


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
