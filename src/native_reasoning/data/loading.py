"""Rows -> examples: the one pass that validates, extracts, drops repeats and keeps the account.

A few thousand examples stay in memory. More of them go through ``datasets`` into its cache, under a
fingerprint of the source and the settings: the next run finds them there.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, islice
from typing import Any, Generic, TypeVar, overload

import numpy as np
import regex

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.data.account import Examples, Tally, report_from
from native_reasoning.data.rows import Example
from native_reasoning.data.shapes import BadRow, read_row
from native_reasoning.data.sources import load_rows

T = TypeVar("T")

#: Sources of up to this many examples stay in memory.
SMALL = 5000
#: Counted up when what is kept on the disk changes.
_FORMAT = 3
#: Rows that are read at a time when all are looked at.
_RUN = 256
#: Seconds that --answer-regex may take for a row.
_PATIENCE = 1.0


def load_examples(
    source: object,
    *,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    answer_regex: str | None = None,
    split: str | None = None,
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
    group; the last match wins: ``r"####\s*(.*)"``.
    ``keep_columns`` keeps every column of a row in its example, for reward functions.
    More than 5,000 examples of files or a ``datasets.Dataset`` are kept in the cache of
    ``datasets`` and read when they are looked at, unless their columns are kept and do not come
    from JSON lines.

    Raises DataError: unreadable or empty source, missing column, no usable row. Raises ConfigError:
    a bad pattern, or one that takes more than a second for a row.
    """
    settings = (prompt_column, answer_column, answer_regex, keep_columns)
    pattern = None if answer_regex is None else _compiled(answer_regex)
    rows = load_rows(source, split=split)
    tally = Tally(rows, (prompt_column, answer_column))
    found = _usable(tally, pattern, keep_columns)
    first = tuple(islice(found, SMALL + 1))
    lasting = rows.identity is not None and (rows.unit == "line" or not keep_columns)
    if lasting and len(first) > SMALL:
        key = fingerprint(rows.source, rows.identity, settings)
        return _stored(key, chain(first, found), tally)
    return Examples((*first, *found), tally.report())


def _usable(tally: Tally, pattern: "regex.Pattern[str] | None", columns: bool) -> Iterator[Example]:
    for row in tally.rows.rows:
        try:
            if row.problem is not None:
                raise BadRow(*row.problem)
            pair = read_row(row.value, *tally.columns)
            answer = pair.answer if pattern is None else _part(pattern, pair.answer, row.place)
            tally.keep(row, pair, answer)
        except BadRow as bad:
            tally.drop(row, bad)
        else:
            kept = dict(row.value) if columns else {}
            yield Example(pair.prompt, answer, len(tally.pairs) - 1, row.number, kept)


# -- The part of an answer -------------------------------------------------------------------------


def _compiled(pattern: str) -> "regex.Pattern[str]":
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ConfigError(
            f"answer_regex {pattern!r} is not a regular expression: {error}",
            why="it says which part of the answer is kept",
            fix=r"correct it; for GSM8K it is '####\s*(.*)'",
        ) from None


def _part(pattern: "regex.Pattern[str]", text: str, place: str) -> str:
    """Group 1 (or all) of the last match, stripped. Raises BadRow, and ConfigError for a pattern
    that runs out of time."""
    group = 1 if pattern.groups else 0
    found = None
    try:
        for match in pattern.finditer(text, timeout=_PATIENCE):
            found = match
    except TimeoutError:
        raise ConfigError(
            f"answer_regex {pattern.pattern!r} ran out of time ({_PATIENCE:g} s) on {place}",
            why="at this pace reading the data would take longer than training",
            fix="write a pattern without nested repeats such as (a|aa)+",
        ) from None
    if found is None or found.group(group) is None:
        raise BadRow("no_regex_match")
    answer = found.group(group).strip()
    if not answer:
        raise BadRow("empty_answer", "what --answer-regex takes is empty")
    return answer


# -- Examples that lie on the disk -----------------------------------------------------------------


class Stored(Sequence[T], Generic[T]):
    """Rows of a ``datasets.Dataset`` in its cache, memory-mapped: ``make`` makes an item of a row
    when it is looked at. A slice is another such sequence."""

    def __init__(self, dataset: Any, make: Callable[[Mapping[str, Any]], T]) -> None:
        self.dataset, self.make = dataset, make

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Stored[T]": ...
    def __getitem__(self, index: int | slice) -> "T | Stored[T]":
        if isinstance(index, slice):
            return Stored(self.dataset.select(np.arange(len(self))[index]), self.make)
        return self.make(self.dataset[int(index)])

    def __iter__(self) -> Iterator[T]:
        for table in self.dataset.with_format("arrow").iter(_RUN):
            yield from map(self.make, table.to_pylist())


def example_of(row: Mapping[str, Any]) -> Example:
    """The example that a row of the cache holds."""
    prompt = tuple((role, text) for role, text in json.loads(row["prompt"]))
    columns = json.loads(row["columns"])
    return Example(prompt, row["answer"], row["row_id"], row["line"], columns)


def _row_of(example: Example) -> dict[str, Any]:
    prompt = json.dumps(example.prompt, ensure_ascii=False)
    return {**vars(example), "prompt": prompt, "columns": json.dumps(example.columns)}


def _stored(key: str, examples: Iterable[Example], tally: Tally) -> Examples:
    """The examples, from the cache if they are there; its last row is their account."""
    from datasets import Dataset, Features, Value

    def rows() -> Iterator[dict[str, Any]]:
        yield from map(_row_of, examples)
        account = json.dumps(asdict(tally.report()))
        yield _row_of(Example((), account, row_id=-1, line=0))

    text, number = Value("large_string"), Value("int64")
    features = Features(row_id=number, line=number, prompt=text, answer=text, columns=text)
    with cached():
        made = Dataset.from_generator(rows, features=features, fingerprint=key)
    count = len(made) - 1
    report = report_from(json.loads(made[count]["answer"]))
    return Examples(Stored(made.select(range(count)), example_of), report)


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
