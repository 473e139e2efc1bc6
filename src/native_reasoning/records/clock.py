"""Where the time of a step goes, stage by stage.

``sampling`` traces (with answers), ``scoring`` forwards, the
``objective`` and its loss, ``backward``, the ``optimiser`` with clipping, ``diagnostics``,
``records`` (metrics, traces, checkpoints), ``waiting`` for other ranks, and ``other``. On an
accelerator work is queued, so a stage is where the queue was waited for, not where the work was
asked for.
"""

import json
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.records.folder import read_timings
from native_reasoning.records.metrics import STAGES

PROFILE = "profile.json"


class Clock:
    """Adds up seconds by stage; a stage inside another is taken off the outer one."""

    def __init__(self) -> None:
        self._seconds = _nothing()
        self._open: list[tuple[str, float]] = []

    def begin(self, name: str) -> None:
        """From here on time belongs to ``name``."""
        now = time.perf_counter()
        if self._open:
            outer, since = self._open[-1]
            self._seconds[outer] += now - since
        self._open.append((name, now))

    def end(self, name: str) -> None:
        """Ends ``name``, if it is what is running."""
        if not self._open or self._open[-1][0] != name:
            return
        now = time.perf_counter()
        _, since = self._open.pop()
        self._seconds[name] += now - since
        if self._open:
            self._open[-1] = (self._open[-1][0], now)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time inside belongs to ``name``."""
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    @property
    def running(self) -> str | None:
        """The stage that time belongs to now; another thread may ask."""
        return next((name for name, _ in self._open[-1:]), None)

    def take(self) -> dict[str, float]:
        """Seconds by stage since this was asked last."""
        taken, self._seconds = self._seconds, _nothing()
        return taken


def _nothing() -> dict[str, float]:
    return dict.fromkeys(STAGES, 0.0)


class ClockCallback(TrainerCallback):
    """Ends the optimiser's time, which begins with the last backward of a step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clock.end("optimiser")


class ProfileCallback(TrainerCallback):
    """``nrt train --profile N``: after N + 1 steps of this process (the first warms up) tells
    where the time went, and writes ``profile.json`` into the run folder."""

    def __init__(self, steps: int) -> None:
        self.steps, self._first = steps, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._first = state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self._first + self.steps + 1:
            self._tell(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step - self._first <= self.steps + 1:
            self._tell(args, state)

    def _tell(self, args: TrainingArguments, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        found = profile_of(read_timings(folder), self._first + 2, self._first + self.steps + 1)
        (folder / PROFILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print("\n".join(profile_lines(found)), file=sys.stderr, flush=True)


def profile_of(timings: Sequence[dict[str, Any]], first: int, last: int) -> dict[str, Any]:
    """Mean seconds of each stage over steps ``first`` to ``last``, and of a whole step."""
    lines = [t for t in timings if "step_seconds" in t and first <= t["step"] <= last]
    count = max(len(lines), 1)
    seconds = {
        name: sum(line[f"{name}_seconds"] for line in lines) / count
        for name in (*STAGES, "other", "step")
    }
    return {"steps": len(lines), "seconds": seconds}


def profile_lines(found: dict[str, Any]) -> list[str]:
    """A table for people."""
    seconds = dict(found["seconds"])
    whole = seconds.pop("step")
    rows = [
        f"  {name:<10} {value:8.3f} s  {100 * value / max(whole, 1e-9):5.1f} %"
        for name, value in seconds.items()
    ]
    return [f"time of a step ({found['steps']} steps, mean): {whole:.3f} s", *rows]
