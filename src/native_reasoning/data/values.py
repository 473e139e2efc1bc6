"""Values of a row: where they stand, how people write them as text, and why a row is left out."""

import ast
import datetime
import decimal
import json
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np


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


#: What is said of rows that are kept.
NOTES = {
    "repeated_prompt": "kept, with another answer",
    "several_answers": "training takes one of them in each epoch, evaluation accepts any",
    "parsed_text": "a list or an object that was written as text was read as one",
    "prompt_in_answer": "the answer began with the whole prompt, which was taken off",
    "turns_after_answer": "turns behind the last assistant turn are not used",
    "reasoning_in_answer": "the answer holds a </think>; --answer-regex '(?s)</think>\\s*(.*)' "
    "keeps the part behind it",
    "long_record": "lines inside a cell look like rows of their own: is a quote missing?",
}


class BadRow(Exception):
    """A row that cannot be used: ``reason`` is a key of ``REASONS``, ``detail`` is for
    people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason, detail)


def lookup(row: Mapping[Any, Any], name: str) -> str | None:
    """The row's own spelling of a column: exact, else the first equal but for capitals."""
    if name in row:
        return name
    folded = name.casefold()
    return next((key for key in row if isinstance(key, str) and key.casefold() == folded), None)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or at a dotted path; None where a list is too short or null.

    Raises BadRow("missing_column").
    """
    name = lookup(row, path)
    if name is not None:
        return row[name]
    value: Any = row
    for step in path.split("."):
        if value is None:
            return None
        key = lookup(value, step) if isinstance(value, Mapping) else None
        if key is not None:
            value = value[key]
        elif is_list(value) and step.isdecimal():
            value = value[int(step)] if int(step) < len(value) else None
        else:
            raise BadRow("missing_column", path)
    return value


def text_of(value: Any) -> str:
    """A value as a person writes it: 51.0 -> "51", 0.5 -> "0.5", 1e21 -> "1e21", True -> "true".

    Truth values are written as JSON has them. A list of one value is that value.
    Raises BadRow: "null" for None and NaN, "wrong_type" for what has no plain text.
    """
    if is_list(value):
        if len(value) != 1 or is_list(value[0]):
            raise BadRow("wrong_type", f"a list of {len(value)} where text belongs")
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, np.floating):
        value = float(str(value))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise BadRow("null")
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return _float_text(value)
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return format(value, "f")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise BadRow("wrong_type", f"{type(value).__name__} where text belongs")


def _float_text(value: float) -> str:
    """Shortest decimal form that gives the same number back, without ".0", "+" and "-0"."""
    digits, _, exponent = repr(value).partition("e")
    digits = digits.removesuffix(".0")
    if exponent:
        return f"{digits}e{int(exponent)}"
    return "0" if digits == "-0" else digits


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def are_turns(value: Any) -> bool:
    return is_list(value) and len(value) > 0 and all(isinstance(turn, Mapping) for turn in value)


def has_roles(value: Any) -> bool:
    """Whether a value is chat turns, each with its role."""
    return are_turns(value) and ("role" in value[0] or "from" in value[0])


def parsed(value: Any, wanted: Callable[[Any], bool], notes: list[str]) -> Any:
    """A list or an object that was written as text, in JSON or Python, where it is what is
    ``wanted``; any other value as it is: an answer may be JSON."""
    text = value.strip() if isinstance(value, str) else ""
    if text[:1] + text[-1:] in ("[]", "{}"):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                found = read(text)
                if wanted(found):
                    notes.append("parsed_text")
                    return found
    return value
