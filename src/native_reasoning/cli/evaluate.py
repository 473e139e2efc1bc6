"""``nrt eval``: held-out questions for a model, or for the model of a run."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from native_reasoning.cli.flags import Parsed, number
from native_reasoning.cli.output import (
    indented,
    quiet_libraries,
    say,
    say_loading,
    show,
    show_json,
    show_table,
)
from native_reasoning.cli.verbs import SUITE_FLAGS
from native_reasoning.config.errors import ConfigError


def run(parsed: Parsed) -> int:
    """Evaluates; returns the exit code."""
    assert parsed.positional is not None
    if parsed.own["suite"]:
        from native_reasoning.cli.suite import run as run_suite

        return run_suite(parsed)
    _refuse_suite_flags(parsed)
    if not parsed.own["data"]:
        raise ConfigError(
            "no data was given", why="there are no questions to ask", fix="--data test.jsonl"
        )
    from native_reasoning.cli.inputs import asked_for

    quiet_libraries()
    showing = number(parsed.own, "show") or 0
    model, settings = asked_for(parsed)
    with TemporaryDirectory() as nowhere:
        values, outcomes = evaluate(model, parsed.own["data"], settings, nowhere)
    shown = [_told(outcome) for outcome in outcomes[:showing]]
    result = {"model": model, "data": parsed.own["data"], **values}
    if parsed.own["json"]:
        show_json({**result, "shown": shown} if shown else result)
    else:
        _show(result, shown)
    return 0


def _refuse_suite_flags(parsed: Parsed) -> None:
    for flag in SUITE_FLAGS:
        if parsed.own[flag.name[2:].replace("-", "_")]:
            raise ConfigError(
                f"{flag.name} without --suite",
                why="it is about benchmarks",
                fix="--suite nrt9",
            )


def evaluate(
    model: str, data: str, settings: dict[str, Any], folder: str
) -> tuple[dict[str, Any], list[Any]]:
    """The measures, and each question's outcome. ``folder`` is for what transformers may write."""
    from native_reasoning.cli.inputs import load_data, refused_by_libraries
    from native_reasoning.config.recipe import make_config
    from native_reasoning.evaluation.held_out import answer_length, summarise
    from native_reasoning.records.progress import ProgressCallback
    from native_reasoning.training.trainer import NRTTrainer

    # what a trace is judged by does not matter here: num_generations 2 suits every preset
    with refused_by_libraries():
        config = make_config({**settings, "num_generations": "2"}, output_dir=folder)
    examples = load_data(data, config)
    for line in examples.report.lines():
        say(line)
    say_loading(model)
    trainer = NRTTrainer(model, config, eval_dataset=examples)
    trainer.add_callback(ProgressCallback(trainer.recorder.clock))
    assert trainer.eval_report is not None
    for line in trainer.eval_report.lines():
        if line not in examples.report.lines():
            say(line)
    groups = trainer.eval_groups[: config.eval_samples]
    outcomes = trainer.evaluator.outcomes(groups)
    length = answer_length(groups, config)
    return {**summarise(outcomes), "max_answer_length": length}, outcomes


def _told(outcome: Any) -> dict[str, Any]:
    from native_reasoning.evaluation.grading import accuracy

    return {
        "question": outcome.question,
        "trace": outcome.traces[0],
        "trace_tokens": outcome.trace_lengths[0],
        "closed": outcome.closed[0],
        "answer": outcome.answers[0],
        "answer_without_thinking": outcome.answer_no_think,
        "reference": outcome.reference,
        "right": bool(accuracy(outcome.answers[0], outcome.reference)),
    }


def _show(result: dict[str, Any], shown: list[dict[str, Any]]) -> None:
    from native_reasoning.records.metrics import evaluation_rows

    for number_, told in enumerate(shown, start=1):
        end = "closed" if told["closed"] else "not closed"
        show(f"question {number_}:\n{indented(told['question'])}")
        show(f"trace ({told['trace_tokens']} tokens, {end}):\n{indented(told['trace'])}")
        verdict = "right" if told["right"] else "wrong"
        show(f"answer ({verdict}):\n{indented(told['answer'])}")
        show(f"answer without thinking:\n{indented(told['answer_without_thinking'])}")
        show(f"reference:\n{indented(told['reference'])}\n")
    show_table([f"{result['questions']} questions", "value"], evaluation_rows(result))
    show("in brackets: 95 % interval over questions")
    show(f"model  {Path(result['model'])}\ndata   {result['data']}")
