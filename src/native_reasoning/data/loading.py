"""Rows -> examples: the one pass that validates, extracts, drops repeats and keeps the account.

The blocks of a large file of JSON lines are read by all cores (blocks.py); any other source row by
row, here. What comes out is the same.
"""

from native_reasoning.data.account import Examples
from native_reasoning.data.blocks import make_blocks, merge
from native_reasoning.data.pattern import AnswerPattern
from native_reasoning.data.reading import Reading, digest, unused
from native_reasoning.data.shapes import BadRow
from native_reasoning.data.sources import load_rows
from native_reasoning.data.stored import Collector
from native_reasoning.data.tally import Tally

__all__ = ["AnswerPattern", "load_examples"]


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
    More than 5,000 examples are kept on the disk (store.py), not in memory, unless their columns
    are kept and do not come from JSON lines.

    Raises DataError: unreadable or empty source, missing column, no usable row, or, when
    ``strict``, a bad row. Raises ConfigError: a bad pattern, or one that is too slow.
    """
    reading = Reading(prompt_column, answer_column, answer_regex, regex_timeout, keep_columns)
    pattern = reading.pattern()
    rows = load_rows(source, split=split)
    blocks = make_blocks(rows, reading)
    kept = Collector(in_memory=keep_columns and not blocks)
    tally = Tally(rows, kept, prompt_column, answer_column, strict)
    if blocks:
        merge(blocks, tally, pattern)
    else:
        _read_all(tally, reading, pattern)
    return tally.finish()


def _read_all(tally: Tally, reading: Reading, pattern: AnswerPattern | None) -> None:
    for row in tally.rows.rows:
        try:
            pair, answer = reading.usable(row, pattern)
        except BadRow as bad:
            tally.drop(row, bad)
            continue
        if not tally.is_new(digest(pair.prompt), digest(pair.prompt, answer), pair.shape):
            tally.drop(row, BadRow("duplicate"))
            continue
        if tally.unused is None:
            tally.unused = unused(row.value, pair)
        columns = dict(row.value) if reading.keep_columns else {}
        tally.kept.add(pair.prompt, answer, row.number, columns)
