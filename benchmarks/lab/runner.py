"""Runs the lab's experiments: each run is trained, measured, and becomes one line of JSON.

A line that is there is not run again, so a lab that was stopped goes on where it was. Each run uses
one thread, and ``workers`` of them go on at once, each in a process of its own.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from lab.experiments import EXPERIMENTS, Run
from lab.families import KINDS
from lab.pretrain import Recipe, pretrain
from lab.trial import base_folder, base_of, do, fingerprint, told
from native_reasoning.config.errors import RunError


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
PRETRAINING = {"demo": (1_800, 128), "one_sum": (2_000, 128), "three_sums": (1_200, 48)}
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

    ``out`` holds a file of lines for each experiment, and in ``bases`` the base models. A line
    counts as long as its fingerprint is that of its run. Raises RunError at the end where a run
    failed.
    """
    wanted = {name: scale.runs_of(name) for name in names}
    out.mkdir(parents=True, exist_ok=True)
    bases = sorted({base_of(run) for runs in wanted.values() for run in runs})
    for base in _as_done(workers, _pretrain, [(b, out, scale) for b in bases], say):
        say(f"base model {base}")
    found = {name: _valid(name, runs, out, scale) for name, runs in wanted.items()}
    jobs = [
        (name, run, out, scale.held_out)
        for name, runs in wanted.items()
        for run in runs
        if run.key not in found[name]
    ]
    began = time.perf_counter()
    for i, (name, result) in enumerate(_as_done(workers, _named, jobs, say), start=1):
        _append(out / f"{name}.jsonl", result)
        found[name][result["key"]] = result
        minutes = (time.perf_counter() - began) / 60
        say(f"{i}/{len(jobs)} {minutes:.0f} min  {name}: {told(result)}")
    missing = sum(run.key not in found[name] for name, runs in wanted.items() for run in runs)
    if missing:
        raise RunError(
            f"{missing} runs failed",
            why="what went wrong is above; the others are done and kept",
            fix="the same command tries these again",
        )
    return {name: [found[name][run.key] for run in runs] for name, runs in wanted.items()}


def read_results(out: Path, name: str) -> list[dict[str, Any]]:
    """The lines of an experiment, without any that a kill cut short."""
    path = out / f"{name}.jsonl"
    results = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):
            results.append(json.loads(line))
    return results


def _valid(name: str, runs: Sequence[Run], out: Path, scale: Scale) -> dict[str, dict[str, Any]]:
    """The results by key that are there already and still hold."""
    there = {result["key"]: result for result in read_results(out, name)}
    return {
        run.key: there[run.key]
        for run in runs
        if run.key in there
        and there[run.key]["fingerprint"] == fingerprint(run, out, scale.held_out)
    }


def _append(path: Path, result: dict[str, Any]) -> None:
    """A line more, on a line of its own also where a kill left half a line."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if text and not text.endswith("\n") else "") + json.dumps(result) + "\n")


def _as_done(
    workers: int,
    work: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    say: Callable[[str], None],
) -> Iterator[Any]:
    """What comes of each job, as it comes; jobs begin in order, in this process for one worker.
    One that fails is said, and left out."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            try:
                yield work(*job)
            except Exception as error:
                say(f"failed: {job[:2]}: {error!r}")
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _quiet) as pool:
        futures = {pool.submit(work, *job): job for job in jobs}
        try:
            for future in as_completed(futures):
                try:
                    result = future.result()
                except Exception as error:  # of the run, or of a worker that died
                    say(f"failed: {futures[future][:2]}: {error!r}")
                else:
                    yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    """A worker begins: bars of several would mix."""
    logging.disable_progress_bar()


@contextmanager
def _one_thread() -> Generator[None]:
    """A model this small is not worth sharing out, and results hang on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pretrain(base: tuple[str, int], out: Path, scale: Scale) -> str:
    """Makes a base model that is not there yet; returns its folder."""
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
