"""Rows -> examples: the one pass that validates, extracts, drops repeats and keeps the account.

A few thousand examples stay in memory. More of them go through ``datasets`` into its cache, under a
fingerprint of the source and the settings: the next run finds them there.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, islice
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa
import regex

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.data.account import REASONS, DataReport, Examples, Tally, report_from
from native_reasoning.data.rows import Example
from native_reasoning.data.shapes import BadRow, Turns, read_row
from native_reasoning.data.sources import load_rows

T = TypeVar("T")

#: Sources of up to this many examples stay in memory.
SMALL = 5000
#: Counted up when what is kept on the disk changes.
_FORMAT = 2
#: Rows that are read at a time when all are looked at.
_RUN = 256
#: Rows on which a pattern runs out of time before reading is given up.
_TIMEOUTS_ALLOWED = 10


def load_examples(
    source: object,
    *,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    answer_regex: str | None = None,
    split: str | None = None,
    strict: bool = False,
    regex_timeout: float = 1.0,
    keep_columns: bool = False,
) -> Examples:
    r"""Read a ``source`` into examples; bad rows are counted in the report.

    ``source`` is a file (.jsonl, .json, .csv, .tsv, .parquet), a folder, a hub id, a Dataset, a
    pandas frame or a list of dicts; ``split`` picks a split where there are several (``load_rows``
    has the rules).

    ``prompt_column`` and ``answer_column`` override the shapes of ``shapes.py``: a column, a path
    into one (``instances.0.output``), for the prompt several (``Body+Question``). A prompt column
    of chat turns alone gives the answer too: the last assistant turn.
    ``answer_regex`` takes a part of the answer: group 1, or the whole match when the pattern has no
    group; the last match wins: ``r"####\s*(.*)"``. No row may take longer than ``regex_timeout``
    seconds.
    ``strict`` raises at the first bad row. A row that repeats an earlier prompt and answer is no
    bad row: it is left out and counted either way.
    ``keep_columns`` keeps every column of a row in its example, for reward functions.
    More than 5,000 examples of files or a ``datasets.Dataset`` are kept in the cache of
    ``datasets`` and read when they are looked at, unless their columns are kept and do not come
    from JSON lines.

    Raises DataError: unreadable or empty source, missing column, no usable row, or, when
    ``strict``, a bad row. Raises ConfigError: a bad pattern, or one that is too slow.
    """
    settings = (prompt_column, answer_column, answer_regex, strict, regex_timeout, keep_columns)
    pattern = None if answer_regex is None else AnswerPattern(answer_regex, regex_timeout)
    rows = load_rows(source, split=split)
    tally = Tally(rows, (prompt_column, answer_column), strict)
    found = _usable(tally, pattern, keep_columns)
    identity = None
    if rows.identity is not None and (rows.unit == "line" or not keep_columns):
        identity = rows.identity()
    first = tuple(islice(found, SMALL + 1))
    if identity is None or len(first) <= SMALL:
        return Examples((*first, *found), tally.report())

    def table() -> Iterator[Example | DataReport]:
        yield from chain(first, found)
        if rows.identity is not None and rows.identity() != identity:
            raise DataError(
                f"{rows.source} changed while it was read",
                why="its rows would be partly old and partly new",
                fix="read it again when nothing writes into it",
            )
        yield tally.report()

    return _stored(fingerprint(rows.source, identity, settings), table)


def _usable(tally: Tally, pattern: "AnswerPattern | None", keep_columns: bool) -> Iterator[Example]:
    for row in tally.rows.rows:
        try:
            if row.problem is not None:
                raise BadRow(*row.problem)
            pair = read_row(row.value, *tally.columns)
            answer = pair.answer if pattern is None else pattern.extract(pair.answer)
            tally.keep(row, pair, answer)
        except BadRow as bad:
            tally.drop(row, bad)
        else:
            columns = dict(row.value) if keep_columns else {}
            yield Example(pair.prompt, answer, len(tally.pairs) - 1, row.number, columns)


class AnswerPattern:
    """A user's regular expression with a time limit per row.

    Raises ConfigError when the pattern is invalid.
    """

    def __init__(self, pattern: str, timeout: float = 1.0) -> None:
        self.timeout, self.timeouts = timeout, 0
        try:
            self.pattern = regex.compile(pattern)
        except regex.error as error:
            raise ConfigError(
                f"answer_regex {pattern!r} is not a regular expression: {error}",
                why="it says which part of the answer is kept",
                fix=r"correct it; for GSM8K it is '####\s*(.*)'",
            ) from None

    def extract(self, text: str) -> str:
        """Group 1 (or all) of the last match, stripped.

        Raises BadRow, and ConfigError when too many rows ran out of time.
        """
        group = 1 if self.pattern.groups else 0
        found = None
        try:
            for match in self.pattern.finditer(text, timeout=self.timeout):
                found = match
        except TimeoutError:
            self.timeouts += 1
            if self.timeouts >= _TIMEOUTS_ALLOWED:
                raise ConfigError(
                    f"answer_regex {self.pattern.pattern!r} ran out of time ({self.timeout:g} s) "
                    f"on {_TIMEOUTS_ALLOWED} rows",
                    why="at this pace reading the data would take longer than training",
                    fix=REASONS["regex_timeout"].fix,
                ) from None
            raise BadRow("regex_timeout", f"{self.timeout:g} s") from None
        if found is None or found.group(group) is None:
            raise BadRow("no_regex_match")
        answer = found.group(group).strip()
        if not answer:
            raise BadRow("empty_answer", "what --answer-regex takes is empty")
        return answer


# -- Examples that lie on the disk -----------------------------------------------------------------


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
    """The first ``count`` rows of a ``datasets.Dataset`` in its cache, memory-mapped."""

    def __init__(self, dataset: Any, count: int) -> None:
        super().__init__(np.arange(count))
        self.dataset = dataset

    def load(self, rows: np.ndarray) -> list[Example]:
        """The examples of these rows."""
        found = zip(rows.tolist(), rows_of(self.dataset.data.table, rows), strict=True)
        return [
            Example(turns(row["prompt"]), row["answer"], i, row["line"], json.loads(row["columns"]))
            for i, row in found
        ]


def turns(prompt: str) -> Turns:
    """Chat turns out of the text that they are kept as."""
    return tuple((role, text) for role, text in json.loads(prompt))


def rows_of(table: pa.Table, rows: np.ndarray) -> list[dict[str, Any]]:
    """Some rows of a table, those that follow each other at once."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return [row for run in runs if len(run) for row in table.slice(run[0], len(run)).to_pylist()]


def _stored(key: str, rows: Callable[[], Iterator[Example | DataReport]]) -> Examples:
    """What ``rows`` yields, from the cache if it is there: the examples, and last their account."""
    from datasets import Dataset, Features, Value

    text = Value("large_string")
    features = Features(line=Value("int64"), prompt=text, answer=text, columns=text)
    with cached():
        made = Dataset.from_generator(
            lambda: map(_kept_row, rows()), features=features, fingerprint=key
        )
    count = len(made) - 1
    (last,) = rows_of(made.data.table, np.array([count]))
    return Examples(StoredExamples(made, count), report_from(json.loads(last["answer"])))


def _kept_row(row: Example | DataReport) -> dict[str, Any]:
    if isinstance(row, DataReport):
        return {"line": 0, "prompt": "[]", "answer": json.dumps(asdict(row)), "columns": "{}"}
    prompt = json.dumps(row.prompt, ensure_ascii=False)
    columns = json.dumps(row.columns)
    return {"line": row.line, "prompt": prompt, "answer": row.answer, "columns": columns}


def fingerprint(*parts: Any) -> str:
    """A name for what depends on ``parts`` (of JSON's types) and on this version of the package."""
    from native_reasoning import __version__

    text = json.dumps([_FORMAT, __version__, *parts])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextmanager
def cached() -> Generator[None]:
    """While ``datasets`` keeps something in its cache: no progress bars, and errors of ours."""
    import datasets
    from datasets import config
    from datasets.exceptions import DatasetGenerationError

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except (OSError, DatasetGenerationError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__ or error
        if not isinstance(cause, OSError):
            raise cause from None
        raise DataError(
            f"rows cannot be kept in {config.HF_DATASETS_CACHE}: {cause.strerror or cause}",
            why="more than a few thousand are kept on the disk, so that they need no memory",
            fix="make room there, or set HF_DATASETS_CACHE to a folder with more",
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
