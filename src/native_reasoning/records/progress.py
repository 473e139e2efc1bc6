"""What people see while a run goes on: one live line on a terminal, else a plain line per step."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TextIO

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.errors import printable
from native_reasoning.records.clock import Clock
from native_reasoning.records.metrics import COLLAPSE, METRICS, STATES
from native_reasoning.records.tables import TraceRow

#: Metrics of a plain line, and of the live line with their turn to go where it is narrow.
_PLAIN = ("reward", "reward_baseline", "uplift", "trace_length", "closed")
_LIVE = {"reward": 2, "uplift": 3, "trace_length": 4, "loss": 7}
_RATE, _COURSE, _BAR = 1, 5, 6
#: Stages of the clock that people know by another word than training.
_PHASES = {"sampling": "sampling", "records": "saving"}
#: Steps whose mean says how long the next ones take.
_RECENT = 20
#: Seconds between two plain lines of one evaluation.
_QUIET = 30.0

_BARS = "▁▂▃▄▅▆▇█"


class ProgressCallback(TrainerCallback):
    """Progress on stderr (or ``stream``), on rank 0 only.

    On a terminal a live line: step, phase, reward, uplift (nats per token) with its course, trace
    length, loss, sampled tokens per second, time that is over and left. Elsewhere one plain line
    per logged step. Evaluations are announced and counted. Every ``trace_seconds`` the trace that
    ``latest`` returns, if it returns one. ``clock`` has the stage that runs.
    """

    def __init__(
        self,
        clock: Clock,
        latest: Callable[[], TraceRow | None] = lambda: None,
        stream: TextIO | None = None,
        trace_seconds: float = 60.0,
    ) -> None:
        self.clock, self.latest = clock, latest
        self.stream, self.trace_seconds = stream, trace_seconds
        self.pace = Pace(time.perf_counter())
        self._live: Any = None
        self._steps = 0  # of the run; 0 outside training
        self._step = self._logged = 0
        self._course: list[float] = []  # every uplift so far
        self._numbers: list[tuple[int, str]] = []
        self._doing = ""
        self._shown = self._counted = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = time.perf_counter()
        self.pace = Pace(now)
        self._step, self._steps = state.global_step, state.max_steps
        self._logged = self._step
        self._shown = now - self.trace_seconds / 2  # the first one after half the time
        if state.is_world_process_zero:
            self._open()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.pace.step_ended(time.perf_counter())
        self._step = state.global_step

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        questions: int = 0,
        answered: int = 0,
        max_answer_length: int = 0,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not questions:
            return
        now = time.perf_counter()
        if answered == questions:
            self._doing = ""
            self.pace.evaluation_ended(now)
            if not self._steps:
                self.close()
            return
        if not self._doing:
            self.pace.asked = now
            self._print(
                f"evaluating {questions} questions, answers up to {max_answer_length} tokens"
            )
            self._counted = now
            self._open()
        elif self._live is None and now - self._counted >= _QUIET:
            self._print(f"evaluated {answered} of {questions} questions")
            self._counted = now
        self._doing = f"evaluating {answered}/{questions}"

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
        elif "uplift" in logs:
            self._course.append(logs["uplift"])
            seconds = self.pace.seconds(state.global_step - self._logged) or 1e-9
            self._logged = state.global_step
            rate = f"{_sampled_tokens(args, logs) / seconds:,.0f} tokens/s"
            self._numbers = [*live_numbers(logs, self._course), (_RATE, rate)]
            if self._live is None:
                elapsed, left = self._times()
                line = step_line(state.global_step, state.max_steps, logs, seconds)
                self._print(f"{line}  {rate}  elapsed {elapsed}  left {left}")
            self._show_trace()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._doing = "ended"
        self.close()
        self._steps, self._doing = 0, ""

    def close(self) -> None:
        """Ends the live line, also after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _open(self) -> None:
        """Begins the live line, if this is a terminal without one."""
        stream = self.stream or sys.stderr
        if self._live is None and stream.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            console = Console(file=stream)
            self._live = Live(
                console=console,
                refresh_per_second=2,
                transient=not self._steps,
                get_renderable=lambda: Text(
                    self.line(console.width), no_wrap=True, overflow="ellipsis"
                ),
            )
            self._live.start()

    def line(self, width: int) -> str:
        """The live line as it is now."""
        elapsed, left = self._times()
        phase = self._doing or _PHASES.get(self.clock.running or "", "training")
        if not self._steps:
            return f"{phase}  {elapsed}"
        done = 10 * self._step // self._steps
        parts = [
            (0, f"step {self._step}/{self._steps}"),
            (_BAR, "━" * done + "╌" * (10 - done)),
            (0, phase.ljust(8)),
            *self._numbers,
            (0, f"{elapsed} left {left}"),
        ]
        return fitted(parts, width)

    def _times(self) -> tuple[str, str]:
        now = time.perf_counter()
        left = self.pace.left(now, self._steps - self._step)
        began = self.pace.began if self._steps else self.pace.asked or now
        return clock_text(now - began), "-:--" if left is None else clock_text(left)

    def _show_trace(self) -> None:
        if time.perf_counter() - self._shown < self.trace_seconds:
            return
        row = self.latest()
        if row is not None:
            self._print(trace_line(row))
            self._shown = time.perf_counter()

    def _print(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self.stream or sys.stderr, flush=True)


class Pace:
    """How fast this process goes, by its last steps; evaluations are left out. Times are seconds of
    one clock: ``began`` is its first, ``asked`` the beginning of an evaluation that runs."""

    def __init__(self, began: float) -> None:
        self.began = self._since = began
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self.asked: float | None = None

    def step_ended(self, now: float) -> None:
        """A step, and what was written since the one before."""
        self._steps.append(now - self._since)
        self._since = now

    def evaluation_ended(self, now: float) -> None:
        """Its time is no step's."""
        self._since += now - (self.asked or now)
        self.asked = None

    def seconds(self, steps: int = _RECENT) -> float | None:
        """Mean of the last steps, None before the first."""
        last = list(self._steps)[-max(steps, 1) :]
        return sum(last) / len(last) if last else None

    def left(self, now: float, steps: int) -> float | None:
        """Seconds until these many steps are over; None before the first step."""
        each = self.seconds()
        gone = (self.asked or now) - self._since  # a step stands still during an evaluation
        return None if each is None else max(0.0, steps * each - min(gone, each))


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock_text(192.4)
    '0:03:12'
    """
    return str(timedelta(seconds=round(seconds)))


def _told(name: str, logs: Mapping[str, float]) -> str:
    """``uplift +0.051``."""
    return f"{METRICS[name].label} {METRICS[name].text(logs[name])}"


def step_line(step: int, steps: int, logs: Mapping[str, float], seconds: float) -> str:
    """``step 3/20  reward 0.31  reward baseline 0.22  uplift +0.051  …  2.1 s``."""
    names = _PLAIN if "reward" in logs else ("answer_logp", *_PLAIN)  # supervised presets
    state = STATES[int(logs.get(COLLAPSE, 0))]
    parts = [f"step {step}/{steps}", *(_told(name, logs) for name in names if name in logs)]
    return "  ".join([*parts, f"{seconds:.1f} s", *([] if state == "healthy" else [state])])


def live_numbers(logs: Mapping[str, float], course: Sequence[float] = ()) -> list[tuple[int, str]]:
    """The numbers of the live line, each behind its turn to go (``fitted``). ``course`` are the
    uplifts so far, drawn behind the last one."""
    parts = [(0, STATES[int(logs[COLLAPSE])])] if logs.get(COLLAPSE) else []
    for name, turn in _LIVE.items():
        if name in logs:
            parts.append((turn, _told(name, logs)))
        if name == "uplift" and len(course) > 1:
            parts.append((_COURSE, sparkline(course)))
    return parts


def fitted(parts: Sequence[tuple[int, str]], width: int) -> str:
    """One line of at most ``width`` columns: the part with the largest number goes first, one with
    0 stays."""
    for turn in sorted({turn for turn, _ in parts if turn}, reverse=True):
        if len("  ".join(text for _, text in parts)) <= width:
            break
        parts = [part for part in parts if part[0] != turn]
    return "  ".join(text for _, text in parts)


def sparkline(values: Sequence[float], most: int = 12) -> str:
    """The course of a number in at most ``most`` bars, means over equally many values, without
    those that are no number.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    finite = [value for value in values if math.isfinite(value)]
    parts = np.array_split(finite, min(most, len(finite)) or 1)
    means = [float(part.mean()) for part in parts if len(part)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in means)


def trace_line(row: TraceRow) -> str:
    """``step 20  "What is 2 + 2?"  <think> two and two  advantage +0.71``, on one line."""
    question, trace = (_short(text, 160) for text in (row.prompt, row.trace))
    worth = f"advantage {row.advantage:+.2f}"
    return f'step {row.step}  "{question}"  <think> {trace or "(empty)"}  {worth}'


def _short(text: str, most: int) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def evaluation_line(step: int, logs: Mapping[str, float]) -> str:
    """``evaluation at step 40: accuracy 25.0 %, …, uplift +0.051``."""
    names = ("eval_accuracy", "eval_accuracy_no_think", "eval_uplift")
    return f"evaluation at step {step}: {', '.join(_told(name, logs) for name in names)}"


def _sampled_tokens(args: Any, logs: Mapping[str, float]) -> float:
    """Trace tokens of one optimiser step over all ranks."""
    prompts = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return logs["trace_length"] * prompts * args.num_generations
