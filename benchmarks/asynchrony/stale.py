"""What training one rollout behind costs: ``python benchmarks/asynchrony/stale.py --json``.

The lab's style-shift task, nrt-ws, the embedded base, 96 updates of 16 prompts x 8 traces, three
seeds. *lag 1* samples and scores rollout n + 1 before rollout n is trained on, as an overlapped run
would, one after the other in one process. Updates per rollout and whether rho corrects are varied.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from native_reasoning.objective import losses
from native_reasoning.training.collector import Collector

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.experiments import Run
from lab.trial import do

RESULTS = Path(__file__).with_name("stale.json")
STEPS, HELD_OUT = 96, 500
#: Updates per rollout, lag in rollouts, ratio.
CASES = (
    (1, 0, "none"),
    (4, 0, "cispo"),
    (4, 1, "cispo"),
    (4, 1, "none"),
    (8, 0, "cispo"),
    (8, 1, "cispo"),
)


def late(make: Callable) -> Callable:
    """``Collector.sample`` that hands out the rollout which was made when it was last called."""
    waiting: dict[int, Any] = {}

    def made(self: Collector, plan: Any, model: Any, state: Any) -> Any:
        window = waiting.pop(plan.rollout, None)
        if window is None:  # the first: there is none before it
            window = make(self, plan, model, state)
        schedule = self.schedule
        following = plan.rollout + schedule.minibatches * schedule.passes
        if following < self.args.max_steps:
            waiting[following] = make(self, schedule.step(following), model, state)
        return window

    return made


def watch(kind: Callable, seen: list[torch.Tensor]) -> Callable:
    """The ratio ``kind``, which notes log rho of each sampled token."""

    def watched(new: torch.Tensor, old: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((new - old).detach()[old < 0])
        return kind(new, old, *rest)

    return watched


def run(updates: int, lag: int, ratio: str, seed: int) -> dict[str, float]:
    """Accuracy with thinking, and how far rho went, of one run."""
    changes = (("steps_per_generation", updates), ("ratio", ratio))
    seen: list[torch.Tensor] = []
    make, kind = Collector.sample, losses.RATIOS[ratio]
    Collector.sample = late(make) if lag else make
    losses.RATIOS[ratio] = watch(kind, seen) if updates > 1 else kind
    try:
        told = do(Run("style_shift", "nrt-ws", 0, seed, STEPS, changes), Path("."), HELD_OUT)
    finally:
        Collector.sample, losses.RATIOS[ratio] = make, kind
    log_rho = torch.cat(seen) if seen else torch.zeros(1)
    (held_out,) = told["held_out"].values()
    outside = (log_rho.exp() < 0.8) | (log_rho.exp() > 1.28)
    return {
        "accuracy": held_out["accuracy"],
        "moved": round(float(log_rho.abs().mean()), 4),
        "outside": round(float(outside.float().mean()), 4),
        "halfway": told["curves"]["reward"][STEPS // 20],
    }


def main() -> None:
    """Prints the results, or writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help=f"writes {RESULTS.name}")
    parser.add_argument("--seeds", type=int, default=3)
    own = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"command": "python benchmarks/asynchrony/stale.py --json", "cases": []}
    for updates, lag, ratio in CASES:
        runs = [run(updates, lag, ratio, seed) for seed in range(own.seeds)]
        found["cases"].append({"updates": updates, "lag": lag, "ratio": ratio, "runs": runs})
        print(json.dumps(found["cases"][-1]), flush=True)
    if own.json:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
