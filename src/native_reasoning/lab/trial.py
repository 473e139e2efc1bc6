"""One run of the lab: trained on rows of its own, measured on held-out ones, told as JSON."""

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from native_reasoning.config import NRTConfig
from native_reasoning.lab import base_path
from native_reasoning.lab.controls import watched
from native_reasoning.lab.experiments import Run
from native_reasoning.lab.families import EXPERIMENTAL, kind_of
from native_reasoning.lab.measure import POINT, measure
from native_reasoning.lab.tasks import DIGITS, Family, make_rows
from native_reasoning.resume import machine
from native_reasoning.runs import load_run
from native_reasoning.trainer import NRTTrainer

#: The seed of the held-out problems, the same for every run.
HELD_OUT_SEED = 2_000_003
#: Sums of these many digits are asked where a family has longer ones.
LENGTHS = (5, 7, 9)
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "num_generations": 8,
    "max_trace_length": 16,
    "max_answer_length": 16,
    "learning_rate": 5e-4,
    "warmup_steps": 0,
    "save_strategy": "no",
    "record_traces": False,
    "logging_steps": 1,
    "diagnostics_steps": 50,
    "use_cpu": True,
}
#: Longer questions and answers, fewer of them at once.
OF_THREE_SUMS = {
    "per_device_train_batch_size": 8,
    "max_trace_length": 24,
    "max_answer_length": 120,
}
CURVES = ("reward", "reward_baseline", "trace_length", "empty", "trace_entropy", "uplift")


def do(run: Run, out: Path, held_out: int) -> dict[str, Any]:
    """Trains and measures one run, in a temporary folder.

    The result has the run, its key, what it cost in seconds, the curves of training (a point for
    every ``POINT`` steps), and what ``measure.measure`` says of each held-out set.
    """
    families = [EXPERIMENTAL[name] for name in run.family.split("+")]
    held_out_sets = _held_out_sets(families, held_out)
    began, busy = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        args = NRTConfig(output_dir=folder + "/run", **_settings(run))
        objective = watched(args.resolved_objective(), families[0].hard, run.control)
        trainer = NRTTrainer(
            model=str(base_folder(out, base_of(run))),
            args=args,
            train_dataset=_training_rows(run, families, args.per_device_train_batch_size),
            eval_dataset=[row for _, _, rows in held_out_sets for row in rows],
            objective=objective,
        )
        trainer.train()
        metrics = load_run(folder + "/run").metrics
    curves = {name: _points(metrics[name].tolist()) for name in CURVES if name in metrics}
    curves["hard"] = _points([with_trace for with_trace, _ in objective.seen])
    curves["hard_no_think"] = _points([without for _, without in objective.seen])
    outcomes = trainer.outcomes(trainer.eval_groups)
    measured, first = {}, 0
    for label, family, rows in held_out_sets:
        measured[label] = measure(outcomes[first : first + len(rows)], family)
        first += len(rows)
    return {
        "run": asdict(run),
        "key": run.key,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
        "specificity": _last(metrics, "specificity"),
        "collapse": _last(metrics, "collapse"),
        "curves": curves,
        "held_out": measured,
        "made": {
            "date": time.strftime("%Y-%m-%d"),
            **{name: version(name) for name in ("torch", "transformers")},
            "machine": machine(1),
        },
    }


def base_of(run: Run) -> tuple[str, int]:
    """Kind and number of the run's base model."""
    return run.kind or kind_of(run.family), run.base


def base_folder(out: Path, base: tuple[str, int]) -> Path:
    """Where a base model lies; the first of the demo's kind is the embedded one."""
    kind, number = base
    if base == ("demo", 0):
        return base_path()
    return out / "bases" / f"{kind}-{number}"


def _settings(run: Run) -> dict[str, Any]:
    kind, _ = base_of(run)
    settings = {**SETTINGS, **(OF_THREE_SUMS if kind == "three_sums" else {})}
    settings |= {"preset": run.preset, "seed": run.seed, "max_steps": run.steps}
    settings |= {"per_device_eval_batch_size": 1_000, "eval_samples": 10_000}
    return {**settings, **dict(run.changes)}


def _training_rows(run: Run, families: Sequence[Family], prompts: int) -> list[dict[str, str]]:
    """A row for every prompt of the run, so that none comes twice; families in turn."""
    each = -(-run.steps * prompts // len(families))
    sets = [make_rows(family, "train", each, run.seed) for family in families]
    rows = [row for rows in zip(*sets, strict=True) for row in rows]
    rng = random.Random(f"noise/{run.seed}")
    return [_with_random_digit(row, rng) if rng.random() < run.noise else row for row in rows]


def _with_random_digit(row: dict[str, str], rng: random.Random) -> dict[str, str]:
    words = [rng.choice("0123456789") if word.isdigit() else word for word in row["answer"].split()]
    return {**row, "answer": " ".join(words)}


def _held_out_sets(
    families: Sequence[Family], n: int
) -> list[tuple[str, Family, list[dict[str, str]]]]:
    """Label, family and rows of each set that a run is measured on."""
    return [
        (label, family, make_rows(family, "heldout", n, HELD_OUT_SEED, digits))
        for family in families
        for label, digits in (
            [(f"{d} digits", d) for d in LENGTHS]
            if len(family.lengths) > 1
            else [(family.name, DIGITS)]
        )
    ]


def _points(values: Sequence[float]) -> list[float]:
    """Means of every ``POINT`` steps."""
    cuts = [values[i : i + POINT] for i in range(0, len(values), POINT)]
    return [round(sum(cut) / len(cut), 4) for cut in cuts]


def _last(metrics: Any, name: str) -> float | None:
    if name not in metrics or metrics[name].dropna().empty:
        return None
    return round(float(metrics[name].dropna().iloc[-1]), 4)


def told(result: dict[str, Any]) -> str:
    """A result in a line."""
    run, (first, *_) = result["run"], result["held_out"].values()
    return (
        f"{run['family']} {run['preset']} base {run['base']} seed {run['seed']}: "
        f"{first['accuracy']:.3f}, {result['seconds']:.0f} s"
    )
