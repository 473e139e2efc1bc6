"""One run of the lab: trained on rows of its own, measured on held-out ones, told as JSON."""

import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lab.controls import Watched, watched
from lab.experiments import Run
from lab.families import EXPERIMENTAL, kind_of
from lab.measure import POINT, measure
from lab.tasks import DIGITS, Family, make_rows
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.settings import SETTINGS as OF_OBJECTIVE
from native_reasoning.demo import base_path
from native_reasoning.objective.credit import Objective, preset_objective
from native_reasoning.records.folder import read_metrics
from native_reasoning.records.metrics import COLLAPSE, STATES
from native_reasoning.training.resume import machine
from native_reasoning.training.trainer import NRTTrainer

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
OF_THREE_SUMS = {"per_device_train_batch_size": 8, "max_trace_length": 24, "max_answer_length": 120}
CURVES = ("reward", "reward_baseline", "trace_length", "empty", "trace_entropy", "uplift")


def do(run: Run, out: Path, held_out: int) -> dict[str, Any]:
    """Trains and measures one run, in a temporary folder.

    The result has the run and its key, the fingerprint, what it cost (seconds, sampled tokens), the
    guard's states, the last specificity, the curves of training (a point for every ``POINT``
    steps), and what ``measure.measure`` says of each held-out set. Raises KeyboardInterrupt where
    a signal ended the training.
    """
    families = _families(run)
    sets = _held_out_sets(families, held_out)
    began, busy = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        args = NRTConfig(output_dir=folder + "/run", **_arguments(run))
        args.eval_max_answer_length = args.max_answer_length  # as in all lines so far
        objective = watched(args.resolved_objective(), families[0].hard, run.control)
        trainer = NRTTrainer(
            model=str(base_folder(out, base_of(run))),
            args=args,
            train_dataset=_training_rows(run, families, args.per_device_train_batch_size),
            eval_dataset=[row for _, _, rows in sets for row in rows],
            objective=objective,
        )
        trainer.train()
        if trainer.checkpoints.signals.received is not None:
            raise KeyboardInterrupt
        metrics = [row for row in read_metrics(folder + "/run") if "loss" in row]
    samples = objective.traces == "sampled"
    outcomes = iter(trainer.evaluator.outcomes(trainer.eval_groups))
    return {
        "run": asdict(run),
        "key": run.key,
        "fingerprint": fingerprint(run, out, held_out),
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
        "sampled_tokens": _sampled_tokens(metrics, args) if samples else 0,
        "states": _states(metrics),
        "specificity": _specificity(metrics, args.diagnostics_steps),
        "curves": _curves(metrics, objective, samples),
        "held_out": {
            label: measure([next(outcomes) for _ in rows], family) for label, family, rows in sets
        },
        "made": {
            "date": time.strftime("%Y-%m-%d"),
            **{name: version(name) for name in ("native-reasoning", "torch", "transformers")},
            "machine": machine(1),
        },
    }


def fingerprint(run: Run, out: Path, held_out: int) -> str:
    """A hash of what the result depends on beside the code: the run, the lab's settings, what the
    preset changes in the objective, the families, the held-out problems, and the weights of the
    base model. A setting that no preset sets can come or go: the lines still count."""
    weights = base_folder(out, base_of(run)) / "model.safetensors"
    parts = (
        run.key,
        _settings(run),
        _objective(run.preset),
        [asdict(family) for family in _families(run)],
        (HELD_OUT_SEED, held_out, LENGTHS),
        _sha256(weights),
    )
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _objective(preset: str) -> dict[str, Any]:
    """The preset's settings of the objective that are not the defaults."""
    objective = preset_objective(preset)
    values = {f.name: (getattr(objective, f.name), f.default) for f in fields(Objective)}
    return {name: value for name, (value, default) in values.items() if value != default}


@cache
def _sha256(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _families(run: Run) -> list[Family]:
    return [EXPERIMENTAL[name] for name in run.family.split("+")]


def _sampled_tokens(metrics: Sequence[dict[str, Any]], args: NRTConfig) -> int:
    """Tokens of all traces of the run, and of the answers that were sampled behind them."""
    traces = args.per_device_train_batch_size * args.num_generations
    lengths = [row["trace_length"] + row.get("sampled_answer_length", 0.0) for row in metrics]
    return round(traces * sum(lengths))


def _states(metrics: Sequence[dict[str, Any]]) -> dict[str, str] | None:
    """The guard's worst and last state; None where nothing is guarded."""
    found = [round(row[COLLAPSE]) for row in metrics if COLLAPSE in row]
    return {"worst": STATES[max(found)], "last": STATES[found[-1]]} if found else None


def _specificity(metrics: Sequence[dict[str, Any]], every: int) -> float | None:
    """Of the last step that was looked at; None where all of its traces were empty."""
    last = 1 + (len(metrics) - 1) // every * every
    found = next((row for row in metrics if row["step"] == last), {}).get("specificity")
    return None if found is None else round(found, 4)


def _curves(
    metrics: Sequence[dict[str, Any]], objective: Watched, samples: bool
) -> dict[str, list[float]]:
    """Means of every ``POINT`` steps; those of traces where traces are sampled."""
    curves = {
        name: _points([row[name] for row in metrics])
        for name in CURVES
        if samples and all(name in row for row in metrics)
    }
    curves["hard"] = _points([with_trace for with_trace, _ in objective.seen])
    curves["hard_no_think"] = _points([without for _, without in objective.seen])
    return curves


def base_of(run: Run) -> tuple[str, int]:
    """Kind and pre-training seed of the run's base model."""
    return run.kind or kind_of(run.family), run.base


def base_folder(out: Path, base: tuple[str, int]) -> Path:
    """Where a base model lies; the first of the demo's kind is the embedded one."""
    kind, seed = base
    if base == ("demo", 0):
        return base_path()
    return out / "bases" / f"{kind}-{seed}"


def _arguments(run: Run) -> dict[str, Any]:
    """The settings as NRTConfig takes them."""
    settings = _settings(run)
    changed = {name: settings.pop(name) for name in list(settings) if name in OF_OBJECTIVE}
    return {**settings, "objective": changed}


def _settings(run: Run) -> dict[str, Any]:
    kind, _ = base_of(run)
    settings = {**SETTINGS, **(OF_THREE_SUMS if kind == "three_sums" else {})}
    settings |= {"preset": run.preset, "seed": run.seed, "max_steps": run.steps}
    settings |= {"eval_samples": 10_000}
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


def told(result: dict[str, Any]) -> str:
    """A result in a line."""
    run, (first, *_) = result["run"], result["held_out"].values()
    return (
        f"{run['family']} {run['preset']} base {run['base']} seed {run['seed']}: "
        f"{first['accuracy']:.3f}, {result['seconds']:.0f} s"
    )
