"""``nrt train``: recipe and flags -> a run folder, and a table of what it taught."""

import signal
import sys
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.output import quiet_libraries, say, say_loading, show_json
from native_reasoning.cli.plan import Plan, make_plan
from native_reasoning.config.errors import ConfigError, RunError


def run(parsed: Parsed) -> int:
    """Trains; returns the exit code."""
    dry = parsed.own["dry_run"]
    plan = make_plan(parsed)
    quiet_libraries()
    if plan.processes:
        if dry:
            raise ConfigError(
                "--plan with --dry-run",
                why="the one loads nothing, the other loads data and model",
                fix="leave one of them out",
            )
        from native_reasoning.cli import outlook

        return outlook.run(plan, parsed.own["json"])
    if dry:
        with TemporaryDirectory() as nowhere:
            return _dry_run(plan, nowhere, parsed.own["json"])
    return _train(plan, parsed.own["json"])


def build(plan: Plan, folder: str) -> Any:
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


def _train(plan: Plan, as_json: bool) -> int:
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


def _fit(trainer: Any, plan: Plan) -> None:
    try:
        with _trackers(), _out_of_memory():
            trainer.train(resume_from_checkpoint=plan.resume)
    finally:
        _end_live_line(trainer)


def _finish(trainer: Any, plan: Plan, as_json: bool) -> int:
    """Saves and measures what was trained; where a signal stopped it, what there is time for."""
    from native_reasoning.cli.summary import result_of, show_result
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


def _stopped(trainer: Any, plan: Plan, number: int, as_json: bool) -> int:
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


def _dry_run(plan: Plan, nowhere: str, as_json: bool) -> int:
    from native_reasoning.cli.summary import plan_of, show_plan

    with _out_of_memory():
        trainer = build(plan, nowhere)
    outlook = plan_of(trainer, plan.out, trainer.total_steps)
    if as_json:
        show_json(outlook)
    else:
        show_plan(outlook)
    return 0
