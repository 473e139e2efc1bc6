"""What goes where: results on stdout, progress on stderr, quiet libraries; and what ``nrt train``
tells before and after, as tables for people and dicts for programs."""

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import Any

from native_reasoning.config.errors import printable, warn
from native_reasoning.model.folders import check_folder

_LONGEST_PART = 1500


def is_main_process() -> bool:
    """Whether this process prints: the first of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A line for people on stderr."""
    if is_main_process():
        warn(text)


def say_loading(model: str) -> None:
    """Which model is being loaded, and from where: a download can take long. Raises PolicyError for
    a folder without one."""
    check_folder(model)
    say(f"loading {model}" + ("" if os.path.isdir(model) else " from the Hugging Face hub"))


def show(text: str) -> None:
    """Text of the result on stdout."""
    if is_main_process():
        print(printable(text))


def show_json(value: Any) -> None:
    """The result as one line of JSON on stdout; numbers that are not finite become null."""
    if is_main_process():
        print(json.dumps(finite(value), ensure_ascii=True, allow_nan=False, default=str))


def finite(value: Any) -> Any:
    """A value for JSON: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text on stdout, two spaces apart, without a header where all titles are empty."""
    lines = [header, *rows] if any(header) else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        show("  ".join(cells).rstrip())


def show_row(title: str, row: Mapping[str, str]) -> None:
    """The parts of a row of data on stdout, each behind its name; long ones are cut."""
    show(f"{title}:")
    for part, text in row.items():
        cut = text if len(text) <= _LONGEST_PART else text[:_LONGEST_PART] + " ..."
        show(f"{part}:\n{indent(cut.rstrip() or ' ', '  | ', lambda line: True)}")


def quiet_libraries() -> None:
    """Keeps loading bars, notes and warnings of the libraries off stderr. Bars of downloads stay on
    a terminal: they can take long."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate|datasets)\b")
    from huggingface_hub.utils import enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()


# -- After training -------------------------------------------------------------------------------


def result_of(out: str, steps: int, after: Mapping[str, float] | None) -> dict[str, Any]:
    """The outcome of a run, with its evaluations without the prefix eval_."""
    from native_reasoning.records.folder import read_metrics

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
    from native_reasoning.records.metrics import evaluation_rows

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
    from native_reasoning.cli.doctor import rendered
    from native_reasoning.rollout.schedule import make_schedule, total_steps

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
    from native_reasoning.records.progress import clock_text

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
