"""Examples in token ids: encoded by all cores, kept in the cache, read when they are looked at.

Examples are taken ``CHUNK`` at a time. The ids of a chunk lie in a file named after its texts and
everything else they depend on: the same texts are never encoded twice, whichever file they come
from and whatever limits they are held against. A few thousand examples are encoded in this process
and kept in memory.
"""

from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from native_reasoning.config.errors import TemplateError
from native_reasoning.data.encoding import Encoded, RowEncoder, fingerprint
from native_reasoning.data.rows import Example, PromptGroup
from native_reasoning.data.store import (
    cache_folder,
    claimed,
    key_of,
    read_table,
    whole_table,
    write_table,
)
from native_reasoning.data.stored import SMALL, Lazy, digests_of
from native_reasoning.data.template import Template
from native_reasoning.data.workers import in_order

CHUNK = 2048

Tables = Generator[Path | pa.Table, None, None]


@dataclass(frozen=True)
class Prepared:
    """Examples with their ids; ``tables`` holds each chunk, or where it lies.

    ``prompt_sizes`` and ``answer_sizes`` (n,) are in tokens, -1 where the template refused the row.
    """

    examples: Sequence[Example]
    tables: Sequence[Path | pa.Table]
    prompt_sizes: np.ndarray
    answer_sizes: np.ndarray

    def groups(self, kept: np.ndarray) -> Sequence[PromptGroup]:
        """The groups of the examples ``kept`` (their numbers), numbered anew; few of them at once,
        many as they are looked at."""
        lazy = Groups(self, kept)
        return lazy if len(self.examples) > SMALL else tuple(lazy)

    def group(self, row: int) -> PromptGroup:
        """One example that the template did not refuse."""
        return PromptGroup(self.examples[row], *self.ids(row))

    def ids(self, row: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids of an example's prompt and answer."""
        table, place = self._table(row // CHUNK), row % CHUNK
        return _ids(table, "prompt", place), _ids(table, "answer", place)

    def _table(self, chunk: int) -> pa.Table:
        found = self.tables[chunk]
        return read_table(found) if isinstance(found, Path) else found


class Groups(Lazy[PromptGroup]):
    """Groups whose texts and ids are read when they are looked at."""

    def __init__(self, prepared: Prepared, kept: np.ndarray) -> None:
        super().__init__(np.arange(len(kept), dtype=np.int32))
        self.prepared, self.kept = prepared, kept

    def load(self, rows: np.ndarray) -> list[PromptGroup]:
        """The groups of these row ids."""
        ids = map(self.prepared.ids, self.kept[rows].tolist())
        return [PromptGroup(e, *i) for e, i in zip(self._texts(rows), ids, strict=True)]

    def examples(self) -> Iterator[Example]:
        """The examples alone."""
        for start in range(0, len(self.rows), CHUNK):
            yield from self._texts(self.rows[start : start + CHUNK])

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each prompt and of each answer."""
        kept = self.kept[self.rows]
        return self.prepared.prompt_sizes[kept], self.prepared.answer_sizes[kept]

    def _texts(self, rows: np.ndarray) -> list[Example]:
        kept, examples = self.kept[rows], self.prepared.examples
        if isinstance(examples, Lazy):
            found = examples.load(examples.rows[kept])
        else:
            found = [examples[i] for i in kept.tolist()]
        return [replace(e, row_id=i) for e, i in zip(found, rows.tolist(), strict=True)]


def examples_of(groups: Sequence[PromptGroup]) -> Iterator[Example]:
    """The groups' examples, without reading any ids."""
    return groups.examples() if isinstance(groups, Groups) else (g.example for g in groups)


def sizes_of(groups: Sequence[PromptGroup]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each group's prompt and of its answer."""
    if isinstance(groups, Groups):
        return groups.sizes()
    sizes = [(len(group.prompt_ids), len(group.answer_ids)) for group in groups]
    prompts, answers = np.array(sizes, dtype=np.int64).reshape(-1, 2).T
    return prompts, answers


# -- Making them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """Called with a chunk's number and path, it encodes the chunk into that file."""

    examples: Sequence[Example]
    encoder: RowEncoder

    def __call__(self, task: tuple[int, Path]) -> None:
        """Encodes a chunk, unless another process does."""
        chunk, path = task
        with claimed(path):
            if whole_table(path) is None:
                rows = self.examples[chunk * CHUNK : (chunk + 1) * CHUNK]
                write_table(path, _table_of(self.encoder(rows)))


def prepare(examples: Sequence[Example], template: Template) -> Prepared:
    """The ids of all examples. Raises DataError if the cache cannot be written."""
    prompts, answers = array("i"), array("i")
    tables: list[Path | pa.Table] = []
    with closing(_tables(examples, template)) as made:
        for table in made:
            tables.append(table)
            found = read_table(table) if isinstance(table, Path) else table
            prompts.extend(_sizes(found, "prompt"))
            answers.extend(_sizes(found, "answer"))
    return Prepared(examples, tables, np.array(prompts), np.array(answers))


def _tables(examples: Sequence[Example], template: Template) -> Tables:
    encoder = RowEncoder(template)
    chunks = range(-(-len(examples) // CHUNK))
    if len(examples) <= SMALL:
        for i in chunks:
            yield _table_of(encoder(examples[i * CHUNK : (i + 1) * CHUNK]))
        return
    paths = _paths(examples, template)
    missing = [(i, path) for i, path in enumerate(paths) if whole_table(path) is None]
    left = {i for i, _ in missing}
    with closing(in_order(Encoding(examples, encoder), missing)) as made:
        for i, path in enumerate(paths):
            if i in left:
                next(made)
            yield path


def _paths(examples: Sequence[Example], template: Template) -> list[Path]:
    """Where the ids of each chunk lie."""
    depends, folder = fingerprint(template), cache_folder() / "ids"
    paths = []
    for start in range(0, len(examples), CHUNK):
        texts = b"".join(digests_of(examples[start : start + CHUNK]))
        name = key_of(depends, texts.hex())
        paths.append(folder / name[:2] / f"{name}.arrow")
    return paths


def _table_of(rows: Iterator[Encoded]) -> pa.Table:
    ids: dict[str, list[bytes]] = {"prompt": [], "answer": []}
    refused: list[str | None] = []
    for row in rows:
        bad = isinstance(row, TemplateError)
        refused.append(row.what if bad else None)
        for name, part in zip(ids, (b"", b"") if bad else row, strict=True):
            ids[name].append(part)
    columns: dict[str, pa.Array] = {name: _lists(parts) for name, parts in ids.items()}
    return pa.table({**columns, "refused": pa.array(refused, pa.large_string())})


def _lists(parts: Sequence[bytes]) -> pa.Array:
    ends = np.cumsum([0, *(len(part) // 4 for part in parts)])
    values = np.frombuffer(b"".join(parts), dtype=np.uint32)
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values))


def _sizes(table: pa.Table, column: str) -> list[int]:
    """Tokens of each row, -1 for one that was refused."""
    sizes = np.diff(table.column(column).chunk(0).offsets.to_numpy())
    sizes[table.column("refused").is_valid().to_numpy()] = -1
    return sizes.tolist()


def _ids(table: pa.Table, column: str, place: int) -> tuple[int, ...]:
    lists = table.column(column).chunk(0)
    first, after = lists.offsets[place].as_py(), lists.offsets[place + 1].as_py()
    return tuple(lists.values[first:after].to_numpy().tolist())
