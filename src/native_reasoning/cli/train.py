"""``nrt train``: recipe and flags -> a run folder, and a table of what it taught."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.output import quiet_libraries, say, say_loading, show_json
from native_reasoning.errors import ConfigError, RunError


@dataclass(frozen=True)
class Plan:
    """What a command line asks for: where, with what, and the settings of NRTConfig."""

    out: str
    model: str
    data: str
    eval_data: str | None
    resume: str | bool | None
    settings: dict[str, Any]
    profile: int = 0


def run(parsed: Parsed) -> int:
    """Trains; returns the exit code."""
    dry = parsed.own["dry_run"]
    plan = make_plan(parsed)
    quiet_libraries()
    if dry:
        with TemporaryDirectory() as nowhere:
            return _dry_run(plan, nowhere, parsed.own["json"])
    return _train(plan, parsed.own["json"])


# -- What is asked for ----------------------------------------------------------------------------


def make_plan(parsed: Parsed) -> Plan:
    """Recipe, then flags. Raises ConfigError, or RunError where the run folder is in the way."""
    from native_reasoning.cli.inputs import model_folder, required
    from native_reasoning.recipe import read_recipe

    own = parsed.own
    resume = True if own["resume"] == "true" else own["resume"]
    given = {key: own[key] for key in ("model", "data", "eval_data") if own[key]}
    given |= parsed.settings
    out = own["out"] or parsed.settings.get("output_dir")
    if out is None and isinstance(resume, str):
        out = str(Path(resume).parent)
    recipe: dict[str, Any] = {}
    if resume:
        recipe = read_recipe(_config_of(out), given)
        if parsed.positional:
            say(f"settings come from {_config_of(out)}, not from {parsed.positional}")
    elif parsed.positional:
        recipe = read_recipe(parsed.positional, given)
    settings = {**recipe, **given}
    out = out or _inside(settings.get("output_dir"))
    model = required(settings, "model", "HuggingFaceTB/SmolLM2-135M")
    data = required(settings, "data", "qa.jsonl")
    name = Path(parsed.positional).stem if parsed.positional else Path(model).name
    out = str(out or _first_free(Path("runs") / name))
    _check_folder(out, resume)
    eval_data = settings.get("eval_data")
    if resume or (eval_data and "eval_on_start" not in settings):
        settings["eval_on_start"] = not resume
    return Plan(
        out=out,
        model=model_folder(model)[0],
        data=data,
        eval_data=None if eval_data is None else str(eval_data),
        profile=_count(own["profile"], "--profile"),
        resume=resume,
        settings={
            key: value
            for key, value in settings.items()
            if key not in ("model", "data", "eval_data", "output_dir")
        },
    )


def _count(text: str | None, flag: str) -> int:
    """A flag's number of steps, 0 where it was not given. Raises ConfigError."""
    if text is None:
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"{flag} {text}", why="it is a number of optimiser steps", fix=f"{flag} 10"
        )
    return int(text)


def _config_of(out: str | None) -> Path:
    """The settings of the run to go on with. Raises ConfigError or RunError."""
    from native_reasoning.records import CONFIG

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
    if folder and not Path(str(folder)).expanduser().resolve().is_relative_to(Path.cwd().resolve()):
        raise ConfigError(
            f"output_dir {folder} in the recipe",
            why="a recipe may come from anybody, and writes into the working folder only",
            fix=f"--out {folder}, if that is where you want the run",
        )
    return str(folder) if folder else None


def _check_folder(out: str, resume: str | bool | None) -> None:
    """Raises RunError, before a model is loaded, where the run could not start or go on."""
    from native_reasoning.records import RunFolder
    from native_reasoning.resume import checkpoints

    if not resume:
        if Path(out).exists():  # creates nothing that is not there
            RunFolder.create(out, resume=False).release()
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


# -- Doing it -------------------------------------------------------------------------------------


def build(plan: Plan, folder: str) -> Any:
    """The trainer: settings are checked first, then the data is read, then the model."""
    from native_reasoning.cli.inputs import load_data, refused_by_libraries
    from native_reasoning.clock import ProfileCallback
    from native_reasoning.progress import ProgressCallback
    from native_reasoning.recipe import make_config
    from native_reasoning.trainer import NRTTrainer

    with refused_by_libraries():
        config = make_config(plan.settings, output_dir=folder)
    data = load_data(plan.data, config)
    held_out = load_data(plan.eval_data, config) if plan.eval_data else None
    told = {*data.report.lines(), *(held_out.report.lines() if held_out else ())}
    for line in [*data.report.lines(), *(held_out.report.lines() if held_out else ())]:
        say(line)
    if held_out:
        _warn_of_overlap(data, held_out)
    from native_reasoning.cli.doctor import left_out, left_out_warning

    missing = [] if config.prompt_column else left_out(plan.data, data.report)
    if missing:
        say(f"warning: {left_out_warning(missing, data.report)}")
    say_loading(plan.model)
    with refused_by_libraries():
        watching: list[Any] = [ProgressCallback()]
        watching += [ProfileCallback(plan.profile)] if plan.profile else []
        trainer = NRTTrainer(plan.model, config, data, held_out, callbacks=watching)
    trainer.recipe = {"model": plan.model, "data": plan.data, "eval_data": plan.eval_data}
    for report in (trainer.train_report, trainer.eval_report):
        for line in report.lines() if report else ():
            if line not in told:
                say(line)
    return trainer


def _warn_of_overlap(data: Any, held_out: Any) -> None:
    from native_reasoning.cli.doctor import overlap

    shared = overlap(data.examples, held_out.examples)
    if shared:
        say(
            f"warning: {len(shared)} of {len(held_out)} held-out questions are training questions "
            f"too (first: {held_out.report.unit} {shared[0]}); their accuracy says nothing"
        )


def _train(plan: Plan, as_json: bool) -> int:
    from native_reasoning.cli.summary import result_of, show_result

    trainer = build(plan, plan.out)
    verb = "going on with" if plan.resume else "training into"
    say(f"{verb} {plan.out}, to step {trainer.total_steps}")
    out_of_memory = _out_of_memory_error()
    try:
        trainer.train(resume_from_checkpoint=plan.resume)
    except out_of_memory as error:
        raise RunError(
            f"out of memory: {str(error).splitlines()[0]}",
            why="the model, its gradients and the traces of a step do not fit together",
            fix="--activation-checkpointing, a smaller --per-device-train-batch-size with more "
            "--gradient-accumulation-steps, or shorter --max-trace-length",
        ) from None
    finally:
        _end_live_line(trainer)
    stopped = trainer.signals.received
    if stopped is not None:
        return _stopped(trainer, plan, stopped, as_json)
    final = Path(plan.out) / "final"
    trainer.save_whole_model(final)
    after: Mapping[str, float] | None = None
    if trainer.eval_groups:
        count = min(len(trainer.eval_groups), trainer.args.eval_samples)
        say(f"evaluating on {count} questions")
        after = trainer.evaluate()
    if trainer.is_world_process_zero():
        result = result_of(plan.out, str(final), trainer.state.global_step, after)
        if as_json:
            show_json(result)
        else:
            show_result(result)
    return 0


def _stopped(trainer: Any, plan: Plan, number: int, as_json: bool) -> int:
    name, step = signal.Signals(number).name, trainer.state.global_step
    say(f"stopped by {name} after step {step}; go on with: nrt train --out {plan.out} --resume")
    if as_json and trainer.is_world_process_zero():
        show_json({"run": plan.out, "steps": step, "stopped_by": name})
    return 128 + number


def _end_live_line(trainer: Any) -> None:
    """Gives the terminal its cursor back, also after an error."""
    from native_reasoning.progress import ProgressCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback):
            callback.close()


def _out_of_memory_error() -> type[Exception]:
    import torch

    return torch.OutOfMemoryError


def _dry_run(plan: Plan, nowhere: str, as_json: bool) -> int:
    from native_reasoning.cli.summary import plan_of, show_plan

    trainer = build(plan, nowhere)
    outlook = plan_of(trainer, plan.out, trainer.total_steps)
    if as_json:
        show_json(outlook)
    else:
        show_plan(outlook)
    return 0
