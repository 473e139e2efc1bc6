"""Rows that lie on the disk and are read when they are looked at."""

import copy
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa

from native_reasoning.data.rows import Example
from native_reasoning.data.shapes import Turns
from native_reasoning.data.store import cache_folder, key_of, read_table, whole_table, write_table

T = TypeVar("T")

#: Sources of up to this many rows stay in memory.
SMALL = 5000
#: Rows that are read at a time when all are looked at.
_RUN = 256
#: A block that is written has so many rows, or characters.
_BLOCK_ROWS, _BLOCK_TEXT = 4096, 1 << 22


class Lazy(Sequence[T], Generic[T]):
    """A sequence whose items are made when they are asked for; a slice is another one.

    ``rows`` (n,) says which row stands at which place. Subclasses give ``load``.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def load(self, rows: np.ndarray) -> list[T]:
        """The items of these rows."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Lazy[T]": ...
    def __getitem__(self, index: int | slice) -> "T | Lazy[T]":
        if isinstance(index, slice):
            part = copy.copy(self)
            part.rows = self.rows[index]
            return part
        return self.load(self.rows[[index]])[0]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), _RUN):
            yield from self.load(self.rows[start : start + _RUN])


class StoredExamples(Lazy[Example]):
    """Examples whose texts lie in the files ``paths``: row i is row ``places[i]`` of file
    ``files[i]`` and stands in line ``lines[i]`` of its source (16 bytes a row in memory)."""

    def __init__(
        self, paths: Sequence[Path], files: np.ndarray, places: np.ndarray, lines: np.ndarray
    ) -> None:
        super().__init__(np.arange(len(files), dtype=np.int32))
        self.paths, self.files, self.places, self.lines = paths, files, places, lines

    def load(self, rows: np.ndarray) -> list[Example]:
        """The examples of these rows."""
        found = []
        for some, table in self._tables(rows, ["prompt", "answer", "columns"]):
            texts = zip(some.tolist(), *(column.to_pylist() for column in table), strict=True)
            found += [self._example(*text) for text in texts]
        return found

    def _example(self, row: int, prompt: str, answer: str, columns: str | None) -> Example:
        turns = tuple((role, text) for role, text in json.loads(prompt))
        others = {} if columns is None else json.loads(columns)
        return Example(turns, answer, row, int(self.lines[row]), others)

    def digests(self) -> list[bytes]:
        """What ``example_digest`` gives for each example, without reading its texts."""
        found = []
        for _, (column,) in self._tables(self.rows, ["digest"]):
            found += column.to_pylist()
        return found

    def _tables(
        self, rows: np.ndarray, columns: list[str]
    ) -> Iterator[tuple[np.ndarray, list[pa.ChunkedArray]]]:
        """Rows that follow each other in one file, and these columns of them."""
        cuts = np.flatnonzero(np.diff(self.files[rows])) + 1
        for some in np.split(rows, cuts) if len(rows) else ():
            table = read_table(self.paths[int(self.files[some[0]])])
            places = pa.array(self.places[some])
            yield some, [table.column(name).take(places) for name in columns]


def example_digest(prompt: str, answer: str) -> bytes:
    """16 bytes for the turns, as ``prompt_text`` writes them, and the answer, exactly."""
    return hashlib.blake2b(f"{prompt}\n{answer}".encode(), digest_size=16).digest()


def prompt_text(prompt: Turns) -> str:
    """Turns as one line of JSON."""
    return json.dumps(prompt, ensure_ascii=False)


def digests_of(examples: Sequence[Example]) -> list[bytes]:
    """``example_digest`` of each example."""
    if isinstance(examples, StoredExamples):
        return examples.digests()
    return [example_digest(prompt_text(e.prompt), e.answer) for e in examples]


def line_of(examples: Sequence[Example], row: int) -> int:
    """``examples[row].line``, without reading its texts."""
    if isinstance(examples, StoredExamples):
        return int(examples.lines[examples.rows[row]])
    return examples[row].line


class Texts:
    """Texts of rows on their way into a file."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.answers: list[str] = []
        self.columns: list[str | None] = []
        self.size = 0

    def add(self, prompt: Turns, answer: str, columns: Mapping[str, Any] | None = None) -> None:
        """One row; ``columns`` holds what JSON can hold."""
        self.prompts.append(prompt_text(prompt))
        self.answers.append(answer)
        self.columns.append(None if columns is None else json.dumps(columns))
        self.size += len(self.prompts[-1]) + len(answer)

    def __len__(self) -> int:
        return len(self.prompts)

    def arrays(self) -> dict[str, pa.Array]:
        """The columns that ``StoredExamples`` reads."""
        digests = map(example_digest, self.prompts, self.answers)
        return {
            "prompt": pa.array(self.prompts, pa.large_string()),
            "answer": pa.array(self.answers, pa.large_string()),
            "columns": pa.array(self.columns, pa.large_string()),
            "digest": pa.array(list(digests), pa.binary(16)),
        }


class Collector:
    """Examples as they are found: in memory while they are few, then on the disk.

    ``in_memory`` keeps all of them there: their columns may hold what no file of ours can.
    """

    def __init__(self, in_memory: bool = False) -> None:
        self.in_memory, self.examples = in_memory, list[Example]()
        self.paths: list[Path] = []
        self.files, self.places, self.lines = array("i"), array("i"), array("q")
        self._texts = Texts()

    def __len__(self) -> int:
        return len(self.examples) + len(self.lines)

    def add(self, prompt: Turns, answer: str, line: int, columns: Mapping[str, Any]) -> None:
        """One more example of a source whose rows are read one by one."""
        if self.in_memory or (len(self.examples) < SMALL and not self.lines):
            self.examples.append(Example(prompt, answer, len(self), line, columns))
            return
        for example in self.examples:
            self._spool(example.prompt, example.answer, example.line)
        self.examples.clear()
        self._spool(prompt, answer, line)

    def _spool(self, prompt: Turns, answer: str, line: int) -> None:
        self.files.append(len(self.paths))
        self.places.append(len(self._texts))
        self.lines.append(line)
        self._texts.add(prompt, answer)
        if len(self._texts) >= _BLOCK_ROWS or self._texts.size >= _BLOCK_TEXT:
            self._flush()

    def _flush(self) -> None:
        arrays = self._texts.arrays()
        name = key_of([digest.hex() for digest in arrays["digest"].to_pylist()])
        path = cache_folder() / "texts" / name[:2] / f"{name}.arrow"
        if whole_table(path) is None:
            write_table(path, pa.table(arrays))
        self.paths.append(path)
        self._texts = Texts()

    def add_file(self, path: Path) -> None:
        """A file whose rows ``add_place`` will name."""
        self.paths.append(path)

    def add_place(self, place: int, line: int) -> None:
        """One more example: row ``place`` of the file that was added last."""
        self.files.append(len(self.paths) - 1)
        self.places.append(place)
        self.lines.append(line)

    def finish(self) -> Sequence[Example]:
        """All examples in order."""
        if len(self._texts):
            self._flush()
        if self.lines:
            return StoredExamples(self.paths, *map(_numbers, (self.files, self.places, self.lines)))
        return tuple(self.examples)


def _numbers(values: Iterable[int]) -> np.ndarray:
    return np.array(values)
