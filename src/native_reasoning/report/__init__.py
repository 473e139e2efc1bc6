"""What a run looks like, and arms beside each other: figures, and one self-contained page."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from native_reasoning.config.errors import RunError
from native_reasoning.records.disk import write_atomically
from native_reasoning.records.folder import METRICS
from native_reasoning.report.figures import FIGURES, figure
from native_reasoning.report.page import build
from native_reasoning.report.runs import load_run

__all__ = ["FIGURES", "build", "figure", "keep_fresh", "write_report"]

#: Seconds between two pages of a run that goes on.
EVERY = 20


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    refresh: int = 0,
    comparison: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """The page of the runs in ``paths`` as the file ``out``; returns what could not be shown. It
    begins with a ``comparison`` of them, what compare.json holds, where there is one.

    Traces that would make the page too large are left out evenly. In a browser the page loads
    itself again every ``refresh`` seconds; 0 means never. Raises RunError where a folder holds no
    run, or where ``out`` is no name of a page: only a page is ever replaced.
    """
    if out.suffix != ".html" or out.is_dir():
        raise RunError(
            f"{out} is no name for a report",
            why="a report is a file that ends in .html",
            fix="name such a file: --out report.html",
        )
    runs = [load_run(path) for path in paths]
    write_atomically(out, build(runs, refresh=refresh, comparison=comparison))
    return tuple(f"{run.path}: {problem}" for run in runs for problem in run.problems)


def keep_fresh(paths: Sequence[Path], out: Path) -> None:
    """Writes the page again whenever a run has logged more, until it is interrupted; the last page
    no longer loads itself again."""
    written = _logged(paths)
    try:
        while True:
            time.sleep(EVERY)
            if (now := _logged(paths)) != written:
                write_report(paths, out, refresh=EVERY)
                written = now
    finally:
        write_report(paths, out)


def _logged(paths: Sequence[Path]) -> list[int]:
    """When each run logged last, in nanoseconds."""
    return [file.stat().st_mtime_ns for path in paths for file in path.glob(METRICS)]
