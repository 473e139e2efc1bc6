"""One run folder as one JSON object: means per step, evaluations, times, five traces.

The five traces are chosen by place, not by content: the first trace of each of the last four rows
of the last step, and the second of the last row. Questions are left out: they are the data set's.
"""

import json
import os
import platform
import statistics
import sys
from importlib.metadata import version

from native_reasoning.records.folder import read_config, read_metrics, read_timings, read_traces

KEPT = ("reward", "reward_baseline", "uplift", "trace_length", "closed", "ended", "empty", "helped")


def main(folder: str) -> None:
    metrics, timings = read_metrics(folder), read_timings(folder)
    steps = [m for m in metrics if "loss" in m]
    evaluations = [m for m in metrics if "eval_accuracy" in m]
    rows = read_traces(folder).to_pylist()
    last = [r for r in rows if r["step"] == steps[-1]["step"]]
    chosen = [r for r in last if r["k"] == 0][-4:] + [r for r in last if r["k"] == 1][-1:]
    names = ("row_id", "k", "trace", "closed", "answer", "reward", "baseline_reward", "advantage")
    seconds = [t["step_seconds"] for t in timings if "step_seconds" in t]
    rollout = [t["rollout_seconds"] for t in timings if "rollout_seconds" in t]
    written = {
        "command": "benchmarks/smollm2/run.sh",
        "config": read_config(folder)["config"],
        "machine": {"cpu_count": os.cpu_count(), "system": platform.platform()},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "seconds_per_step": {"median": statistics.median(seconds), "max": max(seconds)},
        "rollout_seconds_per_step": {"median": statistics.median(rollout)},
        "steps": [{"step": m["step"], **{k: m[k] for k in KEPT if k in m}} for m in steps],
        "evaluations": evaluations,
        "traces": [{name: r[name] for name in names} for r in chosen],
    }
    json.dump(written, sys.stdout, indent=1, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main(sys.argv[1])
