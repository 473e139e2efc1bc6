"""The latest traces as a table in W&B and trackio: docs/diagnostics.md.

Numbers get there through transformers' own callbacks, and the table goes into the runs that these
have opened. It is text that a model wrote, and both take a cell as text.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.errors import printable
from native_reasoning.objective.types import uplift
from native_reasoning.records.folder import TraceRow

#: The table's name in every tracker.
NAME = "traces"
#: Trackers that take a table.
TABLES = ("trackio", "wandb")
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
