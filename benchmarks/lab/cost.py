"""What the whole lab takes with nothing beside it: ``python benchmarks/lab/cost.py``.

The runs of the lab were made beside tests and other jobs. Every 60th of them is made again here,
two at a time and otherwise alone, and the whole is estimated from them: minutes of two workers =
all recorded CPU time, times these runs' seconds now over their recorded CPU seconds, halved. Also
counts the runs whose held-out results came out the same. Writes cost.json.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from native_reasoning.training.resume import machine

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.experiments import Run

HERE = Path(__file__).parent
EVERY, WORKERS, HELD_OUT = 60, 2, 1000


def again(line: dict[str, Any]) -> dict[str, Any]:
    """One run, in a worker."""
    import torch

    from lab.trial import do

    torch.set_num_threads(1)
    changes = tuple(map(tuple, line["run"]["changes"]))
    run = Run(**{**line["run"], "changes": changes})
    assert run.key == line["key"]
    found = do(run, HERE, HELD_OUT)
    return {
        "key": run.key,
        "recorded_cpu_seconds": line["cpu_seconds"],
        "cpu_seconds": found["cpu_seconds"],
        "seconds": found["seconds"],
        "same": found["held_out"] == line["held_out"],
    }


def main() -> None:
    """The sample, and the estimate."""
    paths = sorted(HERE.glob("*.jsonl"))
    lines = [json.loads(x) for path in paths for x in path.read_text(encoding="utf-8").splitlines()]
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        sample = list(pool.map(again, lines[EVERY // 2 :: EVERY]))
    recorded = sum(line["cpu_seconds"] for line in lines) / 60
    ratio = sum(s["seconds"] for s in sample) / sum(s["recorded_cpu_seconds"] for s in sample)
    found = {
        "runs": len(lines),
        "recorded_cpu_minutes": round(recorded, 1),
        "seconds_over_recorded": round(ratio, 3),
        "estimated_minutes": round(recorded * ratio / WORKERS, 1),
        "same": f"{sum(s['same'] for s in sample)} of {len(sample)}",
        "machine": machine(1),
        "sample": sample,
    }
    (HERE / "cost.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print({name: value for name, value in found.items() if name != "sample"})


if __name__ == "__main__":
    main()
