"""What goes where: results on stdout, progress on stderr, and quiet libraries."""

import json
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from native_reasoning.config.errors import NativeReasoningError, printable
from native_reasoning.model.folders import check_folder


def error_text(error: NativeReasoningError) -> str:
    """The three lines of an error: what, why, fix."""
    what, why, fix = (" ".join(part.split()) for part in (error.what, error.why, error.fix))
    return f"error: {printable(what)}\n  why: {printable(why)}\n  fix: {printable(fix)}"


def is_main_process() -> bool:
    """Whether this process prints: the first of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A line for people on stderr."""
    if is_main_process():
        print(printable(text), file=sys.stderr, flush=True)


def say_loading(model: str) -> None:
    """Which model is being loaded, and from where: a download can take long. Raises PolicyError for
    a folder without one."""
    check_folder(model)
    say(f"loading {model}" + ("" if os.path.isdir(model) else " from the Hugging Face hub"))


def show(text: str) -> None:
    """Text of the result on stdout."""
    if is_main_process():
        print(printable(text))


def show_json(value: Any) -> None:
    """The result as one line of JSON on stdout; numbers that are not finite become null."""
    if is_main_process():
        print(json.dumps(finite(value), ensure_ascii=True, allow_nan=False, default=str))


def finite(value: Any) -> Any:
    """A value for JSON: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: with rich on a terminal, else columns of plain text."""
    if not is_main_process():
        return
    cells = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        print(plain_table(header, cells))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in header:
        table.add_column(Text(title), overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout).print(table)


def terminal_width() -> int | None:
    """Columns of the terminal on stdout; None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, two spaces apart, without a header where all titles are empty."""
    lines = [list(header), *map(list, rows)] if any(header) else list(map(list, rows))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def quiet_libraries() -> None:
    """Keeps loading bars, notes and warnings of the libraries off stderr, which is ours.

    Bars of downloads stay on a terminal: they can take long.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate|datasets)\b")
    from huggingface_hub.utils import enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()


def indented(text: str, mark: str = "  | ") -> str:
    """Each line behind a mark."""
    return "\n".join(mark + line for line in text.splitlines() or [""])
