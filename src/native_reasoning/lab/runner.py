"""Runs the lab's experiments: each run is trained, measured, and becomes one line of JSON.

A line that is there is not run again, so a lab that was stopped goes on where it was. Each run uses
one thread, and ``workers`` of them go on at once, each in a process of its own.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from native_reasoning.lab import base_path
from native_reasoning.lab.experiments import EXPERIMENTS, Run
from native_reasoning.lab.families import EXPERIMENTAL, KINDS, kind_of
from native_reasoning.lab.tasks import DIGITS, Family, make_rows

#: The seed of the held-out problems, the same for every run.
HELD_OUT_SEED = 2_000_003
#: Sums of these many digits are asked where a family has longer ones.
LENGTHS = (5, 7, 9)
#: Steps that a point of a curve is the mean of.
POINT = 10
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


@dataclass(frozen=True)
class Scale:
    """How large a lab is: held-out questions, and for a smaller one the most steps of pre-training
    and of a run, and the first how many runs of an experiment (None: all)."""

    held_out: int
    pretraining: int | None = None
    steps: int | None = None
    runs: int | None = None

    def runs_of(self, experiment: str) -> list[Run]:
        """The runs of an experiment at this scale."""
        runs = [*EXPERIMENTS[experiment].runs()][: self.runs]
        if self.steps is None:
            return runs
        return [replace(run, base=0, steps=min(self.steps, run.steps)) for run in runs]


#: Steps of pre-training, and documents of a step, by kind of base model.
PRETRAINING = {"demo": (1_800, 128), "one_sum": (1_600, 128), "three_sums": (1_200, 48)}
FULL = Scale(held_out=1_000)
SMOKE = Scale(pretraining=3, held_out=20, steps=2, runs=1)


def run_lab(
    names: Sequence[str],
    out: Path,
    scale: Scale = FULL,
    workers: int = 2,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, list[dict[str, Any]]]:
    """The results of these experiments by name, those that were missing now made.

    ``out`` holds a file of lines for each experiment, and in ``bases`` the base models.
    """
    wanted = {name: scale.runs_of(name) for name in names}
    there = {name: {found["key"] for found in read_results(out, name)} for name in names}
    todo = [(n, run) for n, runs in wanted.items() for run in runs if run.key not in there[n]]
    bases = sorted({base_of(run) for _, run in todo})
    began = time.perf_counter()
    for base in _as_done(workers, _pretrain, [(b, out, scale) for b in bases]):
        say(f"base model {base}")
    jobs = [(name, run, out, scale.held_out) for name, run in todo]
    for i, (name, result) in enumerate(_as_done(workers, _named, jobs), start=1):
        with (out / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        minutes = (time.perf_counter() - began) / 60
        say(f"{i}/{len(todo)} {minutes:.0f} min  {name}: {_told(result)}")
    found = {name: {r["key"]: r for r in read_results(out, name)} for name in names}
    return {n: [found[n][run.key] for run in runs] for n, runs in wanted.items()}


def read_results(out: Path, name: str) -> list[dict[str, Any]]:
    """The lines of an experiment; a last line that a kill cut short is left out, and run again."""
    path = out / f"{name}.jsonl"
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def _as_done(workers: int, work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator:
    """What comes of each job, as it comes; jobs begin in order, in this process for one worker."""
    if workers == 1 or len(jobs) < 2:
        yield from (work(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _quiet) as pool:
        futures = [pool.submit(work, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    """A worker begins: bars of several would mix."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def _one_thread() -> Iterator[None]:
    """A model this small is not worth sharing out, and results hang on the number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pretrain(base: tuple[str, int], out: Path, scale: Scale) -> str:
    """Makes a base model that is not there yet; returns its folder."""
    from native_reasoning.lab.pretrain import Recipe, pretrain

    kind, seed = base
    folder = base_folder(out, base)
    if not folder.exists():
        families, longest = KINDS[kind]
        steps, documents = PRETRAINING[kind]
        recipe = Recipe(steps=scale.pretraining or steps, batch_size=documents)
        part = folder.with_name(folder.name + ".part")
        with _one_thread():
            pretrain(part, tuple(families.values()), seed, recipe, longest)
        part.rename(folder)
    return str(folder)


def _named(name: str, run: Run, out: Path, held_out: int) -> tuple[str, dict[str, Any]]:
    with _one_thread():
        return name, do(run, out, held_out)


def do(run: Run, out: Path, held_out: int) -> dict[str, Any]:
    """Trains and measures one run, in a temporary folder.

    The result has the run, its key, what it cost in seconds, the curves of training (a point for
    every ``POINT`` steps), and what ``measure.measure`` says of each held-out set.
    """
    from native_reasoning.config import NRTConfig
    from native_reasoning.lab.controls import watched
    from native_reasoning.lab.measure import measure
    from native_reasoning.resume import machine
    from native_reasoning.runs import load_run
    from native_reasoning.trainer import NRTTrainer

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
    """Kind and seed of the run's base model."""
    return run.kind or kind_of(run.family), run.base


def base_folder(out: Path, base: tuple[str, int]) -> Path:
    """Where a base model lies; the first of the demo's kind is the embedded one."""
    kind, seed = base
    if base == ("demo", 0):
        return base_path()
    return out / "bases" / f"{kind}-{seed}"


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


def _told(result: dict[str, Any]) -> str:
    run, (first, *_) = result["run"], result["held_out"].values()
    return (
        f"{run['family']} {run['preset']} base {run['base']} seed {run['seed']}: "
        f"{first['accuracy']:.3f}, {result['seconds']:.0f} s"
    )
