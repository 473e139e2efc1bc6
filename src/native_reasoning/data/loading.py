"""Rows -> examples: the one pass that validates, extracts, drops repeats and keeps the account.

Nothing is dropped silently: every row that was read is either an example or counted in the report
under one reason, with the first places where it happened.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import regex

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.data.advice import LOOKED_AT, Columns, left_out, missing_column_error
from native_reasoning.data.files import Row
from native_reasoning.data.rows import Example
from native_reasoning.data.shapes import Pair, Turns, read_row
from native_reasoning.data.sources import RawRows, load_rows
from native_reasoning.data.values import NOTES, REASONS, BadRow

#: Places that the account names for a reason.
_PLACES_SHOWN = 5
#: Seconds that --answer-regex may take for a row.
_PATIENCE = 1.0
#: Of rows whose columns nobody asks for: one for all of them.
_NO_COLUMNS: dict[str, Any] = {}


@dataclass(frozen=True)
class Dropped:
    """Rows left out for one ``reason`` (a key of ``REASONS``) and the first ``places``; or rows
    that are kept, for a key of ``NOTES``.

    >>> Dropped("null", count=2, places=("line 7", "line 9")).line()
    '2 null: the row has no value in a column (line 7, line 9)'
    """

    reason: str
    count: int
    places: tuple[str, ...]

    def line(self) -> str:
        """One line for people."""
        more = ", ..." if self.count > len(self.places) else ""
        text = NOTES.get(self.reason) or f"the row {REASONS[self.reason].text}"
        return f"{self.count} {self.reason}: {text} ({', '.join(self.places)}{more})"


@dataclass(frozen=True)
class DataReport:
    """The account of one ``source``, by its name: ``read`` = ``kept`` + the counts in ``dropped``.

    ``unit`` is what ``Example.line`` counts: "line" in JSONL and CSV, else "row" (in a folder the
    row's number over all files, while places name the file). ``noted`` counts kept rows of which
    something is to be said. ``shapes`` has the columns used, such as ``("question -> answer",
    97)``; ``unused`` the other columns of the first usable row; ``left_out`` says which of them,
    and which files of a folder, a question may need.
    """

    source: str
    unit: str
    read: int
    kept: int
    dropped: tuple[Dropped, ...] = ()
    noted: tuple[Dropped, ...] = ()
    shapes: tuple[tuple[str, int], ...] = ()
    unused: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def count(self, reason: str) -> int:
        """How many rows were left out, or noted, for ``reason``."""
        entries = (*self.dropped, *self.noted)
        return sum(entry.count for entry in entries if entry.reason == reason)

    def warnings(self) -> tuple[str, ...]:
        """What to do about what is left out: columns and files that a question may need, and more
        than a tenth of the rows."""
        lost = self.read - self.kept
        if lost <= 0.1 * self.read:
            return self.left_out
        worst = _worst(self)
        reason = REASONS[worst.reason]
        told = (
            f"{lost} of {self.read} rows of {self.source} are not used; {worst.count} of them "
            f"because the row {reason.text}: {reason.fix}"
        )
        return (*self.left_out, told)

    def lines(self) -> tuple[str, ...]:
        """Short text for people: what was kept, from which columns, one line per reason."""
        shapes = ", ".join(
            shape if len(self.shapes) == 1 else f"{shape}: {count}" for shape, count in self.shapes
        )
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        head = f"{self.source}: {self.kept} of {self.read} rows kept ({shapes}{unused})"
        return (head, *(f"  {entry.line()}" for entry in (*self.dropped, *self.noted)))


@dataclass(frozen=True)
class Examples:
    """The usable ``examples`` of a source, whose ``row_id`` is their index, and the ``report`` on
    the rest. ``len`` counts the examples."""

    examples: Sequence[Example]
    report: DataReport

    def __len__(self) -> int:
        return len(self.examples)


def with_dropped(report: DataReport, reason: str, lines: Sequence[int]) -> DataReport:
    """The report after the examples at ``lines`` (their ``Example.line``) were left out too."""
    assert reason in REASONS, reason
    dropped = {entry.reason: entry for entry in report.dropped}
    for line in lines:
        _count(dropped, reason, f"{report.unit} {line}")
    return replace(report, kept=report.kept - len(lines), dropped=tuple(dropped.values()))


def _count(dropped: dict[str, Dropped], reason: str, place: str) -> None:
    """One more row is left out."""
    old = dropped.get(reason, Dropped(reason, 0, ()))
    dropped[reason] = Dropped(reason, old.count + 1, (*old.places, place)[:_PLACES_SHOWN])


def _worst(report: DataReport) -> Dropped:
    """The entry for the reason that dominates."""
    return max(report.dropped, key=lambda entry: entry.count)


def no_usable_row(report: DataReport, detail: str = "") -> DataError:
    """The error for a source of which nothing is left: names the reason that dominates."""
    worst = _worst(report)
    reason = REASONS[worst.reason]
    return DataError(
        f"no usable row in {report.source}: in {worst.count} of {report.read} the row "
        f"{reason.text} (first: {worst.places[0]}{detail and ': ' + detail})",
        why="training needs at least one question with its answer",
        fix=reason.fix,
    )


def content_hash(examples: Iterable[Example]) -> str:
    """SHA-256 (hex) over prompts and answers in order; row numbers and file names do not count."""
    digest = hashlib.sha256()
    for example in examples:
        text = json.dumps([example.prompt, *example.references], ensure_ascii=False)
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


# -- The pass --------------------------------------------------------------------------------------


def load_examples(
    source: object,
    *,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    answer_regex: str | None = None,
    prompt_template: str | None = None,
    split: str | None = None,
    keep_columns: bool = False,
) -> Examples:
    r"""Read a ``source`` into examples; bad rows are counted in the report.

    ``source`` is a file (.jsonl, .json, .csv, .tsv, .parquet), a folder, a hub id, a Dataset, a
    pandas frame or a list of dicts; ``split`` picks a split where there are several (``load_rows``
    has the rules).

    ``prompt_column`` and ``answer_column`` override the shapes of ``shapes.py``: a column, a path
    into one (``instances.0.output``), for the prompt several (``Body+Question``). A prompt column
    of chat turns alone gives the answer too: the last assistant turn. ``prompt_template`` makes a
    prompt of columns named in braces: ``"{context}\\n{question}"``.
    ``answer_regex`` takes a part of the answer: group 1, or the whole match when the pattern has no
    group; the last match wins: ``r"####\s*(.*)"``.
    ``keep_columns`` keeps every column of a row in its example, for reward functions.

    Raises DataError: unreadable or empty source, missing column, no usable row. Raises ConfigError:
    a bad pattern, or one that takes more than a second for a row; a template without a column.
    """
    pattern = None if answer_regex is None else _compiled(answer_regex)
    columns = (prompt_column, answer_column, _checked(prompt_template, prompt_column))
    tally = Tally(load_rows(source, split=split), columns)
    return Examples(tuple(_usable(tally, pattern, keep_columns)), tally.report())


def _usable(
    tally: "Tally", pattern: "regex.Pattern[str] | None", columns: bool
) -> Iterator[Example]:
    for row in tally.rows.rows:
        try:
            if row.problem is not None:
                raise BadRow(*row.problem)
            pair = read_row(row.value, *tally.columns)
            if pattern is not None:
                found = tuple(_part(pattern, text, row.place) for text in pair.answers)
                pair = replace(pair, answers=found)
            tally.keep(row, pair)
        except BadRow as bad:
            tally.drop(row, bad)
        else:
            kept = dict(row.value) if columns else _NO_COLUMNS
            answer, *others = pair.answers
            number = len(tally.pairs) - 1
            yield Example(pair.prompt, answer, number, row.number, kept, tuple(others))


@dataclass
class Tally:
    """The running account of a source. ``columns`` are those that the caller named, for
    messages."""

    rows: RawRows
    columns: Columns = (None, None, None)
    first: list[Any] = field(default_factory=list)
    first_pair: Pair | None = None
    shapes: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Dropped] = field(default_factory=dict)
    noted: dict[str, Dropped] = field(default_factory=dict)
    first_bad: dict[str, list[tuple[Row, BadRow]]] = field(default_factory=dict)
    prompts: set[bytes] = field(default_factory=set)
    pairs: set[bytes] = field(default_factory=set)

    def keep(self, row: Row, pair: Pair) -> None:
        """Counts a usable row. Raises BadRow where an earlier one had its prompt and answer."""
        prompt, both = _digest(pair.prompt), _digest(pair.prompt, pair.answer)
        if both in self.pairs:
            raise BadRow("duplicate")
        self.first_pair = self.first_pair or pair
        if len(self.first) < LOOKED_AT:
            self.first.append(row.value)
        for note in pair.notes:
            _count(self.noted, note, row.place)
        for note, place in row.notes:
            _count(self.noted, note, place)
        if any("</think>" in answer for answer in pair.answers):
            _count(self.noted, "reasoning_in_answer", row.place)
        if prompt in self.prompts:
            _count(self.noted, "repeated_prompt", row.place)
        self.prompts.add(prompt)
        self.pairs.add(both)
        self.shapes[pair.shape] += 1

    def drop(self, row: Row, bad: BadRow) -> None:
        """Counts a row that is left out, with its place; of a broken one, with what is wrong."""
        place = f"{row.place}: {bad.detail}" if row.problem else row.place
        _count(self.dropped, bad.reason, place)
        some = self.first_bad.setdefault(bad.reason, [])
        if len(some) < LOOKED_AT:
            some.append((row, bad))

    def report(self) -> DataReport:
        """The account when all rows are read. Raises DataError when there is no example."""
        kept = self.shapes.total()
        report = DataReport(
            source=self.rows.source,
            unit=self.rows.unit,
            read=kept + sum(entry.count for entry in self.dropped.values()),
            kept=kept,
            dropped=tuple(self.dropped[reason] for reason in REASONS if reason in self.dropped),
            noted=tuple(self.noted[note] for note in NOTES if note in self.noted),
            shapes=tuple(self.shapes.most_common()),
            unused=self.unused(),
            left_out=self.left_out(),
        )
        if report.read == 0:
            raise DataError(
                f"{report.source} is empty",
                why="training needs at least one question with its answer",
                fix="write rows into it, or give another source",
            )
        if kept == 0:
            some = self.first_bad[_worst(report).reason]
            row, bad = some[0]
            if bad.reason == "missing_column":
                where = f"{report.source} ({report.unit} {row.number}"
                rows = [other.value for other, _ in some]
                error = missing_column_error(where, rows, bad.detail, self.columns)
                raise self.rows.explained(error, row.value)
            raise no_usable_row(report, bad.detail)
        return report

    def unused(self) -> tuple[str, ...]:
        """The columns of the first usable row that nothing is taken from."""
        return self.first_pair.unused(self.first[0]) if self.first_pair else ()

    def left_out(self) -> tuple[str, ...]:
        """What is said of columns and files that a question may need."""
        told = self.rows.said
        if self.first_pair and (pair := self.first_pair):
            columns = left_out(
                self.first, pair.prompt_columns, pair.answer_column or "", self.unused()
            )
            told = (*told, columns) if columns else told
        return told


def _digest(prompt: Turns, answer: str = "") -> bytes:
    """A short fingerprint of the texts without surrounding white space."""
    texts = [[role, text.strip()] for role, text in prompt]
    return hashlib.blake2b(json.dumps([texts, answer]).encode(), digest_size=16).digest()


# -- The part of an answer -------------------------------------------------------------------------


def _checked(template: str | None, column: str | None) -> str | None:
    """A prompt template with its line breaks. Raises ConfigError."""
    if template is None:
        return None
    if column is not None or "{" not in template:
        raise ConfigError(
            f"prompt_template {template!r} "
            + ("stands beside prompt_column" if column else "names no column"),
            why="a prompt is made in one way, out of columns",
            fix="name columns in braces: --prompt-template '{context}\\n{question}'",
        )
    return template.replace("\\n", "\n")


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
