"""The latest traces as a table in the trackers that ``report_to`` names: docs/diagnostics.md.

Numbers get there through transformers' own callbacks, and the table goes into the runs that these
have opened. It is text that a model wrote: W&B and trackio take a cell as text, TensorBoard as
Markdown, so there every sign that could mean something is written as its number.
"""

import string
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)
from transformers.trainer_callback import CallbackHandler

from native_reasoning.config.errors import printable
from native_reasoning.objective.types import uplift
from native_reasoning.records.tables import TraceRow

#: The table's name in every tracker.
NAME = "traces"
COLUMNS = (
    "step",
    "question",
    "trace",
    "reference",
    "reward",
    "advantage",
    "uplift",
    "length",
    "closed",
)
#: The most that a table holds: questions, traces of each, and characters of a cell.
QUESTIONS, TRACES, CHARACTERS = 4, 8, 2000
#: The number of transformers' callbacks that say which optimiser step a line belongs to.
_STEP = "train/global_step"
_AS_NUMBERS = {ord(sign): f"&#{ord(sign)};" for sign in string.punctuation} | {ord("\n"): "↵"}


class TraceTables(TrainerCallback):
    """Logs the newest traces at the first logged step and then every ``every`` steps (0: never).

    ``handler`` has the trainer's callbacks, ``newest`` returns the latest traces by question. Rank
    0 alone logs, and its own traces alone.
    """

    def __init__(
        self,
        every: int,
        handler: CallbackHandler,
        newest: Callable[[], list[list[TraceRow]]],
    ) -> None:
        self.every, self.handler, self.newest = every, handler, newest
        self._turn = -1
        self._training = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = True
        if self.every:
            self._turn = (state.global_step - 1) // self.every
        tracked = any(isinstance(callback, TrackioCallback) for callback in self.handler.callbacks)
        if tracked and state.is_world_process_zero and args.run_name is None:
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
        if turn == self._turn:
            return
        self._turn = turn
        sends = [
            send for callback in self.handler.callbacks if (send := sender(callback)) is not None
        ]
        cells = table(self.newest()) if sends else []
        for send in sends if cells else ():
            send(cells, state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation after training opened again what the end of training had closed."""
        if self._training or not state.is_world_process_zero:
            return
        for callback in self.handler.callbacks:
            if isinstance(callback, TensorBoardCallback | TrackioCallback):
                callback.on_train_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False


def end_runs(callbacks: Iterable[TrainerCallback]) -> None:
    """Ends the W&B run that transformers leaves open until the process ends."""
    if any(isinstance(callback, WandbCallback) for callback in callbacks):
        import_module("wandb").finish()


def table(groups: Sequence[Sequence[TraceRow]]) -> list[list[Any]]:
    """A row per trace, in ``COLUMNS``: of the first questions, and of each the first traces.

    ``uplift`` is the mean of l - b over the answer's tokens, in nats.
    """
    return [_cells(row) for rows in groups[:QUESTIONS] for row in rows[:TRACES]]


def _cells(row: TraceRow) -> list[Any]:
    pairs = zip(row.answer_logps, row.baseline_logps, strict=True)
    gains = [uplift(after, without) for after, without in pairs]
    return [
        row.step,
        cell_text(row.prompt),
        cell_text(row.trace),
        cell_text(row.answer),
        row.reward,
        row.advantage,
        sum(gains) / max(len(gains), 1),
        row.length,
        row.closed,
    ]


def cell_text(text: str) -> str:
    """Text of a cell: not too long, and without control characters or lone surrogates."""
    left = len(text) - CHARACTERS
    return printable(text[:CHARACTERS]) + (f" … {left} more characters" if left > 0 else "")


def markdown(cells: Iterable[Sequence[Any]]) -> str:
    """The table in Markdown; what stands in a cell is text, whatever it looks like.

    >>> print(markdown([["<b>", 0.25]]).splitlines()[-1])
    | &#60;b&#62; | 0.25 |
    """
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(map(_as_text, row) for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _as_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).translate(_AS_NUMBERS)


def sender(callback: TrainerCallback) -> Callable[[list[list[Any]], int], None] | None:
    """What puts a table of some step into the run that one of transformers' callbacks has opened;
    None for another callback, or one that has no run open."""
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        writer = callback.tb_writer
        return lambda cells, step: writer.add_text(NAME, markdown(cells), step)
    if isinstance(callback, WandbCallback):
        wandb = import_module("wandb")
        if wandb.run is not None:
            return lambda cells, step: _log(wandb.run.log, wandb.Table, cells, step)
    if isinstance(callback, TrackioCallback):
        trackio = import_module("trackio")
        if trackio.context_vars.current_run.get() is not None:
            return lambda cells, step: _log(trackio.log, trackio.Table, cells, step)
    return None


def _log(
    log: Callable[[dict[str, Any]], Any], table_of: Any, cells: list[list[Any]], step: int
) -> None:
    log({NAME: table_of(columns=list(COLUMNS), data=cells), _STEP: step})
