"""``nrt train``: recipe and flags -> a run folder, and a table of what it taught."""

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from native_reasoning.cli.check import look_at, rendered
from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.inputs import load_data, model_folder, refused_by_libraries
from native_reasoning.cli.output import (
    is_main_process,
    quiet_libraries,
    say,
    say_loading,
    show,
    show_json,
    show_row,
    show_table,
)
from native_reasoning.config.errors import ConfigError, RunError
from native_reasoning.config.recipe import check_place, make_config, read_recipe
from native_reasoning.records.disk import LOCK, claimed, free_name
from native_reasoning.records.folder import CONFIG, RunFolder, read_metrics
from native_reasoning.records.metrics import evaluation_rows
from native_reasoning.records.progress import ProgressCallback, clock_text, end_runs
from native_reasoning.rollout.schedule import make_schedule, total_steps
from native_reasoning.training.forwards import ONE_STEP, full_step
from native_reasoning.training.memory import fitting
from native_reasoning.training.resume import alone, checkpoints
from native_reasoning.training.trainer import NRTTrainer

#: Rows of a large file that are looked at for warnings.
_FIRST_ROWS = 1000


def run(parsed: Parsed) -> int:
    """Trains; returns the exit code."""
    plan = make_plan(parsed)
    quiet_libraries()
    with fitting(
        "the model and a step",
        "--activation-checkpointing true, a smaller --max-tokens-per-forward, or a shorter "
        "--max-trace-length",
    ):
        return (_dry_run if parsed.own["dry_run"] else train)(plan, parsed.own["json"])


@dataclass(frozen=True)
class TrainCommand:
    """What a command line asks for: where, with what, and the settings of NRTConfig."""

    out: str
    model: str
    data: str
    eval_data: str | None
    resume: str | bool | None
    settings: dict[str, Any]


def make_plan(parsed: Parsed) -> TrainCommand:
    """Recipe, then flags. Raises ConfigError, or RunError where the run folder is in the way."""
    recipe, resume = parsed.positional, parsed.own["resume"]
    resume = True if resume == "true" else resume
    settings = _settings(parsed, resume)
    for key, example in (("model", "HuggingFaceTB/SmolLM2-135M"), ("data", "qa.jsonl")):
        if not settings.get(key):
            raise ConfigError(
                f"no {key} was given",
                why="there is nothing to train, or to train it on",
                fix=f"--{key} {example}, or `{key}: {example}` in the recipe",
            )
    model, data = str(settings.pop("model")), str(settings.pop("data"))
    eval_data, place = settings.pop("eval_data", None), settings.pop("output_dir", None)
    name = Path(recipe).stem if recipe else Path(model).name
    out = os.path.expanduser(str(place or free_name(Path("runs") / name)))
    _check_folder(out, resume)
    if resume or (eval_data and "eval_on_start" not in settings):
        settings["eval_on_start"] = not resume
    held_out = str(eval_data) if eval_data else None
    return TrainCommand(out, model_folder(model)[0], data, held_out, resume, settings)


def _settings(parsed: Parsed, resume: str | bool | None) -> dict[str, Any]:
    """All that recipe, or run to go on with, and flags say. Raises ConfigError or RunError."""
    own, recipe = parsed.own, parsed.positional
    given = {key: own[key] for key in ("model", "data", "eval_data") if own[key]} | parsed.settings
    if own["out"]:
        given["output_dir"] = own["out"]
    elif isinstance(resume, str):
        given["output_dir"] = str(Path(resume).parent)
    if resume:
        config = _config_of(given.get("output_dir"))
        if recipe:
            say(f"settings come from {config}, not from {recipe}")
        return read_recipe(config, given, going_on=True) | given
    settings = (read_recipe(recipe, given) if recipe else {}) | given
    if "output_dir" not in given and settings.get("output_dir"):
        check_place(settings["output_dir"])
    return settings


def _config_of(out: str | None) -> Path:
    """The settings of the run to go on with. Raises ConfigError or RunError."""
    if out is None:
        raise ConfigError(
            "--resume without --out",
            why="it goes on with an existing run, and none was named",
            fix="nrt train --out runs/NAME --resume",
        )
    config = Path(out).expanduser() / CONFIG
    if not config.is_file():
        raise RunError(
            f"{out} holds no run",
            why=f"--resume reads its settings from {CONFIG} there",
            fix="name a run folder, or train without --resume",
        )
    return config


def _check_folder(out: str, resume: str | bool | None) -> None:
    """Raises RunError, before a model is loaded, where the run could not start or go on."""
    if is_main_process() and (Path(out) / LOCK).is_file():
        with claimed(Path(out)):  # nobody else has it
            pass
    if not resume and Path(out).exists():  # creates nothing that is not there
        RunFolder.create(out, resume=False)
    if resume is True and not checkpoints(out):
        raise RunError(
            f"no checkpoint in {out}",
            why="the run was stopped before it saved one, so there is nothing to go on from",
            fix="train again into a new folder, with a smaller --save-steps",
        )


def build(plan: TrainCommand, folder: str) -> Any:
    """The trainer: settings are checked first, then the data is read, then the model."""
    with refused_by_libraries():
        config = make_config(plan.settings, output_dir=folder)
    data = load_data(plan.data, config)
    held_out = load_data(plan.eval_data, config, held_out=True) if plan.eval_data else None
    told = [*data.report.lines(), *(held_out.report.lines() if held_out else ())]
    for line in told:
        say(line)
    for warning in look_at(data, held_out, config, _FIRST_ROWS)[1]:
        say(f"warning: {warning}")
    say_loading(plan.model)
    with refused_by_libraries():
        trainer = NRTTrainer(plan.model, config, data, held_out)
    for report in (trainer.train_report, trainer.eval_report):
        for line in report.lines() if report else ():
            if line not in told:
                say(line)
    return trainer


def progress_of(trainer: Any) -> ProgressCallback:
    """What people see of the run; closed it gives the terminal its cursor back."""
    progress = ProgressCallback(trainer.recorder.clock, trainer.recorder.newest)
    trainer.add_callback(progress)
    return progress


def train(plan: TrainCommand, as_json: bool) -> int:
    if sys.platform != "win32":  # there is nothing to save yet, or any more
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    trainer = build(plan, plan.out)
    with alone(Path(plan.out)), closing(progress_of(trainer)):
        verb = "going on with" if plan.resume else "training into"
        say(f"{verb} {plan.out}, to step {trainer.total_steps}")
        with redirect_stdout(sys.stderr), refused_by_libraries("wandb", "trackio", "mlflow"):
            trainer.train(resume_from_checkpoint=plan.resume)
            after = _finish(trainer, plan)
    code = _tell(trainer, plan, after, as_json)
    if not (trainer.args.use_vllm and trainer.args.vllm_mode == "colocate"):
        # else its threads may end in an abort; vLLM does it itself, and must find it open
        trainer.accelerator.state.destroy_process_group()
    return code


def _finish(trainer: Any, plan: TrainCommand) -> Mapping[str, float] | None:
    """Saves and evaluates what was trained; where a signal stopped it, what there is time for."""
    final, after = Path(plan.out) / "final", None
    if trainer.state.global_step >= trainer.total_steps:
        trainer.checkpoints.save_whole_model(final)
    if trainer.eval_groups and trainer.checkpoints.signals.received is None:
        try:
            made = trainer.evaluator.made.get(trainer.checkpoints.step_of_weights)
            after = made or trainer.evaluate()
        except KeyboardInterrupt:
            say(f"trained and saved; to evaluate: nrt train --out {plan.out} --resume")
            raise
        if final.is_dir():
            trainer.checkpoints.write_card(final)
    end_runs(trainer.args.report_to)
    return after


def _tell(
    trainer: Any, plan: TrainCommand, after: Mapping[str, float] | None, as_json: bool
) -> int:
    """The outcome on stdout; returns the exit code."""
    step, number = trainer.state.global_step, trainer.checkpoints.signals.received
    if number is not None:
        name = signal.Signals(number).name
        say(f"stopped by {name} after step {step}; go on with: nrt train --out {plan.out} --resume")
        if as_json:
            show_json({"run": plan.out, "steps": step, "stopped_by": name})
        return 128 + number
    if is_main_process():
        result = result_of(plan.out, step, after)
        if as_json:
            show_json(result)
        else:
            show_result(result)
    return 0


def _dry_run(plan: TrainCommand, as_json: bool) -> int:
    """Says what the whole run comes to."""
    outlook = outlook_of(plan)
    if as_json:
        show_json(outlook)
    else:
        show_plan(outlook)
    return 0


def outlook_of(plan: TrainCommand) -> dict[str, Any]:
    """What a run would do, and what one step of full length took, which is made for it."""
    with TemporaryDirectory() as nowhere:
        with refused_by_libraries():
            args = make_config(plan.settings, output_dir=nowhere)
        trainer = build(replace(plan, settings=plan.settings | ONE_STEP), nowhere)
        outlook = {"run_folder": plan.out, **plan_of(trainer, args)}
        with closing(progress_of(trainer)):
            return outlook | full_step(trainer)


# -- After training -------------------------------------------------------------------------------


def result_of(out: str, steps: int, after: Mapping[str, float] | None) -> dict[str, Any]:
    """The outcome of a run, with its evaluations without the prefix eval_."""
    lines = read_metrics(out)
    before = [line for line in lines if line["step"] == 0 and "eval_uplift" in line]
    return {
        "run": out,
        "model": os.path.join(out, "final"),
        "steps": steps,
        "before": _without_prefix(before[-1]) if before else None,
        "after": None if after is None else _without_prefix(after),
    }


def _without_prefix(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix("eval_"): v for k, v in metrics.items() if k.startswith("eval_")}


def show_result(result: Mapping[str, Any]) -> None:
    """The outcome of a run as a table on stdout."""
    if result["after"] is None:
        show("no held-out questions: --eval-data F measures accuracy with and without thinking")
    else:
        names = [name for name in ("before", "after") if result[name] is not None]
        title = f"{result['after']['questions']} held-out questions"
        show_table([title, *names], evaluation_rows(*(result[name] for name in names)))
        show("in brackets: 95 % interval over questions")
    show(f"steps  {result['steps']}\nrun    {result['run']}\nmodel  {result['model']}")


# -- Before training ------------------------------------------------------------------------------


def plan_of(trainer: Any, args: Any) -> dict[str, Any]:
    """What a run with these ``args`` would do; ``trainer`` has those of a dry run."""
    groups, template = trainer.train_groups, trainer.template
    schedule = make_schedule(len(groups), args)
    sampled = args.resolved_objective().traces == "sampled"
    return {
        "model": trainer.model.config.name_or_path,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "device": str(args.device),
        "rows": len(groups),
        "eval_rows": len(trainer.eval_groups),
        "preset": args.preset,
        "traces_per_prompt": args.num_generations if sampled else 0,
        "prompts_per_step": schedule.prompts,
        "steps": total_steps(schedule, args),
        "boundary": template.boundary.mode,
        "think": [template.boundary.open_text, template.boundary.close_text],
        "layouts": list(trainer.forwards.layouts),
        "first_prompt": rendered(groups[0], template),
    }


def show_plan(outlook: Mapping[str, Any]) -> None:
    """What a run would do, as text on stdout."""
    told = dict(outlook)
    row, seconds, memory = (told.pop(n) for n in ("first_prompt", "seconds_per_step", "memory"))
    told |= {
        "parameters": f"{told['parameters']:,}",
        "think": " ".join(map(repr, told["think"])),
        "layouts": ", ".join(told["layouts"]),
        "a_step_of_full_length": f"{seconds:.3g} s, measured",
        "all_steps": f"at most about {clock_text(seconds * told['steps'])}, without evaluations",
        "memory_at_its_peak": "not measured here" if memory is None else f"{memory / 1e9:.3g} GB",
    }
    show_table(["", ""], [[name.replace("_", " "), str(value)] for name, value in told.items()])
    show_row("first row, as the model sees it", row)
    show("dry run: nothing was written")
