"""What is told while a run goes on."""

import io
import re
import time
from types import SimpleNamespace

import pytest

from native_reasoning.records import progress
from native_reasoning.records.clock import Clock
from native_reasoning.records.progress import (
    Pace,
    ProgressCallback,
    fitted,
    live_numbers,
    sparkline,
    trace_line,
)
from native_reasoning.records.tables import TraceRow

LOGS = {
    "loss": 1.234,
    "reward": 0.31,
    "reward_baseline": 0.22,
    "uplift": 0.05,
    "trace_length": 31.2,
    "closed": 0.8,
}
ARGS = SimpleNamespace(
    per_device_train_batch_size=2,
    gradient_accumulation_steps=1,
    world_size=1,
    num_generations=4,
    eval_strategy="no",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _run(stream: io.StringIO, main: bool = True) -> str:
    callback = ProgressCallback(Clock(), stream=stream)
    state = SimpleNamespace(global_step=0, max_steps=2, is_world_process_zero=main)
    callback.on_train_begin(ARGS, state, None)
    for step in (1, 2):
        state.global_step = step
        callback.on_step_end(ARGS, state, None)
        callback.on_log(ARGS, state, None, logs=LOGS)
    for answered in (0, 8, 16, 20):
        told = {"questions": 20, "answered": answered, "max_answer_length": 16}
        callback.on_prediction_step(ARGS, state, None, **told)
    evaluation = {"eval_accuracy": 0.25, "eval_accuracy_no_think": 0.2, "eval_uplift": 0.051}
    callback.on_log(ARGS, state, None, logs=evaluation)
    callback.on_log(ARGS, state, None, logs={"train_runtime": 3.0})
    callback.on_train_end(ARGS, state, None)
    callback.close()
    return stream.getvalue()


def test_one_plain_line_per_logged_step():
    lines = _run(io.StringIO()).splitlines()
    told = "reward 0.31  reward baseline 0.22  uplift +0.050  "
    told += "trace length 31.2  closed 80.0 %  "
    assert lines[0].startswith(f"step 1/2  {told}")
    assert lines[1].startswith(f"step 2/2  {told}")
    assert re.search(r" tokens/s  elapsed 0:0\d:\d\d  left 0:0\d:\d\d$", lines[0])
    assert lines[2:] == [
        "evaluating 20 questions, answers up to 16 tokens",
        "evaluation at step 2: accuracy 25.0 %, accuracy without thinking 20.0 %, uplift +0.051",
    ]


def test_a_live_line_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    text = _run(Terminal())
    assert "step 2/2  ━━━━━━━━━━  ended " in text
    assert "reward 0.31  uplift +0.050  ▁▁  trace length 31.2  loss 1.23" in text
    assert re.search(r"tokens/s  0:0\d:\d\d left 0:0\d:\d\d", text)
    assert "evaluating 20 questions, answers up to 16 tokens" in text
    assert "evaluation at step 2" in text


def test_the_live_line_moves_on_while_a_step_runs(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    clock, stream = Clock(), Terminal()
    callback = ProgressCallback(clock, stream=stream)
    state = SimpleNamespace(global_step=0, max_steps=2, is_world_process_zero=True)
    callback.on_train_begin(ARGS, state, None)
    with clock.stage("sampling"):
        while "sampling" not in stream.getvalue():
            time.sleep(0.05)
    callback.close()
    assert "step 0/2  ╌╌╌╌╌╌╌╌╌╌  sampling  0:0" in stream.getvalue()


def test_the_phase_is_the_clocks_stage_or_the_evaluation():
    clock = Clock()
    callback = ProgressCallback(clock, stream=io.StringIO())
    state = SimpleNamespace(global_step=0, max_steps=4, is_world_process_zero=True)
    callback.on_train_begin(ARGS, state, None)

    def phase() -> str:
        return callback.line(100).split("  ")[2].strip()

    assert phase() == "training"
    with clock.stage("backward"):
        assert phase() == "training"
        with clock.stage("sampling"):
            assert phase() == "sampling"
        with clock.stage("records"):
            assert phase() == "saving"
    asked = {"questions": 20, "max_answer_length": 16}
    callback.on_prediction_step(ARGS, state, None, answered=0, **asked)
    assert phase() == "evaluating 0/20"
    callback.on_prediction_step(ARGS, state, None, answered=8, **asked)
    assert phase() == "evaluating 8/20"
    callback.on_prediction_step(ARGS, state, None, answered=20, **asked)
    assert phase() == "training"


@pytest.mark.parametrize(("quiet", "lines"), [(1000.0, 1), (0.0, 3)])
def test_a_long_evaluation_is_counted_in_plain_lines(quiet, lines, monkeypatch):
    monkeypatch.setattr(progress, "_QUIET", quiet)
    callback = ProgressCallback(Clock(), stream=(stream := io.StringIO()))
    state = SimpleNamespace(global_step=0, max_steps=0, is_world_process_zero=True)
    for answered in (0, 8, 16, 20):
        callback.on_prediction_step(ARGS, state, None, questions=20, answered=answered)
    told = stream.getvalue().splitlines()
    assert len(told) == lines
    assert told[1:] == ["evaluated 8 of 20 questions", "evaluated 16 of 20 questions"][: lines - 1]


def test_other_ranks_are_silent():
    assert _run(io.StringIO(), main=False) == ""
    assert _run(Terminal(), main=False) == ""


ROW = TraceRow(
    step=2, row_id=0, k=1, prompt="What is\n2 + 2?", trace="two \x1b[31mand two", answer="4",
    sampled_answer="", closed=True, ended=False, length=5, reward=1.0, baseline_reward=0.5,
    advantage=0.714, answer_logps=[-0.1], baseline_logps=[-0.2], answer_tokens=["4"],
)  # fmt: skip


def test_a_fresh_trace_every_so_often():
    def shown(seconds: float, latest) -> int:
        stream = io.StringIO()
        callback = ProgressCallback(Clock(), latest, stream, trace_seconds=seconds)
        state = SimpleNamespace(global_step=0, max_steps=9, is_world_process_zero=True)
        callback.on_train_begin(ARGS, state, None)
        for step in range(1, 5):
            state.global_step = step
            callback.on_log(ARGS, state, None, logs=LOGS)
        return stream.getvalue().count("<think>")

    assert shown(0.0, lambda: ROW) == 4
    assert shown(1000.0, lambda: ROW) == 0
    assert shown(0.0, lambda: None) == 0


def test_a_trace_is_one_line_and_commands_nothing():
    line = trace_line(ROW)
    assert line == 'step 2  "What is 2 + 2?"  <think> two \\x1b[31mand two  advantage +0.71'
    long = trace_line(TraceRow(**{**vars(ROW), "trace": "x" * 10_000, "prompt": ""}))
    assert len(long) < 250
    assert "\n" not in long
    assert "(empty)" in trace_line(TraceRow(**{**vars(ROW), "trace": " "}))


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([0.0, 1.0, 0.5], "▁█▅"),
        ([2.0, 2.0], "▁▁"),
    ],
)
def test_sparklines(values, drawn):
    assert sparkline(values) == drawn


def test_the_course_is_that_of_the_whole_run():
    """Means over equally many steps; what is no number is left out."""
    assert sparkline([1.0, 3.0, 5.0, float("nan"), 7.0], 2) == "▁█"
    assert sparkline([0.0, 0.0, 2.0, 4.0, 7.0, 7.0], 3) == sparkline([0.0, 3.0, 7.0]) == "▁▄█"
    assert len(sparkline([float(value) for value in range(1000)])) == 12


def test_a_narrow_terminal_loses_the_loss_first_and_the_rate_last():
    numbers = live_numbers(LOGS, [0.1, 0.2])
    parts = [(0, "step 3/12"), (6, "━━╌"), *numbers, (1, "25 tokens/s"), (0, "3:12 left 8:40")]
    whole = "  ".join(text for _, text in parts)
    assert fitted(parts, len(whole)) == whole
    assert fitted(parts, len(whole) - 1) == whole.replace("  loss 1.23", "")
    at_88 = "step 3/12  reward 0.31  uplift +0.050  trace length 31.2  25 tokens/s  3:12 left 8:40"
    assert fitted(parts, 88) == at_88
    assert fitted(parts, 40) == "step 3/12  25 tokens/s  3:12 left 8:40"
    assert fitted(parts, 10) == "step 3/12  3:12 left 8:40"


# -- Time left -------------------------------------------------------------------------------------


def test_time_left_is_that_of_slow_steps_too():
    """rich's own estimate forgets what is older than half a minute."""
    pace = Pace(100.0)
    assert pace.left(120.0, 12) is None  # before the first step
    pace.step_ended(146.0)
    assert pace.left(146.0, 11) == 11 * 46
    assert pace.left(156.0, 11) == 11 * 46 - 10  # it runs while a step does
    assert pace.left(199.0, 11) == 10 * 46  # a step that is late is still to end
    pace.step_ended(200.0)
    assert pace.left(200.0, 10) == 10 * 50
    assert pace.left(300.0, 0) == 0


def test_the_time_of_an_evaluation_is_no_steps():
    pace = Pace(0.5)
    pace.asked = 0.5
    pace.evaluation_ended(300.5)
    pace.step_ended(310.5)
    assert pace.seconds() == 10
    pace.asked = 312.5
    assert pace.left(322.5, 3) == 3 * 10 - 2
    pace.evaluation_ended(412.5)
    assert pace.left(412.5, 3) == 3 * 10 - 2
    pace.step_ended(420.5)
    assert pace.seconds() == 10


def test_only_recent_steps_count():
    pace = Pace(1.0)
    for step in range(1, 101):
        pace.step_ended(1.0 + step)
    for step in range(1, 21):
        pace.step_ended(101.0 + 3 * step)
    assert pace.seconds() == 3
    assert pace.left(161.0, 10) == 30
