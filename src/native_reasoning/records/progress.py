"""What people see while a run goes on: one live line on a terminal, else a plain line per step; and
in W&B and trackio the latest traces as a table (docs/diagnostics.md).

Numbers get to trackers through transformers' own callbacks, and the table goes into the runs that
these have opened. It is text that a model wrote, and both take a cell as text.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib import import_module
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.errors import printable
from native_reasoning.objective.types import uplift
from native_reasoning.records.folder import TraceRow
from native_reasoning.records.meter import Clock
from native_reasoning.records.metrics import COLLAPSE, METRICS, STATES

#: Metrics of a step; a narrow terminal shows the first ones.
_NUMBERS = (
    *("reward", "uplift", "trace_entropy", "distinct"),
    *("trace_length", "closed", "reward_baseline"),
)
#: Columns of a terminal under which numbers take the place of all else but the time that is left.
_WIDE = 120
#: Stages of the clock that people know by another word than training.
_PHASES = {"sampling": "sampling", "records": "saving"}
#: Seconds whose mean says how long the next steps take.
_RECENT = 600.0
#: Seconds between two plain lines of one evaluation.
_QUIET = 30.0


class _Words(ProgressColumn):
    """The phase and the numbers, cut off where there is no room."""

    def __init__(self, words: Callable[[], str]) -> None:
        super().__init__()
        self.words = words

    def render(self, task: Task) -> Text:
        return Text(self.words(), no_wrap=True, overflow="ellipsis")


class ProgressCallback(TrainerCallback):
    """Progress on stderr (or ``stream``), on rank 0 only.

    On a terminal a live line: step, phase, the numbers of the last step, time that is over and
    left; under ``_WIDE`` columns no bar and no time that is over. Elsewhere one plain line per
    logged step. Evaluations are announced and counted. Every ``trace_seconds`` a trace of
    ``newest``, the latest traces by question. ``clock`` has the stage that runs.
    """

    def __init__(
        self,
        clock: Clock,
        newest: Callable[[], Sequence[Sequence[TraceRow]]] = list,
        stream: TextIO | None = None,
        trace_seconds: float = 60.0,
    ) -> None:
        self.clock, self.newest, self.trace_seconds = clock, newest, trace_seconds
        self.console = Console(
            file=stream, stderr=True, emoji=False, markup=False, highlight=False, soft_wrap=True
        )
        self._bar: Progress | None = None
        self._training = False
        self._doing = self._numbers = ""
        self._shown = self._counted = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._training = True
            self._shown = time.monotonic() - self.trace_seconds / 2  # the first one comes earlier
            self._open("step", state.max_steps, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._advance(state.global_step)

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
        begins, now = not self._doing, time.monotonic()
        self._doing = f"evaluating {answered}/{questions}" if answered < questions else ""
        if begins and self._doing:
            told = f"evaluating {questions} questions, answers up to {max_answer_length} tokens"
            self.console.print(told)
            self._counted = now
            if not self._training:
                self._open("question", questions)
        elif self._doing and not self.console.is_terminal and now - self._counted >= _QUIET:
            self.console.print(f"evaluated {answered} of {questions} questions")
            self._counted = now
        if not self._training:
            self._advance(answered)
            if not self._doing:
                self.close()

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
            names = ("eval_accuracy", "eval_accuracy_no_think", "eval_uplift")
            told = ", ".join(_told(name, logs) for name in names)
            self.console.print(f"evaluation at step {state.global_step}: {told}")
        elif "uplift" in logs and self._bar is not None:
            task = self._bar.tasks[0]
            self._numbers = numbers_text(logs)
            if task.speed:
                rate = _sampled_tokens(args, logs) * task.speed
                self._numbers += f"  {1 / task.speed:.1f} s  {rate:,.0f} tokens/s"
            if not self.console.is_terminal:
                left = "-:--" if task.time_remaining is None else clock_text(task.time_remaining)
                times = f"elapsed {clock_text(task.elapsed or 0.0)}  left {left}"
                step = f"step {state.global_step}/{state.max_steps}"
                self.console.print(f"{step}  {self._numbers}  {times}")
            self._show_trace()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._doing = "ended"
        self.close()
        self._training, self._doing = False, ""

    def close(self) -> None:
        """Ends the live line, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open(self, what: str, total: int, done: int = 0) -> None:
        """Begins the live line, which is seen on a terminal alone."""
        wide = self.console.width >= _WIDE
        count = "{task.completed}/{task.total}"
        bar = BarColumn(10, table_column=Column(no_wrap=True))
        self._bar = Progress(
            TextColumn(f"{what} {count}" if wide or not self._training else count),
            *([bar] if wide else []),
            _Words(self._words),
            *([TimeElapsedColumn()] if wide else []),
            "left",
            TimeRemainingColumn(compact=True),
            console=self.console,
            refresh_per_second=2,
            speed_estimate_period=_RECENT,
            transient=not self._training,
            disable=not self.console.is_terminal,
        )
        self._bar.advance(self._bar.add_task(what, total=total, completed=done), 0)  # from now on
        self._bar.start()

    def _advance(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)

    def _words(self) -> str:
        phase = self._doing or _PHASES.get(self.clock.running or "", "training")
        if self.console.width < _WIDE and not self._doing.startswith("evaluating"):
            return f"{self._numbers}  {phase}".strip()
        return f"{phase:8}  {self._numbers}"

    def _show_trace(self) -> None:
        groups = self.newest()
        if groups and time.monotonic() - self._shown >= self.trace_seconds:
            self.console.print(trace_line(max(groups[-1], key=lambda row: row.advantage)))
            self._shown = time.monotonic()


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock_text(192.4)
    '0:03:12'
    """
    return str(timedelta(seconds=round(seconds)))


def _told(name: str, logs: Mapping[str, float]) -> str:
    """``uplift +0.051``."""
    return f"{METRICS[name].label} {METRICS[name].text(logs[name])}"


def numbers_text(logs: Mapping[str, float]) -> str:
    """``drifting  reward 0.31  uplift +0.051  …``; nothing of a state that is healthy."""
    names = _NUMBERS if "reward" in logs else ("answer_logp", *_NUMBERS)  # supervised presets
    state = [STATES[int(logs[COLLAPSE])]] if logs.get(COLLAPSE) else []
    told = (_told(name, logs).removeprefix("trace ") for name in names if name in logs)
    return "  ".join([*state, *told])


def trace_line(row: TraceRow) -> str:
    """``step 20  "What is 2 + 2?"  <think> two and two  advantage +0.71``, on one line."""
    question, trace = (_short(text, 160) for text in (row.prompt, row.trace))
    worth = f"advantage {row.advantage:+.2f}"
    return f'step {row.step}  "{question}"  <think> {trace or "(empty)"}  {worth}'


def _short(text: str, most: int) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _sampled_tokens(args: Any, logs: Mapping[str, float]) -> float:
    """Trace tokens of one optimiser step over all ranks."""
    prompts = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return logs["trace_length"] * prompts * args.num_generations


# -- A table in trackers ---------------------------------------------------------------------------

#: The table's name in every tracker.
NAME = "traces"
#: Trackers that take a table.
TABLES = ("trackio", "wandb")
COLUMNS = (
    *("step", "question", "trace", "reference"),
    *("reward", "advantage", "uplift", "length", "closed"),
)
#: The most that a table holds: questions, traces of each, and characters of a cell.
QUESTIONS, TRACES, CHARACTERS = 4, 8, 2000
#: The number of transformers' callbacks that say which optimiser step a line belongs to.
_STEP = "train/global_step"


class TraceTables(TrainerCallback):
    """Logs the newest traces at the first logged step and then every ``every`` steps (0: never), to
    those of the ``trackers`` that take a table.

    ``newest`` returns the latest traces by question. Rank 0 alone logs, and its own traces alone.
    """

    def __init__(
        self, every: int, trackers: Sequence[str], newest: Callable[[], list[list[TraceRow]]]
    ) -> None:
        self.every, self.newest = every, newest
        self.trackers = [name for name in TABLES if name in trackers]
        self._turn = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.every:
            self._turn = (state.global_step - 1) // self.every
        if "trackio" in self.trackers and state.is_world_process_zero and args.run_name is None:
            run = import_module("trackio").context_vars.current_run.get()
            args.run_name = run.name  # by which an evaluation after training finds it again

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not (self.every and state.is_world_process_zero and "loss" in (logs or {})):
            return
        turn = (state.global_step - 1) // self.every
        if turn == self._turn or not self.trackers:
            return
        self._turn = turn
        cells = table(self.newest())
        for tracker in map(import_module, self.trackers if cells else ()):
            shown = tracker.Table(columns=list(COLUMNS), data=cells)
            tracker.log({NAME: shown, _STEP: state.global_step})


def end_runs(trackers: Sequence[str]) -> None:
    """Ends the W&B run, which transformers leaves open, and the trackio run that an evaluation
    after training has opened again; else both end with the process."""
    if "wandb" in trackers:
        import_module("wandb").finish()
    if "trackio" in trackers:
        trackio = import_module("trackio")
        if trackio.context_vars.current_run.get() is not None:
            trackio.finish()


def table(groups: Sequence[Sequence[TraceRow]]) -> list[list[Any]]:
    """A row per trace, in ``COLUMNS``: of the first questions, and of each the first traces.

    ``uplift`` is the mean of l - b over the answer's tokens, in nats.
    """
    return [_cells(row) for rows in groups[:QUESTIONS] for row in rows[:TRACES]]


def _cells(row: TraceRow) -> list[Any]:
    pairs = zip(row.answer_logps, row.baseline_logps, strict=True)
    gains = [uplift(after, without) for after, without in pairs]
    gain = sum(gains) / max(len(gains), 1)
    texts = map(cell_text, (row.prompt, row.trace, row.answer))
    return [row.step, *texts, row.reward, row.advantage, gain, row.length, row.closed]


def cell_text(text: str) -> str:
    """Text of a cell: not too long, and without control characters or lone surrogates."""
    left = len(text) - CHARACTERS
    return printable(text[:CHARACTERS]) + (f" … {left} more characters" if left > 0 else "")
