"""What a step costs beside forward, backward and sampling: ``python benchmarks/overhead.py --model
FOLDER``.

Trains a real model on one process and on two (gloo), and adds up the seconds of rank 0's stages
(timings.jsonl), without the first step. *beside* is everything but sampling, scoring (the forward)
and backward: the objective, the optimiser's step, records, waiting for other ranks, and the rest.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_suffix(".json")
#: Stages that are the work itself. Diagnostics are forwards too.
WORK = ("sampling", "scoring", "backward", "diagnostics")
STEPS = 4


def train(model: str, processes: int, folder: Path) -> list[dict[str, float]]:
    """Seconds of each step by stage, of 4 prompts of 8 traces over all processes."""
    data = folder / "qa.jsonl"
    rows = [{"question": f"What is {i} plus {i + 3}?", "answer": str(2 * i + 3)} for i in range(32)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = folder / "run"
    command = [sys.executable, "-m"]
    command += ["torch.distributed.run", "--nproc_per_node", str(processes), "-m"]
    command += ["native_reasoning.cli", "train", "--model", model, "--data", str(data)]
    command += [
        "--out",
        str(run),
        "--use-cpu",
        "--max-steps",
        str(STEPS + 1),
        "--save-steps",
        "100",
    ]
    command += ["--gradient-accumulation-steps", "1", "--max-trace-length", "48"]
    command += ["--per-device-train-batch-size", str(4 // processes)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    return [line for line in lines if "step_seconds" in line][1:]


def shares(steps: list[dict[str, float]]) -> dict[str, Any]:
    """Of the whole, each stage's share, and that of what is beside the work."""
    whole = sum(step["step_seconds"] for step in steps)
    names = [n for n in steps[0] if n.endswith("_seconds")]
    parts = {n: sum(s[n] for s in steps) / whole for n in names if n not in BOTH}
    work = sum(parts.get(f"{name}_seconds", 0.0) for name in WORK)
    return {
        "seconds_per_step": round(whole / len(steps), 2),
        "beside": round(1 - work, 4),
        **{name.removesuffix("_seconds"): round(x, 4) for name, x in parts.items()},
    }


#: Sums of others.
BOTH = ("step_seconds", "rollout_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True, help="the folder of a model")
    given = parser.parse_args()
    found = {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            found[f"{processes} processes"] = shares(train(given.model, processes, Path(folder)))
        print(processes, found[f"{processes} processes"], flush=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
