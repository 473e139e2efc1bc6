"""Which columns were probably meant, and which belong to the question: what is proposed is tried on
the rows at hand first."""

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from native_reasoning.config.errors import DataError
from native_reasoning.data.shapes import ANSWER_COLUMNS, read_row, shown
from native_reasoning.data.values import BadRow, has_roles, is_list, lookup, text_of, value_at

# fmt: off
_ANSWERS = (
    "ground_truth", "answer", "right_answer", "correct_answer", "completion", "output", "response",
    "solution", "target", "reply", "label", "chosen", "gold", "final_decision", "answers", "value",
)
_PROMPTS = (
    "question", "prompt", "instruction", "input", "problem", "query", "context", "title", "text",
    "body",
)
# fmt: on
#: Columns that hold no answer that a model should learn, or none at all.
_NEVER = re.compile(
    r"incorrect|hallucinat|wrong|reject|distract|negative|(^|_)bad(_|$)"
    r"|^(type|idx|index|id|uuid|source|split|lang|language|url|level|category|subject|start)$"
    r"|_(type|idx|index|id|start|url|source)$|^(has|is|num|n)_"
)
#: Columns that are part of a question: those that stand before it, and those behind it.
_BEFORE = re.compile(
    r"(^|_)(contexts?|passages?|paragraphs?|documents?|articles?|background|story|stories|body"
    r"|history|system|system_prompt|premise|table|facts?|sentence1|text)$"
)
_BEHIND = re.compile(
    r"^(inputs?|options?|choices?|endings?|candidates|hypothesis|sentence2|[a-e]|op[a-e])$"
    r"|^(option|choice|ending|sol|distractor|answer_choice|opt)_?([a-e]|\d)$"
    r"|(^|_)(choices|options|input)$"
)
_NAMES_SHOWN = 12
#: So many rows are looked at, and a column is missed if so large a share of them has text there.
LOOKED_AT, _FILLED = 200, 0.3

Columns = tuple[str | None, str | None, str | None]


def missing_column_error(
    where: str, rows: Sequence[Mapping[str, Any]], missing: str, columns: Columns
) -> DataError:
    """The error for a source whose rows lack the column ``missing``, first in ``rows[0]`` of
    ``where``; ``columns`` are the prompt's, the answer's and the template that were asked for."""
    row, answer_column = rows[0], columns[1]
    has = ", ".join(str(name) for name in [*row][:_NAMES_SHOWN])
    has += ", ..." if len(row) > _NAMES_SHOWN else ""
    about_answer = missing == answer_column or missing in ("answer", "output")
    what = f"column {missing!r} not found in {where} has: {has or 'no columns'})"
    if about_answer:
        why = "training scores the reference answer, so every row needs one"
    else:
        why = "the model thinks about the question, so every row needs one"
    return DataError(what, why=why, fix=_flags(rows, missing, about_answer, columns))


def _flags(
    rows: Sequence[Mapping[str, Any]], missing: str, about_answer: bool, columns: Columns
) -> str:
    """The options with the likeliest columns that work on the rows; NAME where none does."""
    prompt_column, answer_column, template = columns
    answers = [answer_column]
    no_answer = answer_column is None and not any(lookup(rows[0], n) for n in ANSWER_COLUMNS)
    if about_answer or no_answer:
        wanted = missing if about_answer else "answer"
        answers = [path for path in likeliest(wanted, rows[0], _ANSWERS) if not _never(path)]
    prompts = [prompt_column]
    if not about_answer:
        prompts = list(likeliest(missing, rows[0], _PROMPTS))
        if template is not None:
            prompts = [template.replace("{" + missing + "}", "{" + path + "}") for path in prompts]
        elif prompt_column is not None:
            prompts = [prompt_column.replace(missing, path) for path in prompts]
    for prompt in prompts:
        for answer in answers:
            given = (None, answer, prompt) if template is not None else (prompt, answer, None)
            if prompt != answer and _work(rows, given):
                return _written(given, columns)
    if template is not None and not about_answer:
        return "name columns that are there in --prompt-template"
    prompt = prompt_column if about_answer else "NAME"
    return _written((prompt, "NAME" if about_answer or no_answer else answer_column, None), columns)


def _written(given: Columns, asked: Columns) -> str:
    flags = ("--prompt-column", "--answer-column", "--prompt-template")
    pairs = zip(flags, given, asked, strict=True)
    return " ".join(
        f"{flag} {shlex.quote(new)}" for flag, new, old in pairs if new not in (None, old)
    )


def _work(rows: Sequence[Mapping[str, Any]], columns: Columns) -> bool:
    """Whether most of the rows can be read with these columns."""
    good = 0
    for row in rows:
        try:
            read_row(row, *columns)
            good += 1
        except BadRow:
            pass
    return 2 * good > len(rows)


def _never(path: str) -> bool:
    return any(_NEVER.search(part.casefold()) for part in path.split("."))


def likeliest(missing: str, row: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    """The columns and paths with a text (or chat turns) that are most like the missing one.

    First a slip of the pen, then a usual name, then a name that contains a usual one, then others.
    """
    paths = list(_paths(row))
    folded = {path.casefold(): path for path in reversed(paths)}
    near = difflib.get_close_matches(missing.casefold(), folded, n=1, cutoff=0.75)
    last = {path: re.sub(r"\.\d+$", "", path).rpartition(".")[2].casefold() for path in paths}
    usual = (path for name in known for path in paths if last[path] == name)
    contains = (path for name in known for path in paths if name in last[path])
    return iter(dict.fromkeys(chain((folded[name] for name in near), usual, contains)))


def _paths(value: Any, prefix: str = "", depth: int = 3) -> Iterator[str]:
    """Names of columns with a text, outer ones first, then paths into the first of each list."""
    if depth == 0:
        return
    if isinstance(value, list):
        value = {"0": value[0]} if value and isinstance(value[0], Mapping) else {}
    if isinstance(value, Mapping):
        yield from (f"{prefix}{name}" for name, inner in value.items() if _is_usable(inner))
        for name, inner in value.items():
            yield from _paths(inner, f"{prefix}{name}.", depth - 1)


def _is_usable(value: Any) -> bool:
    """Whether a flag may name it: texts or numbers, or chat turns."""
    if isinstance(value, list):
        texts = bool(value) and all(isinstance(item, str) for item in value)
        return texts or has_roles(value)
    try:
        return bool(text_of(value))
    except BadRow:
        return False


# -- What belongs to the question ------------------------------------------------------------------


def left_out(
    rows: Sequence[Any], prompts: Sequence[str], answer: str, unused: Sequence[str]
) -> str:
    """What to say of columns that look like a part of the question and are not used, by their names
    and values; "" where there are none. Beside an answer at a path (``instances.0.output``) its
    neighbours are looked at too."""
    parent = answer.rpartition(".")[0]
    beside = [f"{parent}.{key}" for key in _keys(_at(rows[0], parent))] if parent else []
    inside = [
        f"{c}.{key}" for c in unused if not _has_text(rows[0], c) for key in _keys(_at(rows[0], c))
    ]
    columns = dict.fromkeys((*unused, *beside, *inside))
    found = [c for c in columns if c != answer and _is_missed(rows, c)]
    found = [c for c in found if not any(other.startswith(f"{c}.") for other in found)]
    if not found:
        return ""
    behind = [c for c in found if _BEHIND.search(c.rpartition(".")[2].casefold())]
    order = [*(c for c in found if c not in behind), *prompts, *behind]
    template = "\\n".join("{" + column + "}" for column in order)
    verb = "is" if len(found) == 1 else "are"
    told = f"{', '.join(found)} {verb} not used, though the question may need it"
    try:
        text = template.replace("\\n", "\n")
        read_row(rows[0], None, answer or None, text)
    except BadRow:
        return told
    return f"{told}: --prompt-template {shlex.quote(template)}"


def _is_missed(rows: Sequence[Any], column: str) -> bool:
    name = column.rpartition(".")[2].casefold()
    if not (_BEFORE.search(name) or _BEHIND.search(name)):
        return False
    values = [_at(row, column) for row in rows]
    filled = [
        len(v) > 0 if is_list(v) else bool(str("" if v is None else v).strip()) for v in values
    ]
    return sum(filled) >= _FILLED * len(rows)


def _has_text(row: Any, column: str) -> bool:
    try:
        return bool(shown(row, column).strip())
    except (BadRow, AttributeError, TypeError):
        return False


def _keys(value: Any) -> list[str]:
    return [str(key) for key in value] if isinstance(value, Mapping) else []


def _at(row: Any, path: str) -> Any:
    try:
        return value_at(row, path)
    except (BadRow, AttributeError, TypeError):
        return None
