"""Do short runs still end in the same bits? For changes that are to change nothing.

``python benchmarks/same.py`` makes six runs on the embedded base (about two minutes on one core)
and compares what each left behind with ``same.json``: every metric by name, every trace, and the
final weights. Exit code 1 where something differs. ``--write`` writes ``same.json`` anew.

Bits belong to a processor and to versions. On another machine the file is made first, from the
commit that is compared with: ``git worktree add ../before COMMIT``, then in that folder
``PYTHONPATH=src python benchmarks/same.py --write``, and its ``same.json`` is copied here.
"""

import argparse
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from native_reasoning.demo import base_path, make_rows
from native_reasoning.records.folder import read_held_out, read_metrics, read_traces

RESULT = Path(__file__).with_suffix(".json")
COMMON = (
    "--use-cpu --max-steps 6 --save-steps 1 --save-total-limit 6 --num-generations 4 "
    "--per-device-train-batch-size 4 --gradient-accumulation-steps 2 --max-trace-length 12 "
    "--max-answer-length 16 --learning-rate 1e-3 --warmup-steps 0 --diagnostics-steps 2"
)
#: The flags of each run. The last one is killed in the middle of a rollout's four updates.
RUNS = {
    "nrt-ws": "--preset nrt-ws",
    "rlpr": "--preset rlpr",
    "nover": "--preset nover",
    "sft": "--preset sft",
    "lora": "--preset nrt-ws --use-peft --lora-r 4",
    "four-updates": "--objective.answer-weight exact --steps-per-generation 4 --num-iterations 2",
}
KILLED, KILLED_AT = "four-updates", "checkpoint-3"


def main() -> int:
    """Runs, compares and tells; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write same.json anew")
    write = parser.parse_args().write
    with TemporaryDirectory() as place:
        found = {"machine": machine(), "runs": {name: run(name, Path(place)) for name in RUNS}}
    if write:
        RESULT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    known = json.loads(RESULT.read_text(encoding="utf-8"))
    if known["machine"] != found["machine"]:
        print(f"{RESULT.name} is of another machine: {known['machine']}; {found['machine']} here")
    changed = differences(known["runs"], found["runs"])
    print("\n".join(changed) or f"{len(RUNS)} runs: the same metrics, traces and weights")
    return int(bool(changed))


def run(name: str, place: Path) -> dict[str, Any]:
    """What one run left behind, as checksums."""
    for part, count, seed in (("train", 48, 1), ("heldout", 12, 2)):
        rows = make_rows("short_answer", part, count, seed)
        (place / f"{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    out = place / name
    begin = f"--model {base_path()} --data {place / 'train.jsonl'} --eval-data "
    begin += f"{place / 'heldout.jsonl'} --out {out} {COMMON} {RUNS[name]}"
    if name == KILLED:
        process = nrt(begin)
        while not (out / KILLED_AT).exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        begin = f"--out {out} --resume"
    process = nrt(begin)
    _, told = process.communicate()
    if process.returncode:
        sys.exit(told)
    metrics = defaultdict(list)
    for line in read_metrics(out):
        for key, value in line.items():
            metrics[key].append(value)
    return {
        "metrics": {key: checksum(values) for key, values in metrics.items()},
        "traces": checksum(read_traces(out).to_pylist()),
        "held_out": checksum(read_held_out(out).to_pylist()),
        "weights": hashlib.sha256((out / "final" / "model.safetensors").read_bytes()).hexdigest(),
    }


def nrt(arguments: str) -> subprocess.Popen[str]:
    """``nrt train`` as a process of its own, on one thread."""
    command = [sys.executable, "-m", "native_reasoning.cli", "train", *arguments.split()]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, text=True, **pipes)


def checksum(value: Any) -> str:
    """Of any values that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each thing that is not as it was."""
    told = []
    for name in RUNS:
        old, new = ({**run, **run["metrics"]} for run in (before[name], now[name]))
        for what in sorted({*old, *new} - {"metrics"}):
            if old.get(what) != new.get(what):
                how = "is new" if what not in old else "is gone" if what not in new else "differs"
                told.append(f"{name}: {what} {how}")
    return told


def machine() -> dict[str, str]:
    """What bits depend on besides the source."""
    import torch
    import transformers

    cpu = torch.backends.cpu.get_cpu_capability()
    return {
        "cpu": f"{platform.machine()} {cpu}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
