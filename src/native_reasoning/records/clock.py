"""Where the time of a step goes, stage by stage.

``sampling`` traces (with answers), ``scoring`` forwards, the
``objective`` and its loss, ``backward``, the ``optimiser`` with clipping, ``diagnostics``,
``records`` (metrics, traces, checkpoints), ``waiting`` for other ranks, and ``other``. On an
accelerator work is queued, so a stage is where the queue was waited for, not where the work was
asked for.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager

from native_reasoning.records.metrics import STAGES


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
