"""``nrt demo``: four methods on the embedded base model at equal optimiser steps.

The base is measured on held-out problems of the *style shift* family (``TASKS``), then trained from
question–answer pairs alone. Same seed, same rows, same number of steps and, where traces are
sampled, the same number of traces for each method.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.demo import base_path, make_rows
from native_reasoning.evaluation.held_out import Outcome, held_out_rows, summarise
from native_reasoning.records.disk import free_name
from native_reasoning.report import write_report
from native_reasoning.training.trainer import NRTTrainer

PRESETS = ("sft", "nrt-am-released", "nrt-logp-released", "nrt-ws")
FAMILY, STEPS, QUESTIONS = "style_shift", 120, 500
#: The seed of the held-out problems, the same in every demo.
HELD_OUT_SEED = 1_000_003
SHOWN = (
    *("accuracy", "accuracy_low", "accuracy_high"),
    *("accuracy_no_think", "trace_length", "uplift"),
)


def run_demo(
    seed: int = 0, out: str | None = None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Trains every preset of ``PRESETS`` into a new folder ``out`` (``runs/demo`` or ``-2``, …) and
    returns what ``nrt demo --json`` prints; ``say`` gets a line about each stage. Raises RunError
    if ``out`` exists."""
    began = time.perf_counter()
    folder = Path(out) if out else free_name(Path("runs/demo"))
    if folder.exists():
        raise RunError(
            f"{out} exists", why="an existing run is never overwritten", fix="name a new folder"
        )
    torch.set_num_threads(1)  # the model is too small to share out, and one thread is repeatable
    result: dict[str, Any] = {}
    before: list[Outcome] = []
    after: list[Outcome] = []
    for preset in PRESETS:
        trainer = trainer_of(preset, seed, folder)
        if not before:
            say("measuring the base model")
            before = trainer.evaluator.outcomes(trainer.eval_groups)
            result["base"] = _row(before)
        say(f"training {preset}: {STEPS} steps")
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        after = trainer.evaluator.outcomes(trainer.eval_groups)
        for step, outcomes in ((0, before), (trainer.state.global_step, after)):
            measured = {f"eval_{k}": v for k, v in summarise(outcomes).items()}
            trainer.recorder.records.append_metrics(step, measured)
            trainer.recorder.records.write_held_out(held_out_rows(step, outcomes))
        trainer.save_model(str(folder / preset / "final"))
        result[preset] = {**_row(after), "seconds": round(seconds, 1)}
    page = folder / "report.html"
    write_report([folder / preset for preset in reversed(PRESETS)], page)
    return {
        **result,
        "samples": [
            {
                "question": untrained.question,
                "reference": untrained.reference,
                "before": {"trace": untrained.traces[0], "answer": untrained.answers[0]},
                "after": {"trace": trained.traces[0], "answer": trained.answers[0]},
            }
            for untrained, trained in zip(before[:3], after[:3], strict=True)
        ],
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
        "run": str(folder),
        "report": str(page),
    }


def trainer_of(preset: str, seed: int, folder: Path, **changes: Any) -> NRTTrainer:
    """The demo's trainer of one preset; ``changes`` are settings in place of the demo's."""
    settings: dict[str, Any] = {
        "output_dir": str(folder / preset),
        "preset": preset,
        "seed": seed,
        "max_steps": STEPS,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "num_generations": 8,
        "max_trace_length": 16,
        "max_answer_length": 20,
        "eval_samples": QUESTIONS,
        "learning_rate": 5e-4,
        "warmup_steps": 0,
        "save_strategy": "no",
        "use_cpu": True,
    }
    return NRTTrainer(
        model=str(base_path()),
        args=NRTConfig(**{**settings, **changes}),
        train_dataset=make_rows(FAMILY, "train", 16 * STEPS, seed),
        eval_dataset=make_rows(FAMILY, "heldout", QUESTIONS, HELD_OUT_SEED),
    )


def _row(outcomes: list[Outcome]) -> dict[str, float]:
    summary = summarise(outcomes)
    return {name: round(summary[name], 4) for name in SHOWN}


# -- For people ----------------------------------------------------------------------------------

LABELS = {
    "base": "before training",
    "sft": "answers alone, after an empty trace",
    "nrt-am-released": "mean probability of the answer's tokens (RLPR's reward), no clip",
    "nrt-logp-released": "log-probability of the answer (JEPO's reward), no clip",
    "nrt-ws": "hard tokens weigh most, traces that hurt are worth nothing: the default",
}


def render(result: dict[str, Any]) -> str:
    """The result as a table, three samples, and what it does and does not show."""
    lines = [
        f"accuracy on {QUESTIONS} held-out problems, {STEPS} steps each",
        "",
        f"{'':18} {'thinking':>9} {'95 %':>14} {'without':>8} {'length':>7} {'uplift':>7} {'s':>4}",
    ]
    for name in LABELS:
        row = result[name]
        interval = f"{row['accuracy_low']:.1%}–{row['accuracy_high']:.1%}"
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
        lines.append(
            f"{name:18} {row['accuracy']:9.1%} {interval:>14} {row['accuracy_no_think']:8.1%} "
            f"{row['trace_length']:7.1f} {row['uplift']:+7.2f} {seconds:>4}"
        )
    lines += [
        "",
        *(f"  {name:18} {label}" for name, label in LABELS.items()),
        "",
        "thinking: right last digit after a sampled trace; without: after none; chance is 10 %",
        "length: tokens of a trace with its closing tag",
        "uplift: log-probability of an answer token, after a trace minus after none, nats",
        "",
    ]
    for sample in result["samples"]:
        lines += [f"question  {sample['question']}", f"reference {sample['reference']}"]
        for when in ("before", "after"):
            trace, answer = sample[when]["trace"] or "(empty)", sample[when]["answer"]
            lines.append(f"  {when:6}  <think> {trace} </think> {answer}")
        lines.append("")
    lines += [
        "A laboratory, not a benchmark: the base was pre-trained on documents in which one",
        "trace in ten is the running sum that these problems need (benchmarks/lab).",
        f"seed {result['seed']}, {result['seconds']:.0f} s, runs in {result['run']}",
        f"every curve and trace: {result['report']}",
    ]
    return "\n".join(lines)
