"""``nrt compare``: arms trained alike, each run in a process of its own, and one report.

The folder of a comparison has ``compare.yaml`` (what was asked for: it is a recipe), a run folder
for each arm and seed, and at the end ``compare.json``, ``compare.md`` and ``report.html``. The same
command goes on where it was stopped: finished runs are not done again, an unfinished one goes on
from its newest checkpoint.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from native_reasoning.cli import told
from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.inputs import model_folder, refused_by_libraries
from native_reasoning.cli.output import finite, quiet_libraries, say, show, show_json, show_table
from native_reasoning.cli.train import TrainCommand, build, outlook_of, progress_of, train
from native_reasoning.config.errors import ConfigError, RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.recipe import Arm, make_config, read_arms, read_recipe
from native_reasoning.records.disk import claimed, free_name, write_atomically
from native_reasoning.records.folder import RunFolder, read_metrics
from native_reasoning.records.manifest import is_secret
from native_reasoning.records.progress import clock_text
from native_reasoning.report import write_report
from native_reasoning.report.comparison import (
    BASE,
    IN_BRACKETS,
    RESULT,
    compare,
    last_evaluation,
    lines,
    markdown,
    table,
)
from native_reasoning.training.resume import alone, checkpoints, newest_checkpoint

PLAN, TABLE, PAGE = "compare.yaml", "compare.md", "report.html"
_OWN = ("model", "data", "eval_data", "presets", "seeds")
#: What may be another each time: it changes no step, but how much is computed at once or kept.
_FREE = (
    *("max_tokens_per_forward", "save_steps", "save_total_limit"),
    *("report_to", "output_dir", "logging_dir", "run_name"),
)
#: Settings of every arm, unless others are given. Checkpoints are there to go on from, no more.
_DEFAULTS: dict[str, Any] = {"save_steps": 0.1, "save_total_limit": 1, "eval_on_start": False}
_REFUSED = {
    "preset": ("the arms are named by --presets", "--presets sft,nrt-ws"),
    "load_best_model_at_end": (
        "it chooses a checkpoint by the questions that decide between the arms",
        "leave it out",
    ),
}


@dataclass(frozen=True)
class Run:
    """One run of a comparison: a seed of an arm. The base is evaluated and not trained."""

    arm: Arm
    seed: int
    command: TrainCommand

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(self.command.out)

    @property
    def finished(self) -> bool:
        """Whether it has come to its end: its last step is saved and evaluated."""
        logged = read_metrics(self.folder)
        steps = [line["step"] for line in logged if "loss" in line]
        done = last_evaluation(self.folder)
        if self.arm.label == BASE:
            return bool(done)
        saved = (self.folder / "final").is_dir()
        return bool(saved and steps and done) and done[0]["step"] == steps[-1]


@dataclass(frozen=True)
class Comparison:
    """What a command line asks for: where, the arms without the base, and the settings that all
    of them share, as in compare.yaml."""

    folder: Path
    arms: tuple[Arm, ...]
    seeds: int
    settings: dict[str, Any]

    def runs(self) -> list[Run]:
        """Every run, one seed of all arms after the other."""
        shared = {k: v for k, v in self.settings.items() if k not in _OWN}
        first = int(shared.pop("seed", NRTConfig.seed))
        model = model_folder(str(self.settings["model"]))[0]
        base = replace(self.arms[0], label=BASE, settings={})
        found = []
        for seed in range(first, first + self.seeds):
            for arm in (base, *self.arms):
                about = {**_DEFAULTS, **shared, "preset": arm.preset, "seed": seed, **arm.settings}
                command = TrainCommand(
                    out=str(self.folder / f"{arm.folder}-{seed}"),
                    model=model,
                    data=str(self.settings["data"]),
                    eval_data=str(self.settings["eval_data"]),
                    resume=None,
                    settings=about,
                )
                found.append(Run(arm, seed, command))
        return found


def run(parsed: Parsed) -> int:
    """Trains what is left to train, and compares; returns the exit code."""
    asked = read_comparison(parsed)
    quiet_libraries()
    runs = asked.runs()
    for one in runs[: len(asked.arms) + 1]:
        with refused_by_libraries():
            make_config(one.command.settings, output_dir=one.command.out)
    if parsed.own["dry_run"]:
        return _dry_run(asked, runs, parsed.own["json"])
    with claimed(asked.folder):
        plan = {k: finite(v) for k, v in asked.settings.items() if not is_secret(k)}
        text = yaml.safe_dump(plan, sort_keys=False, allow_unicode=True)
        write_atomically(asked.folder / PLAN, text)
        with _signals() as heard:
            failed = _do_all(runs, heard)
        if heard:
            name = signal.Signals(heard[0]).name
            say(f"stopped by {name}; go on with: nrt compare --out {asked.folder}")
            return 128 + heard[0]
        result = write_result(asked, runs, failed)
    if parsed.own["json"]:
        show_json(result)
    else:
        show(result["verdict"]["headline"] + "\n")
        show_table(*table(result))
        show("\n".join(["", IN_BRACKETS, *lines(result), f"report  {asked.folder / PAGE}"]))
    return 1 if failed else 0


# -- What is asked for -----------------------------------------------------------------------------


def read_comparison(parsed: Parsed) -> Comparison:
    """What the folder holds already, then recipe, then flags. Raises ConfigError, or RunError where
    the folder holds something else."""
    own, recipe = parsed.own, parsed.positional
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "nrt compare under a launcher of several processes",
            why="each of its runs is a process of its own, on one device",
            fix="start it without torchrun or accelerate launch",
        )
    flags = {key: own[key] for key in _OWN if own[key]} | parsed.settings
    _refuse(flags)
    given = (read_recipe(recipe, flags) if recipe else {}) | flags
    place = own["out"] or given.pop("output_dir", None)
    given = {key: value for key, value in given.items() if key not in ("preset", "output_dir")}
    _refuse(given)
    folder = Path(os.path.expanduser(str(place or free_name(Path("runs") / "compare"))))
    before = read_recipe(folder / PLAN, given, going_on=True) if (folder / PLAN).exists() else {}
    if not before and folder.exists():
        RunFolder.create(folder, resume=False)  # raises where a run lies there
    settings = before | given
    for key, example in (
        ("model", "HuggingFaceTB/SmolLM2-135M"),
        ("data", "qa.jsonl"),
        ("eval_data", "test.jsonl"),
        ("presets", "sft,nrt-ws"),
    ):
        if not settings.get(key):
            flag = "--" + key.replace("_", "-")
            raise ConfigError(
                f"no {key} was given",
                why="arms are trained on data, and compared on held-out questions",
                fix=f"{flag} {example}",
            )
    arms = _arms(settings["presets"])
    arms = (_arms(before["presets"]) if before else {}) | arms  # those that are there stay
    _check_same(folder, before, settings)
    settings |= {"presets": ",".join(arms), "seeds": _seeds(before, given)}
    return Comparison(folder, tuple(arms.values()), settings["seeds"], settings)


def _arms(presets: Any) -> dict[str, Arm]:
    """By their labels, in order; ``base`` is always there, and has no preset."""
    text = ",".join(presets) if isinstance(presets, list) else str(presets)
    parts = [part for part in text.split(",") if part.strip() != BASE]
    return {arm.label: arm for arm in read_arms(",".join(parts))}


def _refuse(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for a setting that a comparison cannot have."""
    for name, (why, fix) in _REFUSED.items():
        if settings.get(name) not in (None, False, "false", "False"):
            raise ConfigError(f"--{name.replace('_', '-')} with nrt compare", why=why, fix=fix)


def _seeds(before: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """How many seeds: those that are there stay. Raises ConfigError."""
    seeds = given.get("seeds", 1)
    if int(seeds) < 1:
        raise ConfigError(
            f"--seeds {seeds}", why="each arm is trained with so many", fix="--seeds 3"
        )
    return max(int(seeds), int(before.get("seeds", 1)))


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises RunError where the folder's comparison has other settings than this one."""
    if not before:
        return
    changed = [key for key in ("model", "data", "eval_data") if before.get(key) != now[key]]
    old, new = (
        make_config({k: v for k, v in of.items() if k not in _OWN}, output_dir=str(folder))
        for of in (before, now)
    )
    names = [f.name for f in fields(NRTConfig) if f.name not in _FREE]
    changed += [name for name in names if getattr(old, name) != getattr(new, name)]
    if changed:
        was = {name: before.get(name, getattr(old, name, None)) for name in changed[:3]}
        said = [f"{n} {value} -> {now.get(n, getattr(new, n, None))}" for n, value in was.items()]
        raise RunError(
            f"{folder} holds another comparison: {'; '.join(said)}",
            why="arms are compared at equal settings alone, and nothing is ever overwritten",
            fix=f"nrt compare --out {folder} goes on with that one; or a new folder: "
            f"--out {free_name(folder)}",
        )


# -- Doing it --------------------------------------------------------------------------------------


@contextmanager
def _signals() -> Generator[list[int]]:
    """Inside, SIGINT and SIGTERM are noted. A terminal sends SIGINT to the run too, which saves and
    leaves; ``_process`` hands SIGTERM on."""
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: heard.append(n)) for number in numbers}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _do_all(runs: list[Run], heard: list[int]) -> dict[str, str]:
    """Does what is not finished; returns the runs that failed, with why. Raises RunError where the
    base cannot be evaluated: then nothing else can be trained."""
    failed: dict[str, str] = {}
    for place, one in enumerate(runs, start=1):
        name = one.folder.name
        if one.finished:
            say(f"{name} ({place} of {len(runs)}): finished before")
        else:
            say(f"{name} ({place} of {len(runs)})")
            code = _process(one, heard)
            if heard:
                break
            if code:
                failed[name] = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                say(f"{name} failed ({failed[name]}); the other runs go on")
            if code and place == 1:
                raise RunError(
                    f"the untrained model could not be evaluated ({failed[name]})",
                    why="the other runs have the same model, data and settings",
                    fix="see the error above",
                )
        if one.finished:  # nothing goes on from them any more
            for path in checkpoints(one.folder):
                shutil.rmtree(path, ignore_errors=True)
    return failed


def _process(one: Run, heard: list[int]) -> int:
    """Does a run in a fresh process, from its newest checkpoint or from the beginning; returns the
    exit code, -n where signal n ended it."""
    resume = newest_checkpoint(one.folder) is not None
    if one.folder.exists() and not resume:
        with claimed(one.folder):  # raises where a process is still training into it
            pass
        shutil.rmtree(one.folder)  # nothing was saved yet
    command = replace(one.command, resume=resume or None)
    fresh: Any = multiprocessing.get_context("spawn")
    process = fresh.Process(target=_in_process, args=(command, one.arm.label == BASE))
    process.start()
    sent = False
    while process.is_alive():
        process.join(0.2)
        if signal.SIGTERM in heard and not sent:
            process.terminate()
            sent = True
    return int(process.exitcode or 0)


def _in_process(command: TrainCommand, base: bool) -> None:
    """What the fresh process does; its stdout is stderr, because the result is the comparison's."""
    os.dup2(2, 1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    quiet_libraries()
    sys.exit(told(partial(_evaluate_base if base else train, command, False)))


def _leave_with_parent() -> None:
    """Saves and leaves, should the comparison be killed: nobody would wait for this run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _evaluate_base(command: TrainCommand, as_json: bool) -> int:
    """Evaluates the model as it came, into a run folder without steps."""
    trainer = build(command, command.out)
    opened = trainer.checkpoints.opened(None, *trainer.about())
    with alone(Path(command.out)), closing(progress_of(trainer)), opened:
        trainer.evaluate()
    return 0


def write_result(asked: Comparison, runs: list[Run], failed: Mapping[str, str]) -> dict[str, Any]:
    """Compares the finished runs; writes compare.json, compare.md and the report."""
    folders: dict[str, list[Path]] = {}
    for one in runs:
        place = folders.setdefault(one.arm.label, [])
        place += [one.folder] if one.finished else []
    result = compare(folders, failed)
    write_atomically(asked.folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_atomically(asked.folder / TABLE, markdown(result))
    say("writing the report")
    every = [path for paths in folders.values() for path in paths]
    write_report(every, asked.folder / PAGE, comparison=result)
    return result


# -- Before it -------------------------------------------------------------------------------------


def _dry_run(asked: Comparison, runs: list[Run], as_json: bool) -> int:
    """Says which runs there would be, and what they come to by one step of full length."""
    sampled = [one for one in runs[1:] if _samples(one)]
    outlook = outlook_of((sampled or runs[1:])[0].command)
    seconds, trained = outlook["seconds_per_step"], [x for x in runs if x.arm.label != BASE]
    left = sum(_steps(one, outlook["steps"]) for one in trained if not one.finished)
    whole = {k: v for k, v in outlook.items() if k not in ("run_folder", "preset", "first_prompt")}
    whole |= {
        "folder": str(asked.folder),
        "runs": [one.folder.name for one in runs],
        "finished": [one.folder.name for one in runs if one.finished],
        "seconds": seconds * left,
    }
    if as_json:
        show_json(whole)
        return 0
    rows = [
        [
            one.folder.name,
            "evaluate" if one.arm.label == BASE else f"{_steps(one, outlook['steps'])} steps",
            "; ".join(f"{k} {v}" for k, v in one.arm.settings.items()),
            "finished" if one.finished else "",
        ]
        for one in runs
    ]
    show_table(["run", "what", "settings of its own", ""], rows)
    memory = "" if whole["memory"] is None else f", {whole['memory'] / 1e9:.3g} GB"
    show(
        f"\neach step: {whole['prompts_per_step']} questions, {whole['traces_per_prompt']} traces "
        f"for each where traces are sampled\n"
        f"a step of full length: {seconds:.3g} s{memory}, measured\n"
        f"all steps: at most about {clock_text(whole['seconds'])}, without evaluations\n"
        "dry run: nothing was written"
    )
    return 0


def _steps(one: Run, shared: int) -> int:
    """The optimiser steps of a run, where the arms share so many."""
    return int(one.arm.settings.get("max_steps", shared))


def _samples(one: Run) -> bool:
    args = make_config(one.command.settings, output_dir=one.command.out)
    return args.resolved_objective().traces == "sampled"
