"""What is told while a run goes on."""

import io
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from native_reasoning.records import progress
from native_reasoning.records.folder import TraceRow
from native_reasoning.records.meter import Clock
from native_reasoning.records.progress import ProgressCallback, trace_line

LOGS = {
    "loss": 1.234,
    "reward": 0.31,
    "reward_baseline": 0.22,
    "uplift": 0.05,
    "trace_entropy": 0.251,
    "distinct": 0.891,
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
    told = (
        "reward 0.31  uplift +0.050  entropy 0.251  distinct 89.1 %  length 31.2  closed 80.0 %  "
        "reward baseline 0.22  "
    )
    assert lines[0].startswith(f"step 1/2  {told}")
    assert lines[1].startswith(f"step 2/2  {told}")
    assert re.search(r"\d s  [\d,]+ tokens/s  elapsed 0:0\d:\d\d  left 0:0\d:\d\d$", lines[0])
    assert lines[2:] == [
        "evaluating 20 questions, answers up to 16 tokens",
        "evaluation at step 2: accuracy 25.0 %, accuracy without thinking 20.0 %, uplift +0.051",
    ]


def test_a_live_line_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", _run(Terminal()))
    assert re.search(r"step 2/2 ━{10} ended +reward 0.31  uplift \+0.050  entropy 0.251", text)
    assert re.search(r"reward baseline 0.22 .*0:0\d:\d\d left 00:0\d", text)
    assert "evaluating 20 questions, answers up to 16 tokens" in text
    assert "evaluation at step 2" in text


def last_line(width: int, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    lines = re.split(r"[\r\n]|\x1b\[2K", _run(Terminal()))
    plain = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line).rstrip() for line in lines]
    (last,) = {line for line in plain if "2/2" in line and "reward" in line and "left" in line}
    assert len(last) <= width
    return last


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_loses_the_last_numbers(width, monkeypatch):
    last = last_line(width, monkeypatch)
    assert re.match(r"2/2 reward 0.31  uplift \+0.050  entr.*…? left 00:0\d", last)
    assert ("entropy 0.251  distinct 89.1 %" in last) == (width == 80)


def test_a_wide_terminal_has_a_bar(monkeypatch):
    last = last_line(120, monkeypatch)
    assert re.search(r"step 2/2 ━{10} .*distinct 89.1 %.*0:0\d:\d\d left 00:0\d", last)


def test_the_live_line_moves_on_while_a_step_runs(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    clock, stream = Clock(), Terminal()
    callback = ProgressCallback(clock, stream=stream)
    state = SimpleNamespace(global_step=0, max_steps=2, is_world_process_zero=True)
    callback.on_train_begin(ARGS, state, None)
    assert "training" in stream.getvalue()
    with clock.stage("sampling"):
        while "sampling" not in stream.getvalue():
            time.sleep(0.05)
    with clock.stage("backward"), clock.stage("records"):
        while "saving" not in stream.getvalue():
            time.sleep(0.05)
    callback.on_prediction_step(ARGS, state, None, questions=20, max_answer_length=16)
    callback.on_prediction_step(ARGS, state, None, questions=20, answered=8)
    while "evaluating 8/20" not in stream.getvalue():
        time.sleep(0.05)
    callback.close()


def test_an_evaluation_of_its_own_has_a_live_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    callback = ProgressCallback(Clock(), stream=(stream := Terminal()))
    state = SimpleNamespace(global_step=0, max_steps=0, is_world_process_zero=True)
    for answered in (0, 8, 20, 20):
        callback.on_prediction_step(ARGS, state, None, questions=20, answered=answered)
    assert "question 0/20" in stream.getvalue()
    assert callback._bar is None


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
    def shown(seconds: float, newest) -> int:
        stream = io.StringIO()
        callback = ProgressCallback(Clock(), newest, stream, trace_seconds=seconds)
        state = SimpleNamespace(global_step=0, max_steps=9, is_world_process_zero=True)
        callback.on_train_begin(ARGS, state, None)
        for step in range(1, 5):
            state.global_step = step
            callback.on_log(ARGS, state, None, logs=LOGS)
        return stream.getvalue().count("<think> two")

    rows = [replace(ROW, trace="no", advantage=-1.0), ROW]
    assert shown(0.0, lambda: [[replace(ROW, trace="older")], rows]) == 4
    assert shown(1000.0, lambda: [rows]) == 0
    assert shown(0.0, list) == 0


def test_a_trace_is_one_line_and_commands_nothing():
    line = trace_line(ROW)
    assert line == 'step 2  "What is 2 + 2?"  <think> two \\x1b[31mand two  advantage +0.71'
    long = trace_line(TraceRow(**{**vars(ROW), "trace": "x" * 10_000, "prompt": ""}))
    assert len(long) < 250
    assert "\n" not in long
    assert "(empty)" in trace_line(TraceRow(**{**vars(ROW), "trace": " "}))
