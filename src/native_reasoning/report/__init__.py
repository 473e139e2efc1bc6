"""What a run looks like: figures one by one, and one self-contained page (``nrt report``)."""

from collections.abc import Sequence
from pathlib import Path

from native_reasoning.config.errors import RunError
from native_reasoning.records.disk import write_atomically
from native_reasoning.report.figures import FIGURES, figure
from native_reasoning.report.page import MARK, MOST_BYTES, build
from native_reasoning.report.runs import load_run

__all__ = ["FIGURES", "build", "figure", "write_report"]


def write_report(
    paths: Sequence[Path], out: Path, *, most_bytes: int = MOST_BYTES
) -> tuple[str, ...]:
    """The page of the runs in ``paths`` as the file ``out``; returns what could not be shown.

    Traces are left out evenly where the page would have more than ``most_bytes`` (15 MB).
    Raises RunError where a folder holds no run, or ``out`` is a file that is no such page.
    """
    if out.is_dir() or (out.exists() and MARK.encode() not in _beginning(out)):
        raise RunError(
            f"{out} exists and is no report",
            why="nothing but an earlier report is ever overwritten",
            fix="name another file: --out report.html",
        )
    runs = [load_run(path) for path in paths]
    write_atomically(out, build(runs, most_bytes=most_bytes))
    return tuple(f"{run.path}: {problem}" for run in runs for problem in run.problems)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2000)
