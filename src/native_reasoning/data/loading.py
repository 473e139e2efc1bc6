"""Rows -> examples: the one pass that validates, extracts, drops repeats and keeps the account."""

from collections.abc import Iterator

import regex

from native_reasoning.config.errors import ConfigError
from native_reasoning.data.account import Examples, Tally
from native_reasoning.data.rows import Example
from native_reasoning.data.shapes import BadRow, read_row
from native_reasoning.data.sources import load_rows

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

    Raises DataError: unreadable or empty source, missing column, no usable row. Raises ConfigError:
    a bad pattern, or one that takes more than a second for a row.
    """
    pattern = None if answer_regex is None else _compiled(answer_regex)
    tally = Tally(load_rows(source, split=split), (prompt_column, answer_column))
    return Examples(tuple(_usable(tally, pattern, keep_columns)), tally.report())


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
