"""What share of a step is the objective itself: ``python benchmarks/objective/run.py``.

The demo's model and settings (16 prompts x 8 traces a step, demo/race.py), one thread, CPU time of
the process. *signal* is the objective, from scores to advantages and weights; *loss* the loss terms
from these. Three runs of each preset, interleaved; the median is reported, results.json has it.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from native_reasoning.demo.race import FAMILY, QUESTIONS, trainer_of
from native_reasoning.training import step as trainer_module
from native_reasoning.training.resume import machine

PRESETS = ("nrt-ws", "verifree", "jepo", "latro", "rlpr", "nover", "dro", "rlvr")
STEPS, RUNS = 12, 3


class Timer:
    """Adds up the CPU time of a function's calls."""

    def __init__(self, function) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args, **kwargs):
        began = time.process_time()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += time.process_time() - began


def measure(preset: str, folder: Path) -> dict[str, float]:
    """Seconds of CPU per step: all of it, the signal's and the loss's."""
    made = trainer_of(preset, 0, folder)
    made.args.max_steps = STEPS
    signal = made.objective.signals = Timer(made.objective.signals)
    loss = Timer(trainer_module.group_loss)
    plain, trainer_module.group_loss = trainer_module.group_loss, loss
    began = time.process_time()
    try:
        made.train()
    finally:
        trainer_module.group_loss = plain
    whole = time.process_time() - began
    return {"step": whole / STEPS, "signal": signal.seconds / STEPS, "loss": loss.seconds / STEPS}


def main() -> None:
    """Prints and writes the table."""
    torch.set_num_threads(1)
    runs: dict[str, list[dict[str, float]]] = {preset: [] for preset in PRESETS}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(RUNS):
            for preset in PRESETS:
                runs[preset].append(measure(preset, Path(folder) / f"{i}-{preset}"))
    result = {}
    for preset, found in runs.items():
        middle = {part: statistics.median(run[part] for run in found) for part in found[0]}
        shares = [run["signal"] / run["step"] for run in found]
        result[preset] = {
            **{f"{part}_ms": round(1000 * value, 3) for part, value in middle.items()},
            "signal_share": round(statistics.median(shares), 5),
            "signal_share_range": [round(min(shares), 5), round(max(shares), 5)],
        }
        print(preset, json.dumps(result[preset]))
    result["machine"] = {**machine(1), "family": FAMILY, "eval_questions": QUESTIONS}
    out = Path(__file__).with_name("results.json")
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
