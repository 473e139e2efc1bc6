"""What people see while a run goes on: one live line on a terminal, else a plain line per step."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.errors import printable
from native_reasoning.names import COLLAPSE, STATES
from native_reasoning.tables import TraceRow

_LIVE = (
    ("reward", "reward", "{:.3g}"),
    ("uplift", "uplift", "{:+.3f}"),
    ("trace_length", "length", "{:.0f}"),
    ("loss", "loss", "{:.3g}"),
)

_BARS = "▁▂▃▄▅▆▇█"
_FRAME = 40
"""Columns of the live line that its numbers do not have: step, bar and time left."""


class ProgressCallback(TrainerCallback):
    """Progress on stderr (or ``stream``), on rank 0 only.

    On a terminal a live line: bar, step, reward, uplift (nats per token) with its course, trace
    length, loss, sampled tokens per second, time left. Elsewhere one plain line per logged step.
    Every ``trace_seconds`` the trace that ``latest`` returns, if it returns one.
    """

    def __init__(self, stream: TextIO | None = None, trace_seconds: float = 60.0) -> None:
        self.stream, self.trace_seconds = stream, trace_seconds
        self.latest: Callable[[], TraceRow | None] = lambda: None
        self._course = Course()
        self._shown = 0.0
        self._bar: Any = None
        self._task: Any = None
        self._step, self._then = 0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step, self._then = state.global_step, time.perf_counter()
        self._shown = self._then - self.trace_seconds / 2  # the first one after half the time
        stream = self.stream or sys.stderr
        if state.is_world_process_zero and stream.isatty():
            self._bar = _live_line(stream)
            self._task = self._bar.add_task(
                "", total=state.max_steps, completed=state.global_step, told=""
            )
            self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "eval_accuracy" in logs:
            self._print(evaluation_line(state.global_step, logs))
            self._then = time.perf_counter()
        elif "uplift" in logs:
            self._course.add(logs["uplift"])
            seconds = self._seconds_per_step(state.global_step)
            rate = _sampled_tokens(args, logs) / seconds
            if self._bar is None:
                line = step_line(state.global_step, state.max_steps, logs, seconds)
                self._print(f"{line}  {rate:,.0f} tokens/s")
            else:
                told = live_text(logs, rate, self._bar.console.width, self._course.means())
                self._bar.update(self._task, told=told)
            self._show_trace()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the live line, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_trace(self) -> None:
        if time.perf_counter() - self._shown < self.trace_seconds:
            return
        row = self.latest()
        if row is not None:
            self._print(trace_line(row))
            self._shown = time.perf_counter()

    def _seconds_per_step(self, step: int) -> float:
        now = time.perf_counter()
        seconds = (now - self._then) / max(1, step - self._step)
        self._step, self._then = step, now
        return max(seconds, 1e-9)

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self.stream or sys.stderr, flush=True)


def step_line(step: int, steps: int, logs: Mapping[str, float], seconds: float) -> str:
    """``step 3/20  reward 0.31 (base 0.22)  uplift +0.05  length 31  closed 80 %  2.1 s``."""
    if "reward" in logs:
        worth = f"reward {logs['reward']:.3g} (base {logs['reward_baseline']:.3g})"
    else:  # supervised presets have none
        worth = f"answer {logs['answer_logp']:.3f} nats/token"
    state = STATES[int(logs.get(COLLAPSE, 0))]
    return (
        f"step {step}/{steps}  {worth}  uplift {logs['uplift']:+.3f}  "
        f"length {logs['trace_length']:.0f}  closed {100 * logs['closed']:.0f} %  {seconds:.1f} s"
        + ("" if state == "healthy" else f"  {state}")
    )


def live_text(
    logs: Mapping[str, float], rate: float, width: int, course: Sequence[float] = ()
) -> str:
    """The numbers of the live line, as many as a terminal of ``width`` columns holds. ``course``
    are the uplifts so far, drawn behind the last one."""
    drawn = {"uplift": f" {sparkline(course)}" if len(course) > 1 else ""}
    parts = [
        f"{label} {form.format(logs[name])}{drawn.get(name, '')}"
        for name, label, form in _LIVE
        if name in logs
    ]
    if logs.get(COLLAPSE):
        parts.insert(0, STATES[int(logs[COLLAPSE])])
    parts.append(f"{rate:,.0f} tokens/s")
    while len(parts) > 1 and len("  ".join(parts)) > width - _FRAME:
        parts.pop()
    return "  ".join(parts)


class Course:
    """The whole course of a number in at most ``most`` means over equally many steps each."""

    def __init__(self, most: int = 12) -> None:
        self.most, self._each = most, 1
        self._cells: list[tuple[float, int]] = []  # sum and count

    def add(self, value: float) -> None:
        """One more step's; what is no number is left out."""
        if not math.isfinite(value):
            return
        if not self._cells or self._cells[-1][1] == self._each:
            self._cells.append((0.0, 0))
        total, count = self._cells[-1]
        self._cells[-1] = (total + value, count + 1)
        if len(self._cells) > self.most:
            pairs = zip(self._cells[::2], [*self._cells[1::2], (0.0, 0)], strict=False)
            self._cells = [(a + c, b + d) for (a, b), (c, d) in pairs]
            self._each *= 2

    def means(self) -> list[float]:
        """The means, oldest first."""
        return [total / count for total, count in self._cells]


def sparkline(values: Sequence[float]) -> str:
    """The values as bars between their least and largest.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def trace_line(row: TraceRow) -> str:
    """``step 20  "What is 2 + 2?"  <think> two and two  advantage +0.71``, on one line."""
    question, trace = (_short(text, 160) for text in (row.prompt, row.trace))
    worth = f"advantage {row.advantage:+.2f}"
    return f'step {row.step}  "{question}"  <think> {trace or "(empty)"}  {worth}'


def _short(text: str, most: int) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def evaluation_line(step: int, logs: Mapping[str, float]) -> str:
    """``evaluation at step 40: accuracy 25.0 % with thinking, 20.0 % without; uplift +0.051``."""
    return (
        f"evaluation at step {step}: accuracy {100 * logs['eval_accuracy']:.1f} % with thinking, "
        f"{100 * logs['eval_accuracy_no_think']:.1f} % without; uplift {logs['eval_uplift']:+.3f}"
    )


def _sampled_tokens(args: Any, logs: Mapping[str, float]) -> float:
    """Trace tokens of one optimiser step over all ranks."""
    prompts = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return logs["trace_length"] * prompts * args.num_generations


def _live_line(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    return Progress(
        TextColumn("step", table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[told]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        TextColumn("left", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=Console(file=stream),
    )
