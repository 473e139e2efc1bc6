"""A large file of JSON lines, read in blocks by all cores; each block is kept in the cache.

    file --(make_blocks)--> blocks --(workers)--> one table a block --(merge)--> the account

A block is the lines that begin in a range of bytes. What is read of it depends on nothing before
it: lines are counted from the block's first, and repeats are found when the blocks are merged, in
order. So a preparation that was killed goes on with the blocks that it has.
"""

import json
import os
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.data.account import PLACES_SHOWN
from native_reasoning.data.files import decoded, json_rows, not_utf8, starts_a_list
from native_reasoning.data.pattern import TIMEOUTS_ALLOWED, AnswerPattern
from native_reasoning.data.reading import Reading, digest, unused
from native_reasoning.data.shapes import BadRow
from native_reasoning.data.sources import Row, Rows, unreadable
from native_reasoning.data.store import (
    cache_folder,
    claimed,
    key_of,
    read_table,
    whole_table,
    write_table,
)
from native_reasoning.data.stored import Texts
from native_reasoning.data.tally import Tally
from native_reasoning.data.workers import in_order

#: Bytes of a block. A smaller file is read row by row: it takes less time than a process.
BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Blocks:
    """The blocks of one file; called with a block's first byte, it makes the block's table.

    ``size`` and ``changed`` (ns) are the file's, when it was looked at first.
    """

    path: Path
    name: str
    reading: Reading
    size: int
    changed: tuple[int, int]
    folder: Path

    @property
    def starts(self) -> range:
        """The first byte of each block."""
        return range(0, self.size, BLOCK_BYTES)

    def table_path(self, start: int) -> Path:
        """Where the table of a block lies."""
        return self.folder / f"{start // BLOCK_BYTES:06d}.arrow"

    def is_made(self, start: int) -> bool:
        """Whether a block's table is there and as good as new: time-outs are tried again."""
        table = whole_table(self.table_path(start))
        if table is None:
            return False
        account = _account(table)
        return "regex_timeout" not in account["bad"] and account["stop"] is None

    def __call__(self, start: int) -> None:
        """Reads a block, unless another process does. Raises DataError, and OSError."""
        with claimed(self.table_path(start)):
            if not self.is_made(start):
                write_table(self.table_path(start), self._read(start))

    def _read(self, start: int) -> pa.Table:
        pattern, made = self.reading.pattern(), _Block(self.reading.keep_columns)
        with self.path.open("rb") as file:
            if _identity(os.fstat(file.fileno())) != (self.size, self.changed):
                raise DataError(
                    f"{self.name} changed while it was read",
                    why="its rows would be partly old and partly new",
                    fix="read it again when nothing writes into it",
                )
            lines = _Lines(file, start, start + BLOCK_BYTES)
            try:
                for number, _, value, problem in json_rows(decoded(lines, self.name, lines.at)):
                    made.read(Row(number, "", value, problem), self.reading, pattern)
            except ConfigError:
                pass  # the pattern is too slow: merging says so
            except DataError:
                made.stop = lines.not_utf8()
        return made.table(lines.count)


class _Lines(Iterator[bytes]):
    """The lines that begin in a range of bytes of a file; ``at`` is where the next one begins."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self.file, self.at, self.stop = file, start, stop
        self.count, self.line = 0, b""
        if start:
            file.seek(start - 1)
            self.at = start - 1 + len(file.readline())

    def __next__(self) -> bytes:
        if self.at >= self.stop or not (line := self.file.readline()):
            raise StopIteration
        self.at, self.count, self.line = self.at + len(line), self.count + 1, line
        return line

    def not_utf8(self) -> dict[str, Any]:
        """The line that was read last, which is not UTF-8: its number and its wrong byte."""
        try:
            self.line.decode()
        except UnicodeDecodeError as error:
            begin = self.at - len(self.line)
            return {"line": self.count, "byte": begin + error.start, "raw": self.line[:2].hex()}
        raise AssertionError(self.line)


@dataclass
class _Block:
    """What is read of one block."""

    keep_columns: bool
    texts: Texts = field(default_factory=Texts)
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    prompts: list[bytes] = field(default_factory=list)
    pairs: list[bytes] = field(default_factory=list)
    shape: "array[int]" = field(default_factory=lambda: array("h"))
    shapes: dict[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    bad: dict[str, dict[str, Any]] = field(default_factory=dict)
    stop: dict[str, Any] | None = None

    def read(self, row: Row, reading: Reading, pattern: AnswerPattern | None) -> None:
        """One row. Raises ConfigError when the pattern is too slow."""
        try:
            pair, answer = reading.usable(row, pattern)
        except BadRow as bad:
            self._drop(row, bad)
            return
        except ConfigError:
            self._drop(row, BadRow("regex_timeout"))
            raise
        if not self.texts:
            self.unused = unused(row.value, pair)
        self.texts.add(pair.prompt, answer, row.value if self.keep_columns else None)
        self.lines.append(row.number)
        self.prompts.append(digest(pair.prompt))
        self.pairs.append(digest(pair.prompt, answer))
        self.shape.append(self.shapes.setdefault(pair.shape, len(self.shapes)))

    def _drop(self, row: Row, bad: BadRow) -> None:
        empty = {"count": 0, "lines": [], "detail": bad.detail, "value": None}
        entry = self.bad.setdefault(bad.reason, empty)
        if entry["count"] == 0 and bad.reason == "missing_column":
            entry["value"] = row.value  # its columns are part of the message
        if entry["count"] < PLACES_SHOWN:
            entry["lines"].append(row.number)
        entry["count"] += 1

    def table(self, lines: int) -> pa.Table:
        """All of it; ``lines`` is how many lines the block has, blank ones too."""
        arrays = {
            **self.texts.arrays(),
            "line": pa.array(self.lines, pa.int64()),
            "prompt_seen": pa.array(self.prompts, pa.binary(16)),
            "pair_seen": pa.array(self.pairs, pa.binary(16)),
            "shape": pa.array(self.shape, pa.int16()),
        }
        account = {
            "lines": lines,
            "shapes": list(self.shapes),
            "unused": self.unused,
            "bad": self.bad,
            "stop": self.stop,
        }
        return pa.table(arrays).replace_schema_metadata({"account": json.dumps(account)})


def _account(table: pa.Table) -> dict[str, Any]:
    return json.loads(table.schema.metadata[b"account"])


def _identity(found: os.stat_result) -> tuple[int, tuple[int, int]]:
    """What changes when a file is written to: its size, and its times."""
    return found.st_size, (found.st_mtime_ns, found.st_ctime_ns)


def make_blocks(rows: Rows, reading: Reading) -> Blocks | None:
    """The blocks of a large file of JSON lines; None for any other source."""
    path = rows.lines
    if path is None:
        return None
    try:
        size, changed = _identity(path.stat())
        if size <= BLOCK_BYTES or starts_a_list(path, rows.source):
            return None
    except OSError as error:
        raise unreadable(rows.source, error) from error
    key = key_of(str(path.resolve()), size, changed, BLOCK_BYTES, asdict(reading))
    folder = cache_folder() / "texts" / key
    return Blocks(path, rows.source, reading, size, changed, folder)


def merge(blocks: Blocks, tally: Tally, pattern: AnswerPattern | None) -> None:
    """Makes the blocks that are missing, and counts all of them, in order.

    Raises what reading the file row by row would: DataError, or ConfigError for a slow pattern.
    """
    missing = [start for start in blocks.starts if not blocks.is_made(start)]
    left, line, timeouts = set(missing), 0, 0
    with closing(in_order(blocks, missing)) as made:
        for start in blocks.starts:
            if start in left:
                try:
                    next(made)
                except OSError as error:
                    raise unreadable(blocks.name, error) from error
            path = blocks.table_path(start)
            table = read_table(path)
            account = _account(table)
            _count_bad(account["bad"], tally, line)
            timeouts += account["bad"].get("regex_timeout", {"count": 0})["count"]
            if pattern is not None and timeouts >= TIMEOUTS_ALLOWED:
                raise pattern.too_slow()
            tally.kept.add_file(path)
            _count_rows(table, account, tally, line)
            stop = account["stop"]
            if stop is not None:
                raw = bytes.fromhex(stop["raw"])
                raise not_utf8(blocks.name, line + stop["line"], stop["byte"], raw)
            line += account["lines"]


def _count_bad(bad: dict[str, dict[str, Any]], tally: Tally, before: int) -> None:
    """Rows that are left out; the reasons stand in the order in which they came up."""
    for reason, entry in bad.items():
        first, *more = (before + line for line in entry["lines"])
        row = Row(first, f"line {first}", entry["value"])
        tally.drop(row, BadRow(reason, entry["detail"]), entry["count"])
        for line in more:
            tally.note_place(reason, f"line {line}")


def _count_rows(table: pa.Table, account: dict[str, Any], tally: Tally, before: int) -> None:
    """Usable rows, in order: those that no earlier row repeats are kept."""
    columns = (table.column(name).to_pylist() for name in ("line", "prompt_seen", "pair_seen"))
    shapes = [account["shapes"][i] for i in table.column("shape").to_pylist()]
    if shapes and tally.unused is None:
        tally.unused = tuple(account["unused"])
    for place, (line, prompt, pair, shape) in enumerate(zip(*columns, shapes, strict=True)):
        if tally.is_new(prompt, pair, shape):
            tally.kept.add_place(place, before + line)
        else:
            line += before
            tally.drop(Row(line, f"line {line}", None), BadRow("duplicate"))
