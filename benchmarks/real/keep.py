"""Keeps what a comparison of ``nrt compare`` came to: ``python benchmarks/real/keep.py RUNS JSON``.

The JSON has compare.json and compare.yaml of the folder RUNS and, of each run, the metrics of each
step, its seconds, the scores of each held-out question, and the traces of one question each time
that it was asked. The weights and all else may go. Runs that only searched for a rate are kept
too, where they lie in the folder.
"""

import json
import sys
from pathlib import Path

import yaml

from native_reasoning.records.folder import read_config, read_metrics, read_timings, read_traces
from native_reasoning.training.resume import machine

STEP = (
    *("reward", "answer_logp", "uplift", "trace_entropy", "distinct", "trace_length", "closed"),
    *("flat_groups", "grad_norm"),
)
QUESTION = ("accuracy", "accuracy_greedy", "accuracy_no_think", "pass_at_k", "answer_logp")


def kept(run: Path) -> dict:
    """What is kept of a run folder."""
    metrics = [line for line in read_metrics(run) if "loss" in line]
    asked = list[dict]()
    if (run / "questions.jsonl").exists():
        lines = (run / "questions.jsonl").read_text(encoding="utf-8").splitlines()
        asked = [json.loads(line) for line in lines]
    last = max((line["step"] for line in asked), default=None)
    found = {
        "learning_rate": read_config(run)["config"]["learning_rate"],
        "steps": {
            name: [round(line[name], 4) for line in metrics]
            for name in STEP
            if metrics and name in metrics[0]
        },
        "step_seconds": [t["step_seconds"] for t in read_timings(run) if "step_seconds" in t],
        "questions": {
            name: [line[name] for line in asked if line["step"] == last] for name in QUESTION
        },
    }
    if (run / "traces").is_dir():
        found["traces"] = again(read_traces(run).to_pylist())
    return found


def again(rows: list[dict]) -> list[dict]:
    """The traces of the first question that was asked twice, each time."""
    steps: dict[int, list[int]] = {}
    for row in rows:
        if row["step"] not in steps.setdefault(row["row_id"], []):
            steps[row["row_id"]].append(row["step"])
    chosen = next((row for row, times in steps.items() if len(times) > 1), None)
    columns = ("step", "prompt", "trace", "answer", "advantage")
    return [{k: row[k] for k in columns} for row in rows if row["row_id"] == chosen]


def main(folder: Path, out: Path) -> None:
    """Writes the file."""
    result = {
        "compare": json.loads((folder / "compare.json").read_text(encoding="utf-8")),
        "settings": yaml.safe_load((folder / "compare.yaml").read_text(encoding="utf-8")),
        "runs": {
            run.name: kept(run)
            for run in sorted(folder.iterdir())
            if (run / "metrics.jsonl").exists()
        },
        "machine": machine(1),
    }
    out.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
