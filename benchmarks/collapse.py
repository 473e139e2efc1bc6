"""Does the guard see a collapse, and only that? ``python benchmarks/collapse.py 0 1 2``.

The demo's setting (120 steps on the embedded model) with presets and learning rates of which some
are known to go wrong. For each run: what the held-out accuracy says of it, and what the guard said,
which never sees that accuracy. A seed changes rows, order and sampled tokens. Exits with 1 where
the two disagree: a run below ``LEARNED`` that was never called collapsed, or one above that was.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from native_reasoning.demo.race import trainer_of
from native_reasoning.evaluation.held_out import summarise
from native_reasoning.records.folder import read_metrics, read_timings
from native_reasoning.records.manifest import versions
from native_reasoning.records.metrics import COLLAPSE, STATES
from native_reasoning.training.resume import machine

RESULTS = Path(__file__).with_suffix(".json")
#: Accuracy above which a run has learned the task: chance is 10 %, the base has 17 %.
LEARNED = 0.5
#: Name -> preset and what differs from the demo.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "nrt-ws": ("nrt-ws", {}),
    "nrt-logp-released": ("nrt-logp-released", {}),
    "nrt-am-released": ("nrt-am-released", {}),
    "nrt-logp": ("nrt-logp", {}),
    "nrt-ws, learning rate 0.05": ("nrt-ws", {"learning_rate": 0.05}),
}


def run(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run: what it ended as, and the guard's states by the step at which they began."""
    preset, changes = RUNS[name]
    trainer = trainer_of(preset, seed, folder, **changes)
    trainer.train()
    after = summarise(trainer.evaluator.outcomes(trainer.eval_groups))
    lines = [line for line in read_metrics(trainer.folder) if COLLAPSE in line]
    states = [(line["step"], STATES[int(line[COLLAPSE])]) for line in lines]
    changes_of_state = [
        (step, state)
        for (step, state), (_, before) in zip(states, [(0, ""), *states], strict=False)
        if state != before
    ]
    timings = [t for t in read_timings(trainer.folder) if "step_seconds" in t]
    return {
        "accuracy": round(after["accuracy"], 4),
        "trace_length": round(after["trace_length"], 2),
        "states": changes_of_state,
        "ever_collapsed": any(state == STATES[2] for _, state in states),
        "share_of_time_diagnostics": round(
            sum(t["diagnostics_seconds"] for t in timings)
            / sum(t["step_seconds"] for t in timings),
            4,
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {name: {} for name in RUNS}
    wrong = []
    for name in RUNS:
        for seed in given.seeds:
            with tempfile.TemporaryDirectory() as folder:
                one = found[name][str(seed)] = run(name, seed, Path(folder))
            print(name, seed, one, file=sys.stderr, flush=True)
            if one["ever_collapsed"] != (one["accuracy"] < LEARNED):
                wrong.append([name, seed])
    about = {**machine(1), **versions()}
    result = {"runs": found, "guard_and_accuracy_disagree": wrong, "machine": about}
    print(json.dumps(result))
    if given.write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
