"""What a command line of ``nrt train`` asks for: recipe and flags, and whether it can begin."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.output import is_main_process, say
from native_reasoning.config.errors import ConfigError, RunError


@dataclass(frozen=True)
class Plan:
    """What a command line asks for: where, with what, and the settings of NRTConfig.

    ``profile`` and ``processes`` are the numbers of --profile and --plan, 0 where not given.
    """

    out: str
    model: str
    data: str
    eval_data: str | None
    resume: str | bool | None
    settings: dict[str, Any]
    profile: int = 0
    processes: int = 0


def make_plan(parsed: Parsed) -> Plan:
    """Recipe, then flags. Raises ConfigError, or RunError where the run folder is in the way."""
    from native_reasoning.cli.inputs import model_folder, required
    from native_reasoning.config.recipe import read_recipe

    own = parsed.own
    resume = True if own["resume"] == "true" else own["resume"]
    given = {key: own[key] for key in ("model", "data", "eval_data") if own[key]}
    given |= parsed.settings
    out = own["out"] or parsed.settings.get("output_dir")
    if out is None and isinstance(resume, str):
        out = str(Path(resume).parent)
    out = None if out is None else _home(out)
    recipe: dict[str, Any] = {}
    if resume:
        recipe = read_recipe(_config_of(out), given, going_on=True)
        if parsed.positional:
            say(f"settings come from {_config_of(out)}, not from {parsed.positional}")
    elif parsed.positional:
        recipe = read_recipe(parsed.positional, given)
    settings = {**recipe, **given}
    out = out or _inside(settings.get("output_dir"))
    model = required(settings, "model", "HuggingFaceTB/SmolLM2-135M")
    data = required(settings, "data", "qa.jsonl")
    name = Path(parsed.positional).stem if parsed.positional else Path(model).name
    out = _home(str(out or _first_free(Path("runs") / name)))
    _check_folder(out, resume)
    eval_data = settings.get("eval_data")
    if resume or (eval_data and "eval_on_start" not in settings):
        settings["eval_on_start"] = not resume
    return Plan(
        out=out,
        model=model_folder(model)[0],
        data=data,
        eval_data=None if eval_data is None else str(eval_data),
        profile=_count(own["profile"], "--profile", "optimiser steps"),
        processes=_count(own["plan"], "--plan", "processes"),
        resume=resume,
        settings={
            key: value
            for key, value in settings.items()
            if key not in ("model", "data", "eval_data", "output_dir")
        },
    )


def _count(text: str | None, flag: str, of: str) -> int:
    """A flag's number of something, 0 where it was not given. Raises ConfigError."""
    if text is None:
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{flag} {text}", why=f"it is a number of {of}", fix=f"{flag} 8")
    return int(text)


def _config_of(out: str | None) -> Path:
    """The settings of the run to go on with. Raises ConfigError or RunError."""
    from native_reasoning.records.folder import CONFIG

    if out is None:
        raise ConfigError(
            "--resume without --out",
            why="it goes on with an existing run, and none was named",
            fix="nrt train --out runs/NAME --resume",
        )
    if not (Path(out) / CONFIG).is_file():
        raise RunError(
            f"{out} holds no run",
            why=f"--resume reads its settings from {CONFIG} there",
            fix="name a run folder, or train without --resume",
        )
    return Path(out) / CONFIG


def _inside(folder: Any) -> str | None:
    """A recipe's output_dir. Raises ConfigError where it leads out of the working folder."""
    from native_reasoning.config.guards import in_working_folder

    if not folder:
        return None
    try:
        if in_working_folder(str(folder)):
            return str(folder)
        problem = "a recipe may come from anybody, and writes into the working folder only"
    except (OSError, ValueError) as error:  # a name that cannot be, a ring of links
        problem = f"it is no folder: {error}"
    raise ConfigError(
        f"output_dir {folder!r} in the recipe",
        why=problem,
        fix="leave it out of the recipe; --out names the folder where you want the run",
    )


def _home(folder: str) -> str:
    """With the home folder for ``~``, as transformers reads an output_dir."""
    return os.path.expanduser(folder)


def _check_folder(out: str, resume: str | bool | None) -> None:
    """Raises RunError, before a model is loaded, where the run could not start or go on."""
    from native_reasoning.records.disk import check_free
    from native_reasoning.records.folder import RunFolder
    from native_reasoning.training.resume import checkpoints

    if is_main_process():
        check_free(Path(out))
    if not resume:
        if Path(out).exists():  # creates nothing that is not there
            RunFolder.create(out, resume=False)
        return
    if resume is True and not checkpoints(out):
        raise RunError(
            f"no checkpoint in {out}",
            why="the run was stopped before it saved one, so there is nothing to go on from",
            fix="train again into a new folder, with a smaller --save-steps",
        )


def _first_free(path: Path) -> Path:
    """runs/qa, or runs/qa-2 and so on, where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
