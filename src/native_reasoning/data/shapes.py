"""One row -> its prompt and its answer, whatever columns they stand in. No file is touched here.

    prompt + completion | prompt + answer | question + answer | instruction (+ input) + output
    messages | conversations       the last assistant turn is the answer, earlier turns the prompt

The first that fits wins; columns without a value are passed over where another shape fits, and
names fall back to the same name in other letters (``Question``). Texts may be chat turns.
A column of the caller's may be a path into nested values (``instances.0.output``), and a prompt
several columns (``Body+Question``), put one per line. A column with exactly that name comes first.
"""

import datetime
import decimal
import difflib
import math
import numbers
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from native_reasoning.config.errors import DataError

Turns = tuple[tuple[str, str], ...]

_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("instruction", "output"),
)
ANSWER_COLUMNS = tuple(dict.fromkeys(answer for _, answer in _PAIRS))
_CONVERSATIONS = ("messages", "conversations")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}


class BadRow(Exception):
    """A row that cannot be used: ``reason`` is a key of ``loading.REASONS``, ``detail`` is for
    people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason, detail)


@dataclass(frozen=True)
class Pair:
    """Prompt and answer of one row and the columns they came from.

    ``answer_column`` is None where the answer is the last of the prompt column's turns::

        Pair((("user", "2 + 2?"),), "4", prompt_column="question", answer_column="answer")
    """

    prompt: Turns
    answer: str
    prompt_column: str
    answer_column: str | None

    @property
    def shape(self) -> str:
        """The columns for people: "question -> answer"."""
        columns = (self.prompt_column, self.answer_column)
        return " -> ".join(column for column in columns if column is not None)

    def unused(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The columns of the row that nothing was taken from."""
        used = {self.prompt_column, self.answer_column or "", *self.prompt_column.split("+")}
        used = {column.casefold() for column in used | {column.split(".")[0] for column in used}}
        return tuple(str(column) for column in row if str(column).casefold() not in used)


def read_row(row: Any, prompt_column: str | None = None, answer_column: str | None = None) -> Pair:
    """Prompt and answer of one row; the answer without surrounding white space.

    Raises BadRow.
    """
    if not isinstance(row, Mapping):
        raise BadRow("wrong_type", f"{type(row).__name__} where an object with columns belongs")
    prompt_name, answer_name = find_columns(row, prompt_column, answer_column)
    parts = [prompt_name]
    if lookup(row, prompt_name) is None:
        parts = [part.strip() for part in prompt_name.split("+")]
    elif prompt_column is None and prompt_name.casefold() == "instruction":
        extra = lookup(row, "input")
        if extra is not None:
            parts = [prompt_name, extra]
    prompt = _prompt([value_at(row, part) for part in parts], parts)
    if answer_name is None:
        prompt, answer = _split(prompt)
    else:
        prompt, answer = _answer(prompt, value_at(row, answer_name), answer_name)
    _check(prompt, answer)
    return Pair(prompt, answer, "+".join(parts), answer_name)


def find_columns(
    row: Mapping[str, Any], prompt_column: str | None, answer_column: str | None
) -> tuple[str, str | None]:
    """Names of the prompt and answer columns; no answer column means: turns, answer last.

    Raises BadRow("missing_column") with the name of the one that is missing.
    """
    filled = {name: value for name, value in row.items() if value is not None}
    for columns in (filled, row):
        for prompt, answer in _PAIRS:
            name = prompt_column or lookup(columns, prompt)
            answer_name = answer_column or lookup(columns, answer)
            if name is not None and answer_name is not None:
                return name, answer_name
        for conversation in () if prompt_column else _CONVERSATIONS:
            name = lookup(columns, conversation)
            if name is not None:
                return name, answer_column
    if prompt_column is not None:
        single = lookup(row, prompt_column) is not None or "+" not in prompt_column
        if single and _are_turns(value_at(row, prompt_column)):
            return prompt_column, None
    known = prompt_column or next((p for p, _ in _PAIRS if lookup(row, p) is not None), None)
    if known is None:
        raise BadRow("missing_column", "question")
    raise BadRow("missing_column", "output" if known.casefold() == "instruction" else "answer")


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
        elif _is_list(value) and step.isdecimal():
            value = value[int(step)] if int(step) < len(value) else None
        else:
            raise BadRow("missing_column", path)
    return value


def text_of(value: Any) -> str:
    """A value as a person writes it: 51.0 -> "51", 0.5 -> "0.5", 1e21 -> "1e21", True -> "true".

    Truth values are written as JSON has them. A list of one value is that value.
    Raises BadRow: "null" for None and NaN, "wrong_type" for what has no plain text.
    """
    if _is_list(value):
        if len(value) != 1 or _is_list(value[0]):
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


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _are_turns(value: Any) -> bool:
    return _is_list(value) and len(value) > 0 and all(isinstance(turn, Mapping) for turn in value)


def _turns(value: Iterable[Any]) -> Turns:
    """Chat turns with role/content or from/value, content as text or as parts of text."""
    turns = []
    for turn in value:
        role, content = turn.get("role") or turn.get("from"), turn.get("content")
        if content is None:
            content = turn.get("value")
        if not isinstance(role, str) or role.casefold() not in _ROLES:
            raise BadRow("bad_turns", f"role {role!r}")
        if _are_turns(content):
            content = "".join(_part(part) for part in content)
        if not isinstance(content, str):
            raise BadRow("bad_turns", f"{role} turn with {type(content).__name__} for its text")
        turns.append((_ROLES[role.casefold()], content))
    return tuple(turns)


def _part(part: Mapping[str, Any]) -> str:
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise BadRow("bad_turns", f"content of type {part.get('type')!r}; only text can be used")
    return part["text"]


def _prompt(values: list[Any], names: list[str]) -> Turns:
    """The turns of a prompt from one value, or from several texts put one per line."""
    if all(value is None for value in values):
        raise BadRow("null", names[0])
    if len(values) == 1 and _are_turns(values[0]):
        return _turns(values[0])
    texts = [_prompt_text(value) for value in values if value is not None]
    return (("user", "\n".join(text for text in texts if text.strip())),)


def _prompt_text(value: Any) -> str:
    """Text of one prompt column; a list of strings is put one per line."""
    if _is_list(value) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return text_of(value)


def _split(turns: Turns) -> tuple[Turns, str]:
    """What stands before the last assistant turn, and that turn's text."""
    for index in reversed(range(len(turns))):
        if turns[index][0] == "assistant":
            return turns[:index], turns[index][1].strip()
    raise BadRow("no_answer_turn")


def _answer(prompt: Turns, value: Any, name: str) -> tuple[Turns, str]:
    """The prompt (turns of a completion before its last one join it) and the answer's text."""
    if _are_turns(value):
        before, answer = _split(_turns(value))
        return prompt + before, answer
    try:
        return prompt, text_of(value).strip()
    except BadRow as bad:
        detail = f"{name}: {bad.detail}" if bad.detail else name
        raise BadRow(bad.reason, detail) from None


def _check(prompt: Turns, answer: str) -> None:
    """Raises BadRow unless a turn to be answered comes last and all is text for UTF-8."""
    if all(role == "system" for role, _ in prompt) or not prompt[-1][1].strip():
        raise BadRow("empty_prompt")
    if prompt[-1][0] not in ("user", "tool"):
        raise BadRow("bad_turns", f"{prompt[-1][0]} turn just before the answer")
    if not answer:
        raise BadRow("empty_answer")
    try:
        "".join((answer, *(text for _, text in prompt))).encode()
    except UnicodeEncodeError as error:
        raise BadRow("unencodable", str(error.reason)) from None


# -- Which column was probably meant ---------------------------------------------------------------

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
_NAMES_SHOWN = 12


def missing_column_error(
    where: str, row: Mapping[str, Any], missing: str, columns: tuple[str | None, str | None]
) -> DataError:
    """The error for a source whose rows lack the column ``missing``, first in ``row`` of ``where``;
    ``columns`` are the prompt's and the answer's that were asked for, if any."""
    (prompt_column, answer_column), names = columns, list(row)
    has = ", ".join(str(name) for name in names[:_NAMES_SHOWN])
    has += ", ..." if len(names) > _NAMES_SHOWN else ""
    about_answer = missing == answer_column or missing in ("answer", "output")
    if about_answer:
        why = "training scores the reference answer, so every row needs one"
        fix = _flag("--answer-column", missing, row, _ANSWERS)
    else:
        why = "the model thinks about the question, so every row needs one"
        fix = _flag("--prompt-column", missing, row, _PROMPTS, prompt_column)
        if answer_column is None and not any(lookup(row, name) for name in ANSWER_COLUMNS):
            fix += " " + _flag("--answer-column", "answer", row, _ANSWERS)
    return DataError(
        f"column {missing!r} not found in {where} has: {has or 'no columns'})", why=why, fix=fix
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
    last = {path: path.rpartition(".")[2].casefold() for path in paths}
    usual = (path for name in known for path in paths if last[path] == name)
    contains = (path for name in known for path in paths if name in last[path])
    return next(chain(usual, contains), None)


def _paths(value: Any, prefix: str = "", depth: int = 3) -> Iterator[str]:
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
        return _are_turns(value) and ("role" in value[0] or "from" in value[0])
    try:
        return bool(text_of(value))
    except BadRow:
        return False
