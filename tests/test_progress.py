"""What is told while a run goes on."""

import io
from types import SimpleNamespace

from native_reasoning.progress import ProgressCallback

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
    assert "reward 0.31  uplift +0.050  length 31  loss 1.23" in text
    assert "tokens/s" in text
    assert "evaluation at step 2" in text


def test_other_ranks_are_silent():
    assert _run(io.StringIO(), main=False) == ""
    assert _run(Terminal(), main=False) == ""
