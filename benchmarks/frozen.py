"""What asking the first policy costs: ``python benchmarks/frozen.py [--model FOLDER]``.

RLPR's baseline is the first policy's log-probability of the answer after an empty trace. Trains the
lab's base on ``short_answer``, and with ``--model`` that one on questions of a real length; sets
the process time of ``Judges._ask`` against that of ``train()``. Writes frozen.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from native_reasoning import NRTConfig, NRTTrainer
from native_reasoning.demo import base_path, make_rows
from native_reasoning.scoring.judges import Judges

RESULTS = Path(__file__).with_suffix(".json")
LAB = {
    "max_steps": 30,
    "per_device_train_batch_size": 16,
    "num_generations": 8,
    "max_trace_length": 12,
    "max_answer_length": 24,
}
REAL = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "max_prompt_length": 256,
    "max_trace_length": 64,
    "max_answer_length": 64,
}


def share(model: str, rows: list[dict[str, str]], settings: dict[str, Any]) -> dict[str, Any]:
    """The share of one run's process time that asking the first policy takes."""
    asked, ask = 0.0, Judges._ask

    def timed(self: Judges, *args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        began = time.process_time()
        try:
            return ask(self, *args, **kwargs)
        finally:
            asked += time.process_time() - began

    with tempfile.TemporaryDirectory() as folder:
        args = NRTConfig(
            output_dir=f"{folder}/run",
            preset="rlpr",
            gradient_accumulation_steps=1,
            save_strategy="no",
            diagnostics_steps=0,
            bf16=False,
            use_cpu=True,
            **settings,
        )
        trainer = NRTTrainer(model, args, rows)
        Judges._ask = timed  # type: ignore[method-assign]
        try:
            began = time.process_time()
            trainer.train()
            whole = time.process_time() - began
        finally:
            Judges._ask = ask  # type: ignore[method-assign]
    return {"share": round(asked / whole, 4), "asked_s": asked, "train_s": whole, **settings}


def questions(count: int) -> list[dict[str, str]]:
    """Questions of about 70 tokens."""
    text = "A shop has boxes of apples, and in each box there are as many as fit. " * 4
    asked = {n: f"{text} How many are in {n} boxes of {n + 3}?" for n in range(2, count + 2)}
    return [{"question": q, "answer": str(n * (n + 3))} for n, q in asked.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", help="the folder of a real model")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = make_rows("short_answer", "train", 30 * 16, seed=0)
    found = {"lab": share(str(base_path()), rows, LAB)}
    for traces in (4, 8) if given.model else ():
        settings = {**REAL, "num_generations": traces}
        found[f"real, {traces} traces"] = share(given.model, questions(4), settings)
    for name, values in found.items():
        print(f"{name:16} {values['share']:.1%}")
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
