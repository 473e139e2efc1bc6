"""Rows -> examples: the one pass that validates, extracts, drops repeats and keeps the account."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import regex

from native_reasoning.data.guess import missing_column_error
from native_reasoning.data.report import (
    PLACES_SHOWN,
    REASONS,
    DataReport,
    Dropped,
    Examples,
    no_usable_row,
)
from native_reasoning.data.shapes import BadRow, Pair, Turns, read_row
from native_reasoning.data.sources import Row, Rows, load_rows
from native_reasoning.errors import ConfigError, DataError
from native_reasoning.types import Example

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
    r"""Read a source (see ``load_rows``) into examples; bad rows are counted in the report.

    ``prompt_column`` and ``answer_column`` override the shapes of ``shapes.py``: a column, a path
    into one (``instances.0.output``), for the prompt several (``Body+Question``). A prompt column
    of chat turns alone gives the answer too: the last assistant turn.
    ``answer_regex`` takes a part of the answer: group 1, or the whole match when the pattern has no
    group; the last match wins: ``r"####\s*(.*)"``. No row may take longer than ``regex_timeout``
    seconds.
    ``strict`` raises at the first bad row. A row that repeats an earlier prompt and answer is no
    bad row: it is left out and counted either way.
    ``keep_columns`` keeps every column of a row in its example, for reward functions.

    Raises DataError: unreadable or empty source, missing column, no usable row, or, when
    ``strict``, a bad row. Raises ConfigError: a bad pattern, or one that is too slow.
    """
    pattern = None if answer_regex is None else AnswerPattern(answer_regex, regex_timeout)
    rows = load_rows(source, split=split)
    tally = _Tally(rows, keep_columns)
    for row in rows.rows:
        try:
            if row.problem is not None:
                raise BadRow(*row.problem)
            pair = read_row(row.value, prompt_column, answer_column)
            answer = pair.answer if pattern is None else pattern.extract(pair.answer)
            tally.keep(row, pair, answer)
        except BadRow as bad:
            if strict and bad.reason != "duplicate":
                raise _bad_row_error(rows.source, row, bad, prompt_column, answer_column) from None
            tally.drop(row, bad)
    return tally.finish(prompt_column, answer_column)


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
                    f"on {self.timeouts} rows",
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


@dataclass
class _Tally:
    """The running account of one source."""

    rows: Rows
    keep_columns: bool = False
    examples: list[Example] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    unused: tuple[str, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    first_bad: dict[str, tuple[Row, BadRow]] = field(default_factory=dict)
    prompts: set[bytes] = field(default_factory=set)
    pairs: set[bytes] = field(default_factory=set)
    repeated: int = 0

    def keep(self, row: Row, pair: Pair, answer: str) -> None:
        """Add an example. Raises BadRow("duplicate")."""
        prompt, both = _digest(pair.prompt), _digest(pair.prompt, answer)
        if both in self.pairs:
            raise BadRow("duplicate")
        self.repeated += prompt in self.prompts
        self.prompts.add(prompt)
        self.pairs.add(both)
        if not self.examples:
            self.unused = _unused(row.value, pair)
        self.shapes[pair.shape] += 1
        columns = dict(row.value) if self.keep_columns else {}
        self.examples.append(Example(pair.prompt, answer, len(self.examples), row.number, columns))

    def drop(self, row: Row, bad: BadRow) -> None:
        """Count a row that is left out, with its place."""
        self.dropped[bad.reason] += 1
        places = self.places.setdefault(bad.reason, [])
        if len(places) < PLACES_SHOWN:
            places.append(row.place)
        self.first_bad.setdefault(bad.reason, (row, bad))

    def finish(self, prompt_column: str | None, answer_column: str | None) -> Examples:
        """The examples and their report. Raises DataError when there is no example."""
        report = DataReport(
            source=self.rows.source,
            unit=self.rows.unit,
            read=len(self.examples) + self.dropped.total(),
            kept=len(self.examples),
            dropped=tuple(
                Dropped(reason, self.dropped[reason], tuple(self.places[reason]))
                for reason in REASONS
                if reason in self.dropped
            ),
            repeated_prompts=self.repeated,
            shapes=tuple(self.shapes.most_common()),
            unused=self.unused,
        )
        if report.read == 0:
            raise DataError(
                f"{report.source} is empty",
                why="training needs at least one question with its answer",
                fix="write rows into it, or give another source",
            )
        if not self.examples:
            row, bad = self.first_bad[max(self.dropped, key=lambda reason: self.dropped[reason])]
            if bad.reason == "missing_column":
                raise missing_column_error(report.source, row, bad, prompt_column, answer_column)
            raise no_usable_row(report, bad.detail)
        return Examples(tuple(self.examples), report)


def _digest(prompt: Turns, answer: str = "") -> bytes:
    """A short fingerprint of the texts without surrounding white space."""
    texts = [[role, text.strip()] for role, text in prompt]
    return hashlib.blake2b(json.dumps([texts, answer]).encode(), digest_size=16).digest()


def _unused(row: Any, pair: Pair) -> tuple[str, ...]:
    """The columns of a row that nothing was taken from."""
    used = {pair.prompt_column, pair.answer_column or "", *pair.prompt_column.split("+")}
    used = {column.casefold() for column in used | {column.split(".")[0] for column in used}}
    return tuple(str(column) for column in row if str(column).casefold() not in used)


def _bad_row_error(
    source: str, row: Row, bad: BadRow, prompt_column: str | None, answer_column: str | None
) -> DataError:
    """The error for the first bad row of a strict run."""
    if bad.reason == "missing_column":
        return missing_column_error(source, row, bad, prompt_column, answer_column)
    reason = REASONS[bad.reason]
    return DataError(
        f"{row.place} of {source} {reason.text}{bad.detail and ': ' + bad.detail}",
        why="strict was asked for, so every row must be usable",
        fix=f"{reason.fix}; or leave strict out to count such rows and go on",
    )
