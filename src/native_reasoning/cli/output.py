"""What goes where: results on stdout, progress on stderr, quiet libraries."""

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import Any

from native_reasoning.config.errors import printable, warn
from native_reasoning.model.folders import check_folder

_LONGEST_PART = 1500


def is_main_process() -> bool:
    """Whether this process prints: the first of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A line for people on stderr."""
    if is_main_process():
        warn(text)


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
    """Columns of text on stdout, two spaces apart, without a header where all titles are empty."""
    lines = [header, *rows] if any(header) else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        show("  ".join(cells).rstrip())


def show_row(title: str, row: Mapping[str, str]) -> None:
    """The parts of a row of data on stdout, each behind its name; long ones are cut."""
    show(f"{title}:")
    for part, text in row.items():
        cut = text if len(text) <= _LONGEST_PART else text[:_LONGEST_PART] + " ..."
        show(f"{part}:\n{indent(cut.rstrip() or ' ', '  | ', lambda line: True)}")


def quiet_libraries() -> None:
    """Keeps loading bars, notes and warnings of the libraries off stderr. Bars of downloads stay on
    a terminal: they can take long."""
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
