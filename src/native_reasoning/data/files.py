"""Rows of text files: the lines of a file, and JSON in the forms in which people keep it.

One bad line among good ones is a row with a problem, and reading goes on: loaders that read a file
in blocks give up the whole file for one broken line.
"""

import bz2
import gzip
import io
import json
import lzma
import shlex
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from native_reasoning.config.errors import DataError
from native_reasoning.data.shapes import has_columns
from native_reasoning.data.values import has_roles

#: What opens a compressed file.
COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(frozen=True)
class Row:
    """One raw row. ``number`` is its line (JSON lines, CSV) or row, from 1; ``place`` is for
    people: "line 7", "b.csv line 7".

    ``problem`` is None, or a reason of ``values.REASONS`` and a detail: then there is no value.
    ``notes`` are keys of ``values.NOTES``, each with its place.
    """

    number: int
    place: str
    value: Any
    problem: tuple[str, str] | None = None
    notes: tuple[tuple[str, str], ...] = ()


def numbered(values: Iterable[Any]) -> Iterator[Row]:
    """Values as rows."""
    for number, value in enumerate(values, start=1):
        yield Row(number, f"row {number}", value)


def suffix_of(path: Path) -> str:
    """The suffix that says how a file is read, in small letters: ".jsonl" of "a.JSONL.gz"."""
    compressed = path.suffix.lower() in COMPRESSED
    return (path.with_suffix("") if compressed else path).suffix.lower()


def text_lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Lines of a text file with their numbers. Text is UTF-8, or UTF-16 where a byte-order mark
    says so. A line feed alone ends a line, a carriage return in a file without line feeds.

    Raises DataError naming line and byte where the file is neither.
    """
    try:
        encoding, ending = _form(path, name)
        with _opened(path) as file, io.TextIOWrapper(file, encoding, newline=ending) as lines:
            for number, text in enumerate(lines, start=1):
                yield number, text[:-1] + "\n" if text[-1] == ending == "\r" else text
    except UnicodeDecodeError:
        raise _not_text(name, *_first_wrong(path), "WINDOWS-1252") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise DataError(
            f"{name} cannot be unpacked: {error}",
            why="the rest of the file cannot be read",
            fix="copy or pack the file anew",
        ) from error


def _form(path: Path, name: str) -> tuple[str, str]:
    """The encoding of a file and what ends its lines, by its beginning."""
    with _opened(path) as file:
        begin = file.read(1 << 16)
    encoding = "utf-8-sig"
    if begin[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
        begin = begin.replace(b"\0", b"")
    elif len(begin) > 3 and b"\0\0" in (begin[1:4:2], begin[0:3:2]):
        raise _not_text(name, 1, 0, "UTF-16LE" if begin[1] == 0 else "UTF-16BE")
    return encoding, "\r" if b"\r" in begin and b"\n" not in begin else "\n"


def _opened(path: Path) -> IO[bytes]:
    return COMPRESSED.get(path.suffix.lower(), lambda path: path.open("rb"))(path)


def _first_wrong(path: Path) -> tuple[int, int]:
    """Line and byte, in the file, of the first byte that is not UTF-8."""
    number = offset = 0
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                return number, offset + error.start
            offset += len(raw)
    return number, offset


def _not_text(name: str, line: int, byte: int, encoding: str) -> DataError:
    fixed = shlex.quote("utf8-" + Path(name).name)
    return DataError(
        f"{name} is not UTF-8: line {line}, byte {byte} of the file",
        why="its text would reach the model garbled",
        fix=f"convert it, if it is {encoding}: iconv -f {encoding} -t UTF-8 {shlex.quote(name)} "
        f"> {fixed}",
    )


# -- JSON ------------------------------------------------------------------------------------------


def read_json(path: Path, name: str, split: str | None = None) -> Iterator[Row]:
    """One JSON value per line, blank lines skipped; or one document that holds rows in one of the
    forms of ``rows_in``. ``split`` names one of several lists of a document.

    Raises DataError naming line and column when a .json file is none of these, and naming the keys
    of a document in which no rows are found.
    """
    one_document = suffix_of(path) == ".json"
    lines = (text for _, text in text_lines(path, name) if text.strip())
    first, second = next(lines, ""), next(lines, "")
    if first and (one_document or first.lstrip().startswith("[") or not second):
        try:
            document = json.loads("".join(text for _, text in text_lines(path, name)))
        except (ValueError, RecursionError) as error:
            if split is not None:
                _chosen(split, [], name)
            rows = _json_lines(path, name)
            if one_document:
                rows = list(rows)
                if not any(isinstance(row.value, dict) for row in rows):
                    raise DataError(
                        f"{name} is not valid JSON: {_json_problem(error)}",
                        why="a broken document has no rows that could be kept",
                        fix="write a list of objects, or one object per line in a .jsonl file",
                    ) from None
        else:
            rows = numbered(rows_in(document, name, split))
    else:
        rows = _json_lines(path, name)
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


def rows_in(document: Any, name: str, split: str | None = None) -> list[Any]:
    """The rows of a JSON document: a list of objects, such a list under a key, an object of
    records by their ids, a table by columns (pandas' forms too), SQuAD's articles, or one object.

    Raises DataError where an object holds several lists and ``split`` names none of them.
    """
    named = document if isinstance(document, Mapping) else {}
    lists = {key: v for key, v in named.items() if _records(v) and not has_roles(v)}
    if split is not None:
        return _questions(lists[_chosen(split, [*lists], name)])
    if not isinstance(document, Mapping):
        return document if isinstance(document, list) else [document]
    if has_columns(document) and not _is_table(document):
        return [document]
    if {"columns", "data"} <= document.keys():  # pandas' "split"
        return [dict(zip(document["columns"], cells, strict=False)) for cells in document["data"]]
    if _is_table(document):
        columns = [v.values() if isinstance(v, Mapping) else v for v in document.values()]
        return [dict(zip(document, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if len(lists) > 1:
        return _questions(lists[_chosen(split, [*lists], name)])
    if lists:
        return _questions(next(iter(lists.values())))
    records = [v for v in document.values() if isinstance(v, Mapping)]
    if len(records) > 1 and len(records) == len(document):
        shared = set(records[0]).intersection(*records)
        if shared and (any(map(has_columns, records)) or len(records) > 2):
            return [{"id": key, **record} for key, record in document.items()]
    return [document]


def _records(value: Any) -> bool:
    """Whether a value is a list of objects."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _is_table(document: Mapping[str, Any]) -> bool:
    """Whether every value is a column, and all are of one length: lists of plain values, or objects
    with the same keys, such as "0", "1", "2", that are no names of columns."""
    values = [*document.values()]
    if all(isinstance(v, list) for v in values):
        plain = not any(isinstance(item, Mapping) for v in values for item in v)
        return plain and len(values) > 1 and len({len(v) for v in values}) == 1 and values[0] != []
    if not all(isinstance(v, Mapping) and v for v in values) or len(values) < 2:
        return False
    same = all(v.keys() == values[0].keys() for v in values)
    return same and (has_columns(document) or all(str(key).isdecimal() for key in values[0]))


def _chosen(split: str | None, keys: list[str], name: str) -> str:
    if split is None and "train" in keys:
        return "train"
    if split in keys:
        return split
    raise DataError(
        f"{name} holds the lists {', '.join(keys) or '(none by name)'}"
        + ("" if split is None else f": none is {split!r}"),
        why="one of them is read, by its name",
        fix=f"name it: {name}[{keys[0]}], in Python split={keys[0]!r}"
        if keys
        else "leave the split out",
    )


def _questions(rows: list[Any]) -> list[Any]:
    """SQuAD's articles as one row for each question, with its context and title; others as they
    are."""
    if not all(_records(row.get("paragraphs")) or _records(row.get("qas")) for row in rows):
        return rows
    return [
        {
            **{k: v for k, v in article.items() if k != "paragraphs"},
            **_without_qas(part),
            **question,
        }
        for article in rows
        for part in article.get("paragraphs", [article])
        for question in part["qas"]
    ]


def _without_qas(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "qas"}
