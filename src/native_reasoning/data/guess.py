"""Which column was probably meant: the fix line of "column 'answer' not found"."""

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from native_reasoning.config.errors import DataError
from native_reasoning.data.shapes import ANSWER_COLUMNS, BadRow, lookup, text_of
from native_reasoning.data.sources import Row

# fmt: off
_ANSWERS = (
    "answer", "completion", "output", "response", "solution", "target", "reply", "label",
    "chosen", "gold",
)
_PROMPTS = (
    "question", "prompt", "instruction", "input", "problem", "query", "context", "title", "text",
    "body",
)
# fmt: on
_DEPTH = 3
_NAMES_SHOWN = 12


def missing_column_error(
    source: str, row: Row, bad: BadRow, prompt_column: str | None, answer_column: str | None
) -> DataError:
    """The error for a source whose rows lack the column ``bad.detail``; ``row`` is the first."""
    missing, names = bad.detail, list(row.value)
    has = ", ".join(str(name) for name in names[:_NAMES_SHOWN])
    has += ", ..." if len(names) > _NAMES_SHOWN else ""
    about_answer = missing == answer_column or missing in ("answer", "output")
    if about_answer:
        why = "training scores the reference answer, so every row needs one"
        fix = _flag("--answer-column", missing, row.value, _ANSWERS)
    else:
        why = "the model thinks about the question, so every row needs one"
        fix = _flag("--prompt-column", missing, row.value, _PROMPTS, prompt_column)
        if answer_column is None and not any(lookup(row.value, name) for name in ANSWER_COLUMNS):
            fix += " " + _flag("--answer-column", "answer", row.value, _ANSWERS)
    return DataError(
        f"column {missing!r} not found in {source} (row {row.number} has: {has or 'no columns'})",
        why=why,
        fix=fix,
    )


def _flag(
    flag: str, missing: str, row: Mapping[str, Any], known: Sequence[str], given: str | None = None
) -> str:
    """The option with the likeliest column, put in the place of the missing one in ``given``."""
    column = likeliest(missing, row, known) or "NAME"
    return f"{flag} {shlex.quote(column if given is None else given.replace(missing, column))}"


def likeliest(missing: str, row: Mapping[str, Any], known: Sequence[str]) -> str | None:
    """The column or path with a text (or chat turns) that is most like the missing one, or None.

    First a slip of the pen, then a usual name, then a name that contains a usual one.
    """
    paths = list(_paths(row))
    folded = {path.casefold(): path for path in reversed(paths)}
    near = difflib.get_close_matches(missing.casefold(), folded, n=1, cutoff=0.75)
    if near:
        return folded[near[0]]
    last = [(path.rpartition(".")[2].casefold(), path) for path in paths]
    for name in known:
        for word, path in last:
            if word == name:
                return path
    for name in known:
        for word, path in last:
            if name in word:
                return path
    return None


def _paths(value: Any, prefix: str = "", depth: int = _DEPTH) -> Iterator[str]:
    """Names of columns with a text, outer ones first, then paths into the first of each list."""
    if depth == 0:
        return
    if isinstance(value, list):
        value = {"0": value[0]} if value else {}
    if isinstance(value, Mapping):
        yield from (f"{prefix}{name}" for name, inner in value.items() if _is_usable(inner))
        for name, inner in value.items():
            yield from _paths(inner, f"{prefix}{name}.", depth - 1)


def _is_usable(value: Any) -> bool:
    """Whether a flag may name it: one text or number, or chat turns; other lists differ in length
    from row to row."""
    if isinstance(value, list):
        first = value[0] if value else None
        return isinstance(first, Mapping) and ("role" in first or "from" in first)
    try:
        return bool(text_of(value))
    except BadRow:
        return False
