"""Readers of one file: each yields ``(number, unit, value, problem)`` per row.

``number`` is the line (JSON lines) or the row (everything else), from 1; ``problem`` is None or a
reason of ``account.REASONS`` with a detail. Text is UTF-8, with or without a byte-order mark.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from native_reasoning.config.errors import DataError

RawRow = tuple[int, str, Any, tuple[str, str] | None]
Reader = Callable[[Path, str], Iterator[RawRow]]

_FIELD_LIMIT = 2**31 - 1


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


def read_jsonl(path: Path, name: str) -> Iterator[RawRow]:
    """One JSON value per line, blank lines skipped; one JSON list is read as such."""
    first = next((text for _, text in text_lines(path, name) if text.strip()), "")
    if first.lstrip().startswith("["):
        try:
            document = json.loads("".join(text for _, text in text_lines(path, name)))
        except (ValueError, RecursionError):
            document = None  # lines after all: the bad ones are named one by one
        if isinstance(document, list):
            yield from _document_rows(document)
            return
    yield from json_rows(text_lines(path, name))


def json_rows(lines: Iterable[tuple[int, str]]) -> Iterator[RawRow]:
    """One JSON value per line, blank lines skipped."""
    for number, text in lines:
        if text.strip():
            try:
                yield number, "line", json.loads(text.rstrip()), None
            except (ValueError, RecursionError) as error:
                yield number, "line", None, ("broken_json", _json_problem(error))


def _json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        return f"{line}column {error.colno}: {error.msg}"
    return str(error)


def read_json(path: Path, name: str) -> Iterator[RawRow]:
    """A list of objects, ``{"data": [...]}``, one object, or JSON lines under this suffix.

    Raises DataError naming line and column when it is none of these.
    """
    text = "".join(text for _, text in text_lines(path, name))
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = list(json_rows(text_lines(path, name)))
        if not any(isinstance(value, dict) for _, _, value, _ in lines):
            raise DataError(
                f"{name} is not valid JSON: {_json_problem(error)}",
                why="a broken document has no rows that could be kept",
                fix="write a list of objects, or one object per line in a .jsonl file",
            ) from None
        yield from lines
        return
    yield from _document_rows(document)


def _document_rows(document: Any) -> Iterator[RawRow]:
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    for number, value in enumerate(document if isinstance(document, list) else [document], start=1):
        yield number, "row", value, None


def read_csv(path: Path, name: str) -> Iterator[RawRow]:
    """Rows under a header, every cell as the text that is written ("007" stays "007").

    ``number`` counts the rows below the header. A row with more cells than the header is bad; one
    with fewer lacks the last columns. Raises DataError when the header cannot be read.
    """
    limit = csv.field_size_limit(_FIELD_LIMIT)  # the default refuses cells over 128 KiB
    try:
        delimiter = _csv_delimiter(path, name)
        lines = (text for _, text in text_lines(path, name))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _csv_header(reader, name)
        number = 0
        for fields, error in _csv_fields(reader):
            if fields is None or fields:
                number += 1
                yield number, "row", *_csv_row(header, fields, error)
    finally:
        csv.field_size_limit(limit)


def _csv_delimiter(path: Path, name: str) -> str:
    """A tab in .tsv, else a comma, unless only a semicolon or a tab parts the header."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    for delimiter in (usual, ";", "\t"):
        lines = (text for _, text in text_lines(path, name))
        with suppress(csv.Error):  # where none will do, it is raised by who reads the header
            if len(_first_row(csv.reader(lines, delimiter=delimiter, strict=True))) > 1:
                return delimiter
    return usual


def _first_row(reader: Iterable[list[str]]) -> list[str]:
    """The first row with any text in it."""
    return next((cells for cells in reader if any(map(str.strip, cells))), [])


def _csv_header(reader: Any, name: str) -> list[str]:
    try:
        first = _first_row(reader)
    except csv.Error as error:
        raise _bad_header(name, str(error)) from None
    header = [column.strip() for column in first]
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise _bad_header(name, f"it names {', '.join(twice)} twice")
    return header


def _bad_header(name: str, problem: str) -> DataError:
    return DataError(
        f"the header of {name} cannot be used: {problem}",
        why="the first row of a CSV file names its columns",
        fix="correct the first row",
    )


def _csv_fields(reader: Any) -> Iterator[tuple[list[str] | None, str]]:
    """The cells of each row, or None and what is wrong; the reader goes on after an error."""
    while True:
        try:
            yield next(reader), ""
        except StopIteration:
            return
        except csv.Error as error:
            yield None, f"{error}, up to line {reader.line_num} of the file"


def _csv_row(
    header: list[str], fields: list[str] | None, error: str
) -> tuple[dict[str, str] | None, tuple[str, str] | None]:
    if fields is None:
        return None, ("broken_csv", error)
    if len(fields) > len(header):
        return None, ("broken_csv", f"{len(fields)} cells under {len(header)} columns")
    return dict(zip(header, fields, strict=False)), None


def read_parquet(path: Path, name: str) -> Iterator[RawRow]:
    """Rows of a Parquet file, a thousand in memory at a time. Raises DataError when broken."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    number += 1
                    yield number, "row", value, None
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} cannot be read as Parquet after row {number}: {str(error).splitlines()[0]}",
            why="the file is damaged or of another kind",
            fix="write it anew, or give it the suffix of its kind",
        ) from error


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
