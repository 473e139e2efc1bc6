"""Runs the lab's experiments: each run is trained, measured, and becomes one line of JSON.

A line that is there is not run again, so a lab that was stopped goes on where it was. Each run uses
one thread, and ``workers`` of them go on at once, each in a process of its own.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from native_reasoning.lab.experiments import EXPERIMENTS, Run
from native_reasoning.lab.families import KINDS
from native_reasoning.lab.pretrain import Recipe, pretrain
from native_reasoning.lab.trial import base_folder, base_of, do, told


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
#: Seeds of pre-training: of one sum the third is not 2, whose model could not read the digit off a
#: true running sum in the three families in which words follow it.
BASE_SEEDS = {"demo": (0, 1, 2), "one_sum": (0, 1, 3), "three_sums": (0, 1, 2)}
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
        say(f"{i}/{len(todo)} {minutes:.0f} min  {name}: {told(result)}")
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
    logging.disable_progress_bar()


@contextmanager
def _one_thread() -> Iterator[None]:
    """A model this small is not worth sharing out, and results hang on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pretrain(base: tuple[str, int], out: Path, scale: Scale) -> str:
    """Makes a base model that is not there yet; returns its folder."""
    kind, number = base
    folder = base_folder(out, base)
    if not folder.exists():
        families, longest = KINDS[kind]
        steps, documents = PRETRAINING[kind]
        recipe = Recipe(steps=scale.pretraining or steps, batch_size=documents)
        part = folder.with_name(folder.name + ".part")
        with _one_thread():
            seed = BASE_SEEDS[kind][number]
            pretrain(part, tuple(families.values()), seed, recipe, longest)
        part.rename(folder)
    return str(folder)


def _named(name: str, run: Run, out: Path, held_out: int) -> tuple[str, dict[str, Any]]:
    with _one_thread():
        return name, do(run, out, held_out)
