"""The running account of one source: what is kept, what is dropped and where, in order."""

from collections import Counter
from dataclasses import dataclass, field

from native_reasoning.config.errors import DataError
from native_reasoning.data.account import (
    PLACES_SHOWN,
    REASONS,
    DataReport,
    Dropped,
    Examples,
    no_usable_row,
)
from native_reasoning.data.guess import missing_column_error
from native_reasoning.data.shapes import BadRow
from native_reasoning.data.sources import Row, Rows
from native_reasoning.data.stored import Collector


@dataclass
class Tally:
    """Counts rows; the rows that are kept go to ``kept``.

    ``prompt_column`` and ``answer_column`` are what the caller named, for messages; ``strict``
    makes the first bad row an error.
    """

    rows: Rows
    kept: Collector
    prompt_column: str | None = None
    answer_column: str | None = None
    strict: bool = False
    unused: tuple[str, ...] | None = None
    shapes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    first_bad: dict[str, tuple[Row, BadRow]] = field(default_factory=dict)
    prompts: set[bytes] = field(default_factory=set)
    pairs: set[bytes] = field(default_factory=set)
    repeated: int = 0

    def is_new(self, prompt: bytes, pair: bytes, shape: str) -> bool:
        """Counts a usable row by the digests of its prompt and of prompt and answer; False where
        an earlier row had both."""
        if pair in self.pairs:
            return False
        self.repeated += prompt in self.prompts
        self.prompts.add(prompt)
        self.pairs.add(pair)
        self.shapes[shape] += 1
        return True

    def drop(self, row: Row, bad: BadRow, count: int = 1) -> None:
        """Counts a row that is left out, with its place; ``count`` rows if more are like it.

        Raises DataError when ``strict``.
        """
        if self.strict and bad.reason != "duplicate":
            raise self._bad_row_error(row, bad)
        self.dropped[bad.reason] += count
        self.note_place(bad.reason, row.place)
        self.first_bad.setdefault(bad.reason, (row, bad))

    def note_place(self, reason: str, place: str) -> None:
        """One of the first places is kept for the report."""
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES_SHOWN:
            places.append(place)

    def finish(self) -> Examples:
        """The examples and their report. Raises DataError when there is no example."""
        examples = self.kept.finish()
        report = DataReport(
            source=self.rows.source,
            unit=self.rows.unit,
            read=len(examples) + self.dropped.total(),
            kept=len(examples),
            dropped=tuple(
                Dropped(reason, self.dropped[reason], tuple(self.places[reason]))
                for reason in REASONS
                if reason in self.dropped
            ),
            repeated_prompts=self.repeated,
            shapes=tuple(self.shapes.most_common()),
            unused=self.unused or (),
        )
        if report.read == 0:
            raise DataError(
                f"{report.source} is empty",
                why="training needs at least one question with its answer",
                fix="write rows into it, or give another source",
            )
        if not examples:
            row, bad = self.first_bad[max(self.dropped, key=lambda reason: self.dropped[reason])]
            if bad.reason == "missing_column":
                raise self._missing(row, bad)
            raise no_usable_row(report, bad.detail)
        return Examples(examples, report)

    def _missing(self, row: Row, bad: BadRow) -> DataError:
        names = (self.prompt_column, self.answer_column)
        return missing_column_error(self.rows.source, row, bad, *names)

    def _bad_row_error(self, row: Row, bad: BadRow) -> DataError:
        """The error for the first bad row of a strict run."""
        if bad.reason == "missing_column":
            return self._missing(row, bad)
        reason = REASONS[bad.reason]
        return DataError(
            f"{row.place} of {self.rows.source} {reason.text}{bad.detail and ': ' + bad.detail}",
            why="strict was asked for, so every row must be usable",
            fix=f"{reason.fix}; or leave strict out to count such rows and go on",
        )
