"""``nrt report``: the page of a run, written to a file or served while it trains."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from native_reasoning.cli.flags import Parsed, number
from native_reasoning.cli.output import say, show, show_json
from native_reasoning.config.errors import ConfigError, RunError


def run(parsed: Parsed) -> int:
    """Writes or serves the page; returns the exit code."""
    _check(parsed)
    paths = run_folders(parsed.positionals)
    if parsed.own["watch"]:
        from native_reasoning.report.watch import serve

        serve(paths, number(parsed.own, "port") or 0, _serving)
        return 0
    from native_reasoning.report import write_report

    out = Path(parsed.own["out"] or place_of(paths))
    problems = write_report(paths, out)
    for problem in problems:
        say(f"note: {problem}")
    if parsed.own["json"]:
        runs = [str(path) for path in paths]
        show_json({"report": str(out), "runs": runs, "problems": problems})
    else:
        show(f"{out}  ({out.stat().st_size / 1e6:.1f} MB: open it in a browser)")
    return 0


def _check(parsed: Parsed) -> None:
    """Raises ConfigError for flags that say nothing together."""
    served = ("port",) if not parsed.own["watch"] else ("out", "json")
    for name in served:
        if parsed.own[name]:
            watch = "with" if parsed.own["watch"] else "without"
            raise ConfigError(
                f"--{name} means nothing {watch} --watch",
                why="--watch serves the page and writes no file",
                fix=f"leave out --{name}, or {'leave out' if watch == 'with' else 'add'} --watch",
            )


def _serving(address: str) -> None:
    show(f"{address}  (this machine alone; Ctrl-C ends it)")
    sys.stdout.flush()


def run_folders(names: Sequence[str]) -> list[Path]:
    """The run folders that are named, each once; a folder that only holds runs stands for them."""
    from native_reasoning.report.runs import is_run

    found: dict[Path, Path] = {}
    for path in map(Path, names):
        inside = [] if is_run(path) or not path.is_dir() else sorted(filter(is_run, path.iterdir()))
        if not inside and not is_run(path):
            raise RunError(
                f"{path} {'holds no run' if path.is_dir() else 'is not there'}",
                why="a run folder has config.yaml or metrics.jsonl in it",
                fix="name the folder that `nrt train` said it was training into",
            )
        for one in inside or [path]:
            found.setdefault(one.resolve(), one)
    return [*found.values()]


def place_of(paths: Sequence[Path]) -> Path:
    """report.html in the folder of the one run, or beside several."""
    folder = paths[0] if len(paths) == 1 else Path(os.path.normpath(paths[0] / ".."))
    return folder / "report.html"
