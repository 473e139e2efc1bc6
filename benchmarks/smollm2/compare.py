"""A real model on two small sets: base, SFT and rewards of thinking at equal optimiser steps.

    python benchmarks/smollm2/compare.py --model MODEL --gcd FILE --pubmedqa FILE

MODEL: the folder made by ../shared/tools/smollm2.py; FILE: made by gcd.py, and
../shared/data/pubmedqa/train.jsonl. ``runs/SET-METHOD-SEED.json`` has everything of a run; one
whose file is there is not done again, and one that was stopped goes on from its checkpoint in
``--work``. ``table.py`` makes the table.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from native_reasoning import NRTConfig, NRTTrainer
from native_reasoning.evaluation.held_out import scores
from native_reasoning.records.folder import read_metrics
from native_reasoning.training.resume import machine

RUNS = Path(__file__).with_name("runs")
METHODS, SEEDS = ("base", "sft", "nrt-ws", "verifree"), (0, 1, 2)
PROMPTS, TRACES, RATE, WARMUP, FORMAT = 4, 4, 1e-5, 5, 8
NUMBERS = (
    *("accuracy", "accuracy_greedy", "accuracy_no_think", "accuracy_no_think_greedy"),
    *("answer_logp", "answer_logp_no_think", "trace_length", "closed"),
)
CURVES = ("loss", "reward", "reward_baseline", "uplift", "trace_length", "empty", "closed")


@dataclass(frozen=True)
class Set:
    """Columns of a file, how many of its last rows are held out, the longest answer in tokens, and
    the optimiser steps of a run."""

    question: str
    answer: str
    held_out: int
    longest_answer: int
    steps: int


SETS = {
    "gcd": Set("question", "answer", held_out=80, longest_answer=4, steps=40),
    "pubmedqa": Set("QUESTION", "LONG_ANSWER", held_out=40, longest_answer=96, steps=24),
}


@dataclass(frozen=True)
class Run:
    """One run."""

    data: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.data}-{self.method}-{self.seed}"


def table() -> Iterator[Run]:
    """All runs, one seed of everything first; the base, which is not trained, has one."""
    for seed in SEEDS:
        for data in SETS:
            yield from (Run(data, m, seed) for m in METHODS if m != "base" or seed == SEEDS[0])


def rows_of(data: Set, path: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out rows."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [{"question": x[data.question], "answer": x[data.answer]} for x in lines]
    return rows[: -data.held_out], rows[-data.held_out :]


def do(run: Run, model: str, path: Path, folder: Path) -> dict[str, Any]:
    """Trains, or goes on, evaluates, and returns what the run's file holds."""
    data = SETS[run.data]
    train, held_out = rows_of(data, path)
    args = NRTConfig(
        output_dir=str(folder),
        preset="sft" if run.method == "base" else run.method,
        seed=run.seed,
        max_steps=data.steps,
        per_device_train_batch_size=PROMPTS,
        gradient_accumulation_steps=1,
        num_generations=TRACES,
        max_trace_length=40,
        max_answer_length=data.longest_answer,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        format_warmup_steps=0 if run.method in ("base", "sft") else FORMAT,
        boundary="text",
        boundary_text="The answer is",
        save_steps=10,
        save_total_limit=1,
        per_device_eval_batch_size=25,
        eval_samples=len(held_out),
        use_cpu=True,
    )
    trainer = NRTTrainer(model=model, args=args, train_dataset=train, eval_dataset=held_out)
    if run.method != "base":
        trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
        if trainer.checkpoints.signals.received is not None:
            raise KeyboardInterrupt
    began = time.perf_counter()
    outcomes = trainer.evaluator.outcomes(trainer.eval_groups)
    metrics = [m for m in read_metrics(folder) if "loss" in m] if run.method != "base" else []
    return {
        **asdict(run),
        "steps": data.steps,
        "prompts": PROMPTS,
        "traces": TRACES,
        "learning_rate": RATE,
        "evaluation_seconds": round(time.perf_counter() - began, 1),
        "machine": machine(1),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "questions": [kept(scores(outcome)) for outcome in outcomes],
        "curves": {n: [m[n] for m in metrics] for n in CURVES if metrics and n in metrics[0]},
        "samples": [
            {"reference": o.reference, "trace": o.traces[0], "answer": o.answers[0]}
            for o in outcomes[:5]
        ],
    }


def kept(numbers: dict[str, float]) -> dict[str, float]:
    """Those of ``NUMBERS``."""
    return {name: round(numbers[name], 4) for name in NUMBERS}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--gcd", type=Path, required=True)
    parser.add_argument("--pubmedqa", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/smollm2"), help="run folders")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    paths = {"gcd": options.gcd, "pubmedqa": options.pubmedqa}
    RUNS.mkdir(exist_ok=True)
    for run in table():
        path = RUNS / f"{run.name}.json"
        if not path.exists():
            began = time.perf_counter()
            found = do(run, options.model, paths[run.data], options.work / run.name)
            path.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
            print(run.name, f"{time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
