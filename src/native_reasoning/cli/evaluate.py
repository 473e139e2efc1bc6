"""``nrt eval``: held-out questions, or benchmarks, for a model or for the model of a run."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.inputs import asked_for, load_data, refused_by_libraries
from native_reasoning.cli.output import (
    finite,
    quiet_libraries,
    say,
    say_loading,
    show,
    show_json,
    show_row,
    show_table,
)
from native_reasoning.cli.verbs import SUITE_FLAGS
from native_reasoning.config.errors import ConfigError
from native_reasoning.evaluation.benchmarks import MODES, Benchmark, askable, chosen, one_of
from native_reasoning.evaluation.conversation import load_asked
from native_reasoning.evaluation.grading import accuracy
from native_reasoning.evaluation.held_out import Outcome, answer_length, summarise
from native_reasoning.records.metrics import evaluation_rows
from native_reasoning.records.progress import ProgressCallback
from native_reasoning.training.trainer import NRTTrainer


def run(parsed: Parsed) -> int:
    """Evaluates; returns the exit code."""
    _refuse_together(parsed.own)
    quiet_libraries()
    return (_ask_suite if parsed.own["suite"] else _ask_held_out)(parsed)


def _refuse_together(own: dict[str, Any]) -> None:
    """Flags that nothing would read. Raises ConfigError."""
    if own["suite"]:
        wrong, there, why = ("--data", "--show"), "with", "the suite brings its own questions"
    else:
        wrong, there = [flag.name for flag in SUITE_FLAGS], "without"
        why = "it is about benchmarks"
        if not own["data"]:
            raise ConfigError(
                "no data was given", why="there are no questions to ask", fix="--data test.jsonl"
            )
    for flag in wrong:
        if own[flag[2:].replace("-", "_")]:
            raise ConfigError(f"{flag} {there} --suite", why=why, fix=f"leave {flag} out")


# -- Held-out questions ----------------------------------------------------------------------------


def _ask_held_out(parsed: Parsed) -> int:
    """``nrt eval --data``: the measures, and the first questions with their outcome."""
    own = parsed.own
    model, config = asked_for(parsed)
    examples = load_data(own["data"], config)
    told = examples.report.lines()
    say("\n".join(told))
    say_loading(model)
    trainer = NRTTrainer(model, config, eval_dataset=examples)
    trainer.add_callback(ProgressCallback(trainer.recorder.clock))
    assert trainer.eval_report is not None
    if new := [line for line in trainer.eval_report.lines() if line not in told]:
        say("\n".join(new))
    groups = trainer.eval_groups[: config.eval_samples]
    outcomes = trainer.evaluator.outcomes(groups)
    shown = outcomes[: own["show"] or 0]
    result = {"model": model, "data": own["data"], **summarise(outcomes)}
    result["max_answer_length"] = answer_length(groups, config)
    if own["json"]:
        show_json(result | ({"shown": [*map(asdict, shown)]} if shown else {}))
    else:
        _show(result, shown)
    return 0


def _show(result: dict[str, Any], shown: list[Outcome]) -> None:
    for count, o in enumerate(shown, start=1):
        end = "closed" if o.closed[0] else "not closed"
        verdict = "right" if o.best(accuracy, o.answers[0]) else "wrong"
        parts = {
            "question": o.question,
            f"trace ({o.trace_lengths[0]} tokens, {end})": o.traces[0],
            f"answer ({verdict})": o.answers[0],
            "answer without thinking": o.answer_no_think,
            "reference": o.reference,
        }
        show_row(f"-- {count} of {len(shown)}", parts)
    show_table([f"{result['questions']} questions", "value"], evaluation_rows(result))
    show("in brackets: 95 % interval over questions")
    show(f"model  {Path(result['model'])}\ndata   {result['data']}")


# -- Benchmarks ------------------------------------------------------------------------------------


def _ask_suite(parsed: Parsed) -> int:
    """``nrt eval --suite``: the nine benchmarks, thinking off and on."""
    own = parsed.own
    one_of("--thinking", own["thinking"] or "both", MODES)
    data_dir = Path(own["data_dir"]).expanduser() if own["data_dir"] else None
    named = chosen(own["suite"], own["tasks"])
    benchmarks = askable(named, data_dir, bool(own["run_code"]), say)
    if own["out"]:  # a path that cannot be written to is better known now than after hours
        Path(own["out"]).open("a", encoding="utf-8").close()
    result, items = _answers(parsed, benchmarks, data_dir)
    if own["out"]:
        lines = (json.dumps(finite(asdict(item)), allow_nan=False) + "\n" for item in items)
        Path(own["out"]).write_text("".join(lines), encoding="utf-8")
    if own["json"]:
        show_json(result)
    else:
        _show_suite(result)
    return 0


def _answers(
    parsed: Parsed, benchmarks: list[Benchmark], data_dir: Path | None
) -> tuple[dict[str, Any], list[Any]]:
    """The result for JSON, and each question's item."""
    from lm_eval.utils import simple_parse_args_string

    from native_reasoning.evaluation.harness import SuitePlan, run_suite

    own = parsed.own
    plan = SuitePlan(
        benchmarks,
        MODES[own["thinking"] or "both"],
        data_dir=data_dir,
        limit=own["limit"] or None,
        num_fewshot=own["num_fewshot"],
        chat=bool(own["apply_chat_template"]),
        gen_kwargs=simple_parse_args_string(own["gen_kwargs"] or ""),
        batch_size=own["batch_size"] or 1,
    )
    model, config = asked_for(parsed)
    with refused_by_libraries():
        say_loading(model)
        asked = load_asked(model, config, plan.modes)
        summary, items = run_suite(asked, config, plan, say)
    about = {
        "suite": own["suite"],
        "model": model,
        "data": own["data_dir"] or "hub",
        "boundary": asked.template.boundary.mode if asked.template else None,
        "max_trace_length": config.max_trace_length,
        "temperature": config.temperature,
        "seed": config.seed,
        "limit": plan.limit,
        "apply_chat_template": plan.chat,
        "gen_kwargs": plan.gen_kwargs,
        "batch_size": plan.batch_size,
        "versions": {name: version(name) for name in ("native-reasoning", "lm-eval", "torch")},
    }
    return about | summary, items


def _show_suite(result: Mapping[str, Any]) -> None:
    modes = list(result["mean"])
    columns = [*modes, *(["gain"] if len(modes) == 2 else [])]
    header = ["benchmark", "metric", "n", *(f"thinking {mode}" for mode in modes), *columns[2:]]
    rows = []
    for row in result["benchmarks"]:
        numbers = [_percent(row[column]) for column in columns]
        if "on" in modes:
            numbers += [f"{row['on']['trace_length']:.0f}", f"{row['on']['closed']:.0%}"]
        rows.append([row["benchmark"], row["metric"], str(row["questions"]), *numbers])
    means = [_percent(result["mean"].get(column)) for column in columns]
    if "on" in modes:
        header += ["trace tokens", "closed"]
        means += ["", ""]
    show_table(header, [*rows, ["mean", "", "", *means]])
    show("in %, ± one standard error over questions")
    show(f"model  {result['model']}\ndata   {result['data']}")


def _percent(cell: Mapping[str, Any] | None) -> str:
    if cell is None:  # the mean has no gain
        return ""
    error = cell["stderr"]
    return f"{100 * cell['value']:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
