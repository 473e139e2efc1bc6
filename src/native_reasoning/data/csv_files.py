r"""CSV and TSV files -> rows, with an eye on the lines of the file: one stray quote costs one row.

Python's ``csv`` reads a record. What is checked here is how many lines of the file it took for it:
a quote that is opened and never closed takes the rest of the file, and a quote that the next stray
one closes takes all rows between the two. A record that ends in a wrong place is given up with its
first line alone, and reading goes on behind that; quotes written ``\"`` are tried before. A record
that is whole is kept, because a cell may hold a table, and named where its lines look like rows.
"""

import csv
import re
import shlex
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from native_reasoning.config.errors import DataError
from native_reasoning.data.files import Row, suffix_of, text_lines

#: Excel's first line, which says what parts the cells.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')
#: So many lines inside a cell that have as many cells as a row are worth a word.
_LIKE_ROWS = 3

csv.field_size_limit(2**31 - 1)  # the default refuses cells over 128 KiB


class _Lines:
    """The lines of a file from the current one on: those that were looked at are kept."""

    def __init__(self, lines: Iterable[tuple[int, str]]) -> None:
        self._rest = (text for _, text in lines)
        self._seen: deque[str] = deque()
        self.number = 1

    def ahead(self) -> Iterator[str]:
        """The lines from the current one on, without moving."""
        yield from islice(self._seen, len(self._seen))
        for text in self._rest:
            self._seen.append(text)
            yield text

    def move(self, lines: int) -> None:
        """The current line is so many lines further on."""
        for _ in range(lines):
            self._seen.popleft()
        self.number += lines


def read_csv(path: Path, name: str) -> Iterator[Row]:
    """Rows under a header, every cell as the text that is written ("007" stays "007").

    ``Row.number`` is the line of the file on which the row begins. A row with more cells than the
    header is bad, unless they are empty; one with fewer lacks the last columns. Raises DataError
    when the header cannot be read.
    """
    lines = _Lines(text_lines(path, name))
    delimiter = _delimiter(lines, suffix_of(path))
    header, used = _header(lines, delimiter, name)
    lines.move(used)
    while (line := next(lines.ahead(), None)) is not None:
        used = 1
        if line.strip("\r\n"):
            cells, used, said = _record(lines, delimiter, len(header))
            place = f"line {lines.number}"
            if cells is None:
                yield Row(lines.number, place, None, ("broken_csv", said))
            else:
                value = dict(zip(header, cells, strict=False))
                note = f"{place} to {lines.number + used - 1}" if said else ""
                yield Row(lines.number, place, value, notes=((said, note),) if said else ())
        lines.move(used)


def _record(lines: _Lines, delimiter: str, width: int) -> tuple[list[str] | None, int, str]:
    """Cells of the record that begins on the current line, how many lines it takes, and what is to
    be noted; or None, one line, and what is wrong with it."""
    problem = ""
    for backslash in (False, True):
        try:
            cells, used = _parsed(lines.ahead(), delimiter, backslash)
        except csv.Error as error:
            problem = problem or _what(error)
            continue
        cells = cells if any(cells[width:]) else cells[:width]
        if len(cells) > width:
            problem = problem or f"{len(cells)} cells under {width} columns"
            continue
        taken = [text.count(delimiter) == width - 1 for text in islice(lines.ahead(), used)]
        if delimiter == "\t" and used > 1 and all(taken):
            break
        suspicious = width > 1 and sum(taken[1:]) >= max(_LIKE_ROWS, used - 2)
        return cells, used, "long_record" if suspicious else ""
    line = next(lines.ahead()).rstrip("\r\n")
    if delimiter == "\t" and line.count(delimiter) == width - 1:
        return line.split(delimiter), 1, ""  # in these files a quote is a letter like others
    return None, 1, problem


def _parsed(lines: Iterator[str], delimiter: str, backslash: bool = False) -> tuple[list[str], int]:
    r"""Cells of the first record, and its lines. ``backslash``: a
    quote in a cell is written ``\"``. Raises csv.Error."""
    if backslash:
        lines = (text.replace('\\"', '""') for text in lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    return next(reader, []), reader.line_num


def _what(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a quote is opened and never closed"
    return str(error)


def _delimiter(lines: _Lines, suffix: str) -> str:
    """What a line ``sep=;`` says; a tab in .tsv; else a comma, unless only a semicolon or a tab
    parts the header."""
    if found := _SEPARATOR_LINE.fullmatch(next(lines.ahead(), "")):
        lines.move(1)
        return found[1]
    usual = "\t" if suffix == ".tsv" else ","
    for delimiter in (usual, ";", "\t", "|"):
        with suppress(csv.Error):  # where none will do, it is raised by who reads the header
            if len(_first(lines, delimiter)[0]) > 1:
                return delimiter
    return usual


def _first(lines: _Lines, delimiter: str) -> tuple[list[str], int]:
    """The first record with any text in it, and the lines up to its end. Raises csv.Error."""
    ahead = lines.ahead()
    used = 0
    while True:
        cells, more = _parsed(ahead, delimiter)
        used += more
        if more == 0 or any(map(str.strip, cells)):
            return cells, used


def header_command(path: Path, columns: Sequence[str]) -> str | None:
    """What gives names to the two columns of a file whose first row reads like a question and its
    answer; None where it does not."""
    question = max(columns, key=len, default="")
    if len(columns) != 2 or not (" " in question and (len(question) > 30 or question[-1] in "?.:")):
        return None
    names = ("question", "answer") if columns[0] == question else ("answer", "question")
    first = next(text for _, text in text_lines(path, path.name) if text.strip())
    delimiter = next((d for d in (",", ";", "\t", "|") if d + columns[1] in first), ",")
    named = shlex.quote("named-" + path.name)
    header = delimiter.join(names).replace("\t", "\\t")
    return f"sed '1i {header}' {shlex.quote(str(path))} > {named}"


def _header(lines: _Lines, delimiter: str, name: str) -> tuple[list[str], int]:
    """Names of the columns, and the lines that they take."""
    header, used, problem = list[str](), 0, ""
    try:
        cells, used = _first(lines, delimiter)
        header = [column.strip() for column in cells]
    except csv.Error as error:
        problem = _what(error)
    while header and not header[-1]:
        header.pop()
    if twice := sorted({column for column in header if column and header.count(column) > 1}):
        problem = f"it names {', '.join(twice)} twice"
    if problem:
        raise DataError(
            f"the header of {name} cannot be used: {problem}",
            why="the first row of a CSV file names its columns",
            fix="correct the first row",
        )
    return header, used
