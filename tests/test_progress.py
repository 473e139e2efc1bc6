"""What is told while a run goes on."""

import io
from types import SimpleNamespace

import pytest

from native_reasoning.progress import Course, ProgressCallback, live_text, sparkline, trace_line
from native_reasoning.tables import TraceRow

LOGS = {
    "loss": 1.234,
    "reward": 0.31,
    "reward_baseline": 0.22,
    "uplift": 0.05,
    "trace_length": 31.2,
    "closed": 0.8,
}
ARGS = SimpleNamespace(
    per_device_train_batch_size=2, gradient_accumulation_steps=1, world_size=1, num_generations=4
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _run(stream: io.StringIO, main: bool = True) -> str:
    callback = ProgressCallback(stream)
    state = SimpleNamespace(global_step=0, max_steps=2, is_world_process_zero=main)
    callback.on_train_begin(ARGS, state, None)
    for step in (1, 2):
        state.global_step = step
        callback.on_step_end(ARGS, state, None)
        callback.on_log(ARGS, state, None, logs=LOGS)
    evaluation = {"eval_accuracy": 0.25, "eval_accuracy_no_think": 0.2, "eval_uplift": 0.051}
    callback.on_log(ARGS, state, None, logs=evaluation)
    callback.on_log(ARGS, state, None, logs={"train_runtime": 3.0})
    callback.on_train_end(ARGS, state, None)
    callback.close()
    return stream.getvalue()


def test_one_plain_line_per_logged_step():
    lines = _run(io.StringIO()).splitlines()
    told = "reward 0.31 (base 0.22)  uplift +0.050  length 31  closed 80 %  "
    assert lines[0].startswith(f"step 1/2  {told}")
    assert lines[1].startswith(f"step 2/2  {told}")
    assert lines[0].endswith(" tokens/s")
    assert lines[2:] == [
        "evaluation at step 2: accuracy 25.0 % with thinking, 20.0 % without; uplift +0.051"
    ]


def test_a_live_line_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    text = _run(Terminal())
    assert "2/2" in text
    assert "reward 0.31  uplift +0.050 ▁▁  length 31  loss 1.23" in text
    assert "tokens/s" in text
    assert "evaluation at step 2" in text


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
        callback = ProgressCallback(stream := io.StringIO(), trace_seconds=seconds)
        callback.latest = latest
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
    course = Course(most=4)
    for value in (1.0, 3.0, 5.0, float("nan"), 7.0):
        course.add(value)
    assert course.means() == [1, 3, 5, 7]
    course.add(9.0)
    assert course.means() == [2, 6, 9]  # two steps each from now on
    for value in (11.0, 13.0, 15.0, 17.0):
        course.add(value)
    assert course.means() == [4, 12, 17]
    for value in range(1000):
        course.add(float(value))
    assert len(course.means()) <= 4


def test_a_narrow_terminal_keeps_the_first_numbers():
    assert live_text(LOGS, 1.0, 60, [0.1, 0.2]) == "reward 0.31"
