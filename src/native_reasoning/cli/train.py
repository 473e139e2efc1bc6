"""``nrt train``: recipe and flags -> a run folder, and a table of what it taught."""

import os
import signal
import sys
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.output import (
    is_main_process,
    quiet_libraries,
    say,
    say_loading,
    show_json,
)
from native_reasoning.config.errors import ConfigError, RunError


def run(parsed: Parsed) -> int:
    """Trains; returns the exit code."""
    dry = parsed.own["dry_run"]
    plan = make_plan(parsed)
    quiet_libraries()
    if dry:
        with TemporaryDirectory() as nowhere:
            return _dry_run(plan, nowhere, parsed.own["json"])
    return _train(plan, parsed.own["json"])


#: A step of a dry run: nothing of it is kept, and nobody is told.
_ONE_STEP = {
    "max_steps": 1,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "record_traces": False,
    "report_to": "none",
}


@dataclass(frozen=True)
class TrainCommand:
    """What a command line asks for: where, with what, and the settings of NRTConfig.

    ``profile`` is the number of --profile, 0 where not given.
    """

    out: str
    model: str
    data: str
    eval_data: str | None
    resume: str | bool | None
    settings: dict[str, Any]
    profile: int = 0


def make_plan(parsed: Parsed) -> TrainCommand:
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
    return TrainCommand(
        out=out,
        model=model_folder(model)[0],
        data=data,
        eval_data=None if eval_data is None else str(eval_data),
        profile=_count(own["profile"], "--profile", "optimiser steps"),
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


def build(plan: TrainCommand, folder: str) -> Any:
    """The trainer: settings are checked first, then the data is read, then the model."""
    from native_reasoning.cli.inputs import load_data, refused_by_libraries
    from native_reasoning.config.recipe import make_config
    from native_reasoning.records.clock import ProfileCallback
    from native_reasoning.records.progress import ProgressCallback
    from native_reasoning.training.trainer import NRTTrainer

    with refused_by_libraries():
        config = make_config(plan.settings, output_dir=folder)
    data = load_data(plan.data, config)
    held_out = load_data(plan.eval_data, config) if plan.eval_data else None
    told = {*data.report.lines(), *(held_out.report.lines() if held_out else ())}
    for line in [*data.report.lines(), *(held_out.report.lines() if held_out else ())]:
        say(line)
    if held_out:
        _warn_of_overlap(data, held_out)
    from native_reasoning.cli.check import early_warnings
    from native_reasoning.cli.doctor import left_out, left_out_warning

    missing = [] if config.prompt_column else left_out(plan.data, data.report)
    if missing:
        say(f"warning: {left_out_warning(missing, data.report)}")
    for warning in early_warnings(data, config):
        say(f"warning: {warning}")
    say_loading(plan.model)
    with refused_by_libraries():
        profiling: list[Any] = [ProfileCallback(plan.profile)] if plan.profile else []
        trainer = NRTTrainer(plan.model, config, data, held_out, callbacks=profiling)
    trainer.add_callback(ProgressCallback(trainer.recorder.clock, lambda: trainer.recorder.latest))
    trainer.recorder.recipe.update(model=plan.model, data=plan.data, eval_data=plan.eval_data)
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


def _train(plan: TrainCommand, as_json: bool) -> int:
    from native_reasoning.training.resume import alone

    with _no_saving_yet():
        with _out_of_memory():
            trainer = build(plan, plan.out)
        with alone(Path(plan.out)):
            verb = "going on with" if plan.resume else "training into"
            say(f"{verb} {plan.out}, to step {trainer.total_steps}")
            _fit(trainer, plan)
            code = _finish(trainer, plan, as_json)
        if not (trainer.args.use_vllm and trainer.args.vllm_mode == "colocate"):
            # else its threads may end in an abort; vLLM does it itself, and must find it open
            trainer.accelerator.state.destroy_process_group()
        return code


@contextmanager
def _no_saving_yet() -> Generator[None]:
    """SIGUSR1 outside training, when there is nothing to save, does not end the process."""
    number = getattr(signal, "SIGUSR1", None)
    if number is None:
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _trackers() -> Generator[None]:
    """What a tracker prints goes to stderr, because stdout is the result; what it raises, say for
    want of a login, becomes a ConfigError."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except OSError:
        raise
    except Exception as error:
        tracker = _tracker_of(error)
        if tracker is None:
            raise
        raise ConfigError(
            f"{tracker}: {error}",
            why="report_to names it, and it does not take the run",
            fix="do what it asks for, or --report-to none; W&B without network: WANDB_MODE=offline",
        ) from error


def _tracker_of(error: Exception) -> str | None:
    """The tracker whose code an error came through."""
    from native_reasoning.config.checks import TRACKERS

    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    packages = (str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames)
    return next((name for name in packages if name in TRACKERS), None)


@contextmanager
def _out_of_memory() -> Generator[None]:
    """Makes a RunError of it, also where the model is loaded and tried out."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory: {str(error).splitlines()[0]}",
            why="the model, its gradients and the traces of a step do not fit together",
            fix="--activation-checkpointing, a smaller --per-device-train-batch-size with more "
            "--gradient-accumulation-steps, or shorter --max-trace-length",
        ) from None


def _fit(trainer: Any, plan: TrainCommand) -> None:
    try:
        with _trackers(), _out_of_memory():
            trainer.train(resume_from_checkpoint=plan.resume)
    finally:
        _end_live_line(trainer)


def _finish(trainer: Any, plan: TrainCommand, as_json: bool) -> int:
    """Saves and measures what was trained; where a signal stopped it, what there is time for."""
    from native_reasoning.cli.output import result_of, show_result
    from native_reasoning.records.trackers import end_runs

    final, stopped = Path(plan.out) / "final", trainer.checkpoints.signals.received
    if trainer.state.global_step >= trainer.total_steps:
        trainer.checkpoints.save_whole_model(final)
    after: Mapping[str, float] | None = None
    with _trackers():
        if trainer.eval_groups and stopped is None:
            try:
                after = trainer.evaluator.made() or trainer.evaluate()
            except KeyboardInterrupt:
                say(f"trained and saved; to evaluate: nrt train --out {plan.out} --resume")
                raise
            if final.is_dir():
                trainer.checkpoints.write_card(final)
        end_runs(trainer.callback_handler.callbacks)
    if stopped is not None:
        return _stopped(trainer, plan, stopped, as_json)
    if trainer.is_world_process_zero():
        result = result_of(plan.out, str(final), trainer.state.global_step, after)
        if as_json:
            show_json(result)
        else:
            show_result(result)
    return 0


def _stopped(trainer: Any, plan: TrainCommand, number: int, as_json: bool) -> int:
    name, step = signal.Signals(number).name, trainer.state.global_step
    say(f"stopped by {name} after step {step}; go on with: nrt train --out {plan.out} --resume")
    if as_json and trainer.is_world_process_zero():
        show_json({"run": plan.out, "steps": step, "stopped_by": name})
    return 128 + number


def _end_live_line(trainer: Any) -> None:
    """Gives the terminal its cursor back, also after an error."""
    from native_reasoning.records.progress import ProgressCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback):
            callback.close()


def _dry_run(plan: TrainCommand, nowhere: str, as_json: bool) -> int:
    """Makes one step of full length, and says what the whole run comes to."""
    from native_reasoning.cli.inputs import refused_by_libraries
    from native_reasoning.cli.output import plan_of, show_plan
    from native_reasoning.config.recipe import make_config
    from native_reasoning.training.parts import full_step

    with refused_by_libraries():
        args = make_config(plan.settings, output_dir=nowhere)
    with _out_of_memory():
        trainer = build(replace(plan, settings=plan.settings | _ONE_STEP), nowhere)
        outlook = {"run": plan.out, **plan_of(trainer, args)}
        try:
            cost = full_step(trainer)
        finally:
            _end_live_line(trainer)
    outlook |= {"seconds_per_step": cost.seconds, "memory": cost.memory}
    if as_json:
        show_json(outlook)
    else:
        show_plan(outlook)
    return 0
