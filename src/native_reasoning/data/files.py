"""Readers of one file: each yields its rows. Text is UTF-8, with or without a byte-order mark.

One bad line among good ones is a row with a problem, and reading goes on: loaders that read a file
in blocks give up the whole file for one broken line.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from native_reasoning.config.errors import DataError


@dataclass(frozen=True)
class Row:
    """One raw row. ``number`` is its line (JSON lines) or row, from 1; ``place`` is for people:
    "line 7", "b.csv row 7".

    ``problem`` is None, or a reason of ``loading.REASONS`` and a detail: then there is no value.
    """

    number: int
    place: str
    value: Any
    problem: tuple[str, str] | None = None


def numbered(values: Iterable[Any]) -> Iterator[Row]:
    """Values as rows."""
    for number, value in enumerate(values, start=1):
        yield Row(number, f"row {number}", value)


def text_lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file with their numbers; only a line feed ends a line.

    Raises DataError naming line and byte where the file is not UTF-8.
    """
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                encoding = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
                at = f"line {number}, byte {offset + error.start} of the file"
                raise DataError(
                    f"{name} is not UTF-8: {at}",
                    why="its text would reach the model garbled",
                    fix=f"convert it, if it is {encoding}: iconv -f {encoding} -t UTF-8 {name} "
                    "> fixed",
                ) from None
            yield number, text if offset else text.removeprefix("\ufeff")
            offset += len(raw)


def read_json(path: Path, name: str) -> Iterator[Row]:
    """One JSON value per line, blank lines skipped; or one document: a list of objects, and in a
    .json file also ``{"data": [...]}`` or one object.

    Raises DataError naming line and column when a .json file is none of these.
    """
    one_document = path.suffix.lower() == ".json"
    first = next((text for _, text in text_lines(path, name) if text.strip()), "")
    rows = _json_lines(path, name)
    if first and (one_document or first.lstrip().startswith("[")):
        try:
            document = json.loads("".join(text for _, text in text_lines(path, name)))
        except (ValueError, RecursionError) as error:
            if one_document:
                rows = list(rows)
                if not any(isinstance(row.value, dict) for row in rows):
                    raise DataError(
                        f"{name} is not valid JSON: {_json_problem(error)}",
                        why="a broken document has no rows that could be kept",
                        fix="write a list of objects, or one object per line in a .jsonl file",
                    ) from None
        else:
            if isinstance(document, dict) and isinstance(document.get("data"), list):
                document = document["data"]
            rows = numbered(document if isinstance(document, list) else [document])
    yield from rows


def _json_lines(path: Path, name: str) -> Iterator[Row]:
    for number, text in text_lines(path, name):
        if text.strip():
            try:
                value, problem = json.loads(text.rstrip()), None
            except (ValueError, RecursionError) as error:
                value, problem = None, ("broken_json", _json_problem(error))
            yield Row(number, f"line {number}", value, problem)


def _json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        return f"{line}column {error.colno}: {error.msg}"
    return str(error)


def read_csv(path: Path, name: str) -> Iterator[Row]:
    """Rows under a header, every cell as the text that is written ("007" stays "007").

    A row with more cells than the header is bad; one with fewer lacks the last columns. Raises
    DataError when the header cannot be read.
    """
    csv.field_size_limit(2**31 - 1)  # the default refuses cells over 128 KiB
    reader = _csv_reader(path, name, _csv_delimiter(path, name))
    header = _csv_header(reader, name)
    number = 0
    while True:
        cells, problem = list[str](), ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"{error}, up to line {reader.line_num} of the file"
        if len(cells) > len(header):
            problem = f"{len(cells)} cells under {len(header)} columns"
        if cells or problem:
            number += 1
            value = None if problem else dict(zip(header, cells, strict=False))
            yield Row(number, f"row {number}", value, ("broken_csv", problem) if problem else None)


def _csv_reader(path: Path, name: str, delimiter: str) -> Any:
    lines = (text for _, text in text_lines(path, name))
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _csv_delimiter(path: Path, name: str) -> str:
    """A tab in .tsv, else a comma, unless only a semicolon or a tab parts the header."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    for delimiter in (usual, ";", "\t"):
        with suppress(csv.Error):  # where none will do, it is raised by who reads the header
            if len(_first_row(_csv_reader(path, name, delimiter))) > 1:
                return delimiter
    return usual


def _first_row(reader: Iterable[list[str]]) -> list[str]:
    """The first row with any text in it."""
    return next((cells for cells in reader if any(map(str.strip, cells))), [])


def _csv_header(reader: Any, name: str) -> list[str]:
    header, problem = list[str](), ""
    try:
        header = [column.strip() for column in _first_row(reader)]
    except csv.Error as error:
        problem = str(error)
    if twice := sorted({column for column in header if column and header.count(column) > 1}):
        problem = f"it names {', '.join(twice)} twice"
    if problem:
        raise DataError(
            f"the header of {name} cannot be used: {problem}",
            why="the first row of a CSV file names its columns",
            fix="correct the first row",
        )
    return header


def read_parquet(path: Path, name: str) -> Iterator[Row]:
    """Rows of a Parquet file, a thousand in memory at a time. Raises DataError when broken."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1000)
            yield from numbered(value for batch in batches for value in batch.to_pylist())
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}",
            why="the file is damaged or of another kind",
            fix="write it anew, or give it the suffix of its kind",
        ) from error


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
