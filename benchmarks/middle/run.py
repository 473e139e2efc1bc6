"""Question-answer pairs alone, on harder problems: ``python benchmarks/middle/run.py METHOD``.

Trains the base of pretrain.py with one method and evaluates it on held-out problems of each family,
with and without thinking, sampled at temperature 1 and greedily; ``runs/METHOD-mixed-SEED.json``
has everything. A run whose file is there is not done again. ``--all`` goes through the whole table,
what matters most first. ``--family dates`` trains on one family, and evaluates on all: transfer.
``--candidates`` goes through those for the default objective (../lab/candidates.py).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from families import FAMILIES, Problem
from tasks import HARD, problems, rows, trace_kind

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.candidates import CANDIDATES

from native_reasoning import NRTConfig, NRTTrainer
from native_reasoning.config.settings import SETTINGS
from native_reasoning.evaluation.grading import bootstrap_interval
from native_reasoning.evaluation.held_out import Outcome, scores
from native_reasoning.training.resume import machine

RUNS = Path(__file__).with_name("runs")
#: Of base, sft and nrt-ws; a rival has the first three.
SEEDS = (0, 1, 2, 3, 4)
RIVALS = ("verifree", "rlpr", "avg-logp", "jepo", "nover", "dro", "latro")
HELD_OUT_SEED = "the held-out problems"
ACCURACIES = ("accuracy", "accuracy_greedy", "accuracy_no_think", "accuracy_no_think_greedy")
NUMBERS = (*ACCURACIES, "answer_logp", "answer_logp_no_think", "uplift", "trace_length", "closed")


@dataclass(frozen=True)
class Run:
    """One run: ``method`` is a preset or a candidate, ``family`` one of the five or *mixed*;
    ``split`` is *heldout*, or *tune* where something is still to be chosen. ``learning_rate`` None
    is the method's from ``RATES``, ``answer_coef`` None the preset's."""

    method: str
    seed: int = 0
    family: str = "mixed"
    steps: int = 100
    split: str = "heldout"
    learning_rate: float | None = None
    per_family: int = 60
    answer_coef: float | None = None

    @property
    def name(self) -> str:
        """The name of the run's file: everything that is not as in the table is in it."""
        parts = [self.method, self.family, str(self.seed)]
        if self.split != "heldout":
            parts += [self.split, f"{self.rate:g}"]
        if self.split != "heldout" or self.steps != Run.steps:
            parts += [str(self.steps)]
        if self.answer_coef is not None:
            parts += [f"coef{self.answer_coef:g}"]
        return "-".join(parts)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or RATES.get(self.method, RATES["nrt-ws"])


#: Chosen on the tuning split (README.md); a rival has the default's.
RATES = {"nrt-ws": 1e-4, "sft": 1e-4}
PROMPTS, TRACES, LONGEST_TRACE, LONGEST_ANSWER = 10, 8, 52, 8


def table() -> list[Run]:
    """Every run of the table once, what matters most first."""
    main, shared = ("base", "sft", "nrt-ws"), tuple(f"{name}@shared" for name in RIVALS)
    few = SEEDS[:3]
    runs = [Run(method, seed) for seed in few for method in main]
    runs += [Run(method, seed) for seed in few for method in ("exact", "verifree")]
    runs += [Run("nrt-ws", 0, answer_coef=coefficient) for coefficient in (0.0, 0.1)]
    runs += [Run(method, 0) for method in RIVALS]
    runs += [Run(method, 0, family) for method in ("sft", "nrt-ws") for family in FAMILIES]
    runs += [Run(method, seed) for seed in SEEDS for method in main]
    runs += [Run(method, seed) for seed in few for method in (*RIVALS, *shared)]
    return list(dict.fromkeys(runs))


def trainer_of(
    run: Run, base: Path, folder: Path, questions: Sequence[Problem], **changes: Any
) -> NRTTrainer:
    """The trainer of a run; ``changes`` are settings in place of the table's."""
    names = tuple(FAMILIES) if run.family == "mixed" else (run.family,)
    preset, given = CANDIDATES.get(run.method, (run.method, ()))
    objective = {name: value for name, value in given if name in SETTINGS}
    changes = {name: value for name, value in given if name not in SETTINGS} | changes
    if run.answer_coef is not None:
        objective["answer_coef"] = run.answer_coef
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "preset": "sft" if preset == "base" else preset,
        "seed": run.seed,
        "max_steps": run.steps,
        "per_device_train_batch_size": PROMPTS,
        "gradient_accumulation_steps": 1,
        "num_generations": TRACES,
        "max_trace_length": LONGEST_TRACE,
        "max_answer_length": LONGEST_ANSWER,
        "eval_samples": len(questions),
        "learning_rate": run.rate,
        "objective": objective,
        "warmup_steps": 10,
        "save_strategy": "no",
        "use_cpu": True,
    }
    train = problems(names, HARD, "train", PROMPTS * run.steps, run.seed)
    return NRTTrainer(
        model=str(base),
        args=NRTConfig(**{**settings, **changes}),
        train_dataset=rows(train),
        eval_dataset=rows(questions),
    )


def do(run: Run, base: Path, folder: Path) -> dict[str, Any]:
    """Trains, evaluates, and returns what the run's file holds. ``folder`` must be empty."""
    questions = problems(tuple(FAMILIES), HARD, run.split, 5 * run.per_family, HELD_OUT_SEED)
    trainer = trainer_of(run, base, folder, questions)
    began = time.perf_counter()
    if run.method != "base":
        trainer.train()
        if trainer.checkpoints.signals.received is not None:
            raise KeyboardInterrupt  # a run that was cut short has no file
    trained = time.perf_counter()
    outcomes = trainer.evaluator.outcomes(trainer.eval_groups)
    return {
        **asdict(replace(run, learning_rate=run.rate)),
        "prompts": PROMPTS,
        "traces": TRACES,
        "seconds": round(trained - began, 1),
        "evaluation_seconds": round(time.perf_counter() - trained, 1),
        "machine": machine(1),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "pretraining": pretraining(base),
        "families": per_family(questions, outcomes),
        "curve": curve(folder / "run" / "metrics.jsonl"),
    }


def per_family(
    questions: Sequence[Problem], outcomes: Sequence[Outcome]
) -> dict[str, dict[str, Any]]:
    """For each family: means over its questions, of the accuracies with 95 % bootstrap intervals,
    accuracies by steps, what the sampled traces were (shares), and two of them as text."""
    found = {}
    for family in FAMILIES:
        pairs = [p for p in zip(questions, outcomes, strict=True) if p[0].family == family]
        cells = [scores(outcome) for _, outcome in pairs]
        ends = {}
        for name in ACCURACIES:
            interval = bootstrap_interval([cell[name] for cell in cells])
            ends |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        found[family] = {
            **means(cells),
            **{name: round(value, 4) for name, value in ends.items()},
            "questions": len(pairs),
            "by_steps": by_steps(pairs),
            "traces": trace_shares(pairs),
            "samples": [
                {"question": p.question, "trace": o.traces[0], "answer": o.answers[0]}
                for p, o in pairs[:2]
            ],
        }
    return found


def means(cells: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each of ``NUMBERS``."""
    return {name: round(fmean(cell[name] for cell in cells), 4) for name in NUMBERS}


def by_steps(pairs: Sequence[tuple[Problem, Outcome]]) -> dict[str, dict[str, float]]:
    """Accuracies for each number of steps."""
    found = {}
    for steps in sorted({problem.steps for problem, _ in pairs}):
        cells = [scores(outcome) for problem, outcome in pairs if problem.steps == steps]
        found[str(steps)] = {name: means(cells)[name] for name in ACCURACIES}
    return found


def trace_shares(pairs: Sequence[tuple[Problem, Outcome]]) -> dict[str, float]:
    """Shares of ``trace_kind`` over all sampled traces."""
    kinds = [trace_kind(problem, text) for problem, outcome in pairs for text in outcome.traces]
    return {kind: round(kinds.count(kind) / len(kinds), 4) for kind in sorted(set(kinds))}


def curve(path: Path) -> dict[str, list[float]]:
    """Means over every ten steps of what the run logged: reward, uplift and length of traces."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {}
    for name in ("loss", "reward", "reward_baseline", "uplift", "trace_length"):
        values = [line[name] for line in lines if line.get(name) is not None]
        found[name] = [round(fmean(values[i : i + 10]), 4) for i in range(0, len(values), 10)]
    return found


def pretraining(base: Path) -> dict[str, Any]:
    """What made the base."""
    return json.loads((base / "pretraining.json").read_text(encoding="utf-8"))


def save(run: Run, base: Path, out: Path) -> None:
    """Does the run unless its file is there, and writes the file."""
    path, made = out / f"{run.name}.json", pretraining(base)
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["pretraining"] != made:
            raise SystemExit(f"{path} is of another base: name another folder with --out")
        return
    with tempfile.TemporaryDirectory() as folder:
        found = do(run, base, Path(folder))
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    right = {name: (x["accuracy"], x["accuracy_no_think"]) for name, x in found["families"].items()}
    print(run.name, found["seconds"], right, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "method", nargs="?", help="base, sft, nrt-ws, any other preset or candidate"
    )
    parser.add_argument("--all", action="store_true", help="the whole table")
    parser.add_argument("--candidates", nargs="*", metavar="NAME", help="all, or these")
    parser.add_argument("--base", type=Path, required=True, help="folder that pretrain.py made")
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", default="mixed", choices=("mixed", *FAMILIES))
    parser.add_argument("--steps", type=int, default=Run.steps)
    parser.add_argument("--split", default="heldout", choices=("heldout", "tune"))
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--answer-coef", type=float)
    options = parser.parse_args(arguments)
    if [options.method, options.all or None, options.candidates].count(None) != 2:
        parser.error("one of METHOD, --all and --candidates")
    torch.set_num_threads(1)
    o = options
    one = Run(o.method or "base", o.seed, o.family, o.steps, o.split, o.learning_rate)
    one = replace(one, answer_coef=o.answer_coef)
    runs = table() if o.all else [one]
    if o.candidates is not None:
        runs = [replace(one, method=name) for name in o.candidates or CANDIDATES]
    for run in runs:
        save(run, o.base, o.out)


if __name__ == "__main__":
    main()
