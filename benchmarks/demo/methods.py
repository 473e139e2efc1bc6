"""Every method on the demo's task: ``python benchmarks/demo/methods.py [SEED ...]`` (0 1 2).

The demo's base, rows, steps, traces and learning rate (demo/race.py) for each preset, one thread.
It shows that each recipe runs and what it does here at one setting; it is no comparison: nothing
was tuned for any method, and the task favours none of them fairly (docs/results.md). About 17
seconds a run. methods.json beside has every number.
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from native_reasoning.config.papers import PRESETS
from native_reasoning.demo.race import _row, trainer_of
from native_reasoning.training.resume import machine

METHODS = ["nrt-ws", *(name for name in PRESETS if not name.startswith("nrt-"))]


def run(preset: str, seed: int, folder: Path) -> dict[str, float]:
    """Accuracy and the rest after the demo's steps."""
    began = time.perf_counter()
    trainer = trainer_of(preset, seed, folder)
    trainer.train()
    row = _row(trainer.evaluator.outcomes(trainer.eval_groups))
    return {**row, "seconds": round(time.perf_counter() - began, 1)}


def main(seeds: list[int]) -> None:
    """Prints a line per preset and writes methods.json."""
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for preset in METHODS:
            runs = [run(preset, seed, Path(folder) / f"{seed}-{preset}") for seed in seeds]
            found[preset] = runs
            print(preset, [r["accuracy"] for r in runs], [r["trace_length"] for r in runs])
    written = {
        "command": "python benchmarks/demo/methods.py " + " ".join(map(str, seeds)),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(1),
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "seeds": seeds,
        "runs": found,
    }
    path = Path(__file__).with_name("methods.json")
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
