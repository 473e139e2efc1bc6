"""Rows -> examples: the one pass that validates, extracts, drops repeats and keeps the account.

Nothing is dropped silently: every row that was read is either an example or counted in the report
under one reason, with the first places where it happened.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import regex

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.data.files import Row
from native_reasoning.data.rows import Example
from native_reasoning.data.shapes import BadRow, Pair, Turns, missing_column_error, read_row
from native_reasoning.data.sources import RawRows, load_rows

#: Places that the account names for a reason.
_PLACES_SHOWN = 5
#: Seconds that --answer-regex may take for a row.
_PATIENCE = 1.0


class Reason(NamedTuple):
    """Why a row is left out: ``text`` follows "the row ...", ``fix`` is for when all rows are."""

    text: str
    fix: str


REASONS = {
    "broken_json": Reason("is not valid JSON", "write one JSON object per line"),
    "broken_csv": Reason(
        "is not valid CSV", 'put cells that hold a comma, quote or new line in "quotes"'
    ),
    "missing_column": Reason(
        "lacks a column", "name the columns: --prompt-column, --answer-column"
    ),
    "null": Reason("has no value in a column", "fill the column, or name another one"),
    "wrong_type": Reason(
        "holds a value that is no text",
        "point at the text inside: --answer-column answers.text.0 walks into lists and objects",
    ),
    "bad_turns": Reason(
        "has chat turns that cannot be used",
        "each turn needs a role (system, user, assistant, tool) and text; a user turn comes last "
        "before the answer",
    ),
    "no_answer_turn": Reason(
        "has no assistant turn", "end each conversation with an assistant turn"
    ),
    "empty_prompt": Reason("has an empty prompt", "fill the prompt, or name another column"),
    "empty_answer": Reason("has an empty answer", "fill the answer, or name another column"),
    "no_regex_match": Reason(
        "has an answer that --answer-regex does not match", "correct the pattern or leave it out"
    ),
    "unencodable": Reason(
        "has text that UTF-8 cannot hold (half of a surrogate pair)", "write the file anew as UTF-8"
    ),
    "duplicate": Reason("repeats an earlier prompt and answer", "add rows that differ"),
    "refused_by_template": Reason(
        "is refused by the chat template, or holds a control token",
        "mend the order of the turns, or set chat_template_path",
    ),
    "too_long_prompt": Reason("has a prompt that is too long", "raise --max-prompt-length"),
    "too_long_answer": Reason("has an answer that is too long", "raise --max-answer-length"),
    "too_long_for_model": Reason(
        "is longer, with a full trace, than the model's context", "lower --max-trace-length"
    ),
}


@dataclass(frozen=True)
class Dropped:
    """Rows left out for one ``reason`` (a key of ``REASONS``) and the first ``places``.

    >>> Dropped("null", count=2, places=("line 7", "line 9")).line()
    '2 null: the row has no value in a column (line 7, line 9)'
    """

    reason: str
    count: int
    places: tuple[str, ...]

    def line(self) -> str:
        """One line for people."""
        more = ", ..." if self.count > len(self.places) else ""
        return (
            f"{self.count} {self.reason}: the row {REASONS[self.reason].text} "
            f"({', '.join(self.places)}{more})"
        )


@dataclass(frozen=True)
class DataReport:
    """The account of one ``source``, by its name: ``read`` = ``kept`` + the counts in ``dropped``.

    ``unit`` is what ``Example.line`` counts: "line" in JSONL, else "row" (from 1; in a folder the
    row's number over all files, while places name the file). ``repeated_prompts`` are kept
    examples whose prompt came before with another answer. ``shapes`` has the columns used, such as
    ``("question -> answer", 97)``; ``unused`` the other columns of the first usable row.
    """

    source: str
    unit: str
    read: int
    kept: int
    dropped: tuple[Dropped, ...] = ()
    repeated_prompts: int = 0
    shapes: tuple[tuple[str, int], ...] = ()
    unused: tuple[str, ...] = ()

    def count(self, reason: str) -> int:
        """How many rows were left out for ``reason``."""
        return sum(entry.count for entry in self.dropped if entry.reason == reason)

    def warning(self) -> str | None:
        """What to do where more than a tenth of the rows are left out."""
        lost = self.read - self.kept
        if lost <= 0.1 * self.read:
            return None
        worst = _worst(self)
        reason = REASONS[worst.reason]
        return (
            f"{lost} of {self.read} rows of {self.source} are not used; {worst.count} of them "
            f"because the row {reason.text}: {reason.fix}"
        )

    def lines(self) -> tuple[str, ...]:
        """Short text for people: what was kept, from which columns, one line per reason."""
        shapes = ", ".join(
            shape if len(self.shapes) == 1 else f"{shape}: {count}" for shape, count in self.shapes
        )
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        head = f"{self.source}: {self.kept} of {self.read} rows kept ({shapes}{unused})"
        tail = ()
        if self.repeated_prompts:
            tail = (f"  {self.repeated_prompts} repeated_prompt: kept, with another answer",)
        return (head, *(f"  {entry.line()}" for entry in self.dropped), *tail)


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
        text = json.dumps([example.prompt, example.answer], ensure_ascii=False)
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


# -- The pass --------------------------------------------------------------------------------------


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

    Raises DataError: unreadable or empty source, missing column, no usable row. Raises ConfigError:
    a bad pattern, or one that takes more than a second for a row.
    """
    pattern = None if answer_regex is None else _compiled(answer_regex)
    tally = Tally(load_rows(source, split=split), (prompt_column, answer_column))
    return Examples(tuple(_usable(tally, pattern, keep_columns)), tally.report())


def _usable(
    tally: "Tally", pattern: "regex.Pattern[str] | None", columns: bool
) -> Iterator[Example]:
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


@dataclass
class Tally:
    """The running account of a source. ``columns`` are the prompt's and the answer's that the
    caller named, if any, for messages."""

    rows: RawRows
    columns: tuple[str | None, str | None] = (None, None)
    unused: tuple[str, ...] = ()
    shapes: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Dropped] = field(default_factory=dict)
    first_bad: dict[str, tuple[Row, BadRow]] = field(default_factory=dict)
    prompts: set[bytes] = field(default_factory=set)
    pairs: set[bytes] = field(default_factory=set)
    repeated: int = 0

    def keep(self, row: Row, pair: Pair, answer: str) -> None:
        """Counts a usable row. Raises BadRow where an earlier one had its prompt and answer."""
        prompt, both = _digest(pair.prompt), _digest(pair.prompt, answer)
        if both in self.pairs:
            raise BadRow("duplicate")
        if not self.pairs:
            self.unused = pair.unused(row.value)
        self.repeated += prompt in self.prompts
        self.prompts.add(prompt)
        self.pairs.add(both)
        self.shapes[pair.shape] += 1

    def drop(self, row: Row, bad: BadRow) -> None:
        """Counts a row that is left out, with its place."""
        _count(self.dropped, bad.reason, row.place)
        self.first_bad.setdefault(bad.reason, (row, bad))

    def report(self) -> DataReport:
        """The account when all rows are read. Raises DataError when there is no example."""
        kept = self.shapes.total()
        report = DataReport(
            source=self.rows.source,
            unit=self.rows.unit,
            read=kept + sum(entry.count for entry in self.dropped.values()),
            kept=kept,
            dropped=tuple(self.dropped[reason] for reason in REASONS if reason in self.dropped),
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
        if kept == 0:
            row, bad = self.first_bad[_worst(report).reason]
            if bad.reason == "missing_column":
                where = f"{report.source} (row {row.number}"
                raise missing_column_error(where, row.value, bad.detail, self.columns)
            raise no_usable_row(report, bad.detail)
        return report


def _digest(prompt: Turns, answer: str = "") -> bytes:
    """A short fingerprint of the texts without surrounding white space."""
    texts = [[role, text.strip()] for role, text in prompt]
    return hashlib.blake2b(json.dumps([texts, answer]).encode(), digest_size=16).digest()


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
