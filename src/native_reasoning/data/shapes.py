"""One row -> its prompt and its answer, whatever columns they stand in. No file is touched here.

    prompt + completion | prompt + answer | question + answer | question + answers
    instruction (+ input, history, system) + output
    messages | conversations       the last assistant turn is the answer, earlier turns the prompt

The first that fits wins; columns without a value are passed over where another shape fits, and
names fall back to the same name in other letters (``Question``). Texts may be chat turns. Several
answers are references of one question, and any of them is right. Lists and turns that were written
as text, in JSON or Python, are read as what they are. A column of the caller's may be a path into
nested values (``instances.0.output``), and a prompt several columns, one per line
(``Body+Question``) or in a template (``"{context}\\n{question}"``). A column with exactly that name
comes first.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from native_reasoning.data.values import (
    BadRow,
    are_turns,
    has_roles,
    is_list,
    lookup,
    parsed,
    text_of,
    value_at,
)

Turns = tuple[tuple[str, str], ...]

_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "answers"),
    ("question", "possible_answers"),
    ("question", "golden_answers"),
    ("instruction", "output"),
)
ANSWER_COLUMNS = tuple(dict.fromkeys(answer for _, answer in _PAIRS))
_CONVERSATIONS = ("messages", "conversations")
_IN_BRACES = re.compile(r"\{([^{}\n]+)\}")
_SPEAKERS = ("user", "assistant")
#: Columns of options, which a prompt template writes behind letters.
_OPTIONS = ("choices", "options", "endings", "candidates")
#: Columns whose texts part their references by bars, and those whose texts are never taken apart:
#: there a list may be the answer to a question about a program.
_PARTED = ("answers", "possible_answers", "golden_answers", "references", "ref_text", "targets")
_NOT_PARSED = ("output", "completion", "response")
#: A prompt of so many characters at the beginning of an answer stands there twice.
_PROMPT_LIKE = 16
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


@dataclass(frozen=True)
class Pair:
    """Prompt and answers of one row and the columns they came from.

    ``answers`` are references of one question. ``answer_column`` is None where the answer is the
    last of the prompt column's turns. ``notes`` are keys of ``values.NOTES``::

        Pair((("user", "2 + 2?"),), ("4",), ("question",), "answer")
    """

    prompt: Turns
    answers: tuple[str, ...]
    prompt_columns: tuple[str, ...]
    answer_column: str | None
    notes: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """The first reference."""
        return self.answers[0]

    @property
    def shape(self) -> str:
        """The columns for people: "question -> answer"."""
        columns = ("+".join(self.prompt_columns), self.answer_column)
        return " -> ".join(column for column in columns if column is not None)

    def unused(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The columns of the row that nothing was taken from."""
        used = {self.answer_column or "", *self.prompt_columns}
        used = {column.casefold() for column in used | {column.split(".")[0] for column in used}}
        return tuple(str(column) for column in row if str(column).casefold() not in used)


def read_row(
    row: Any,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    prompt_template: str | None = None,
) -> Pair:
    """Prompt and answers of one row; answers without surrounding white space.

    Raises BadRow.
    """
    if not isinstance(row, Mapping):
        raise BadRow("wrong_type", f"{type(row).__name__} where an object with columns belongs")
    notes = list[str]()
    if prompt_template is not None:
        used = tuple(dict.fromkeys(_IN_BRACES.findall(prompt_template)))
        text = _IN_BRACES.sub(lambda found: shown(row, found[1]), prompt_template)
        prompt: Turns = (("user", text),)
        answer_name = find_columns({"question": "", **row}, "question", answer_column)[1]
    else:
        prompt_name, answer_name = find_columns(row, prompt_column, answer_column)
        prompt, used = _prompt(row, prompt_name, prompt_column is None, notes)
    if answer_name is None:
        prompt, answers = _split(prompt, notes)
    else:
        prompt, answers = _answers(prompt, value_at(row, answer_name), answer_name, notes)
    _check(prompt, answers)
    return Pair(prompt, answers, used, answer_name, tuple(notes))


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
        if single and are_turns(parsed(value_at(row, prompt_column), has_roles, [])):
            return prompt_column, None
    known = prompt_column or next((p for p, _ in _PAIRS if lookup(row, p) is not None), None)
    if known is None:
        raise BadRow("missing_column", "question")
    raise BadRow("missing_column", "output" if known.casefold() == "instruction" else "answer")


def has_columns(row: Mapping[str, Any]) -> bool:
    """Whether question and answer are found in a row by the names of its columns."""
    try:
        return bool(find_columns(row, None, None))
    except BadRow:
        return False


def _turns(value: Iterable[Any]) -> Turns:
    """Chat turns with role/content or from/value, content as text or as parts of text."""
    turns = []
    for turn in value:
        role, content = turn.get("role") or turn.get("from"), turn.get("content")
        if content is None:
            content = turn.get("value")
        if not isinstance(role, str) or role.casefold() not in _ROLES:
            raise BadRow("bad_turns", f"role {role!r}")
        if are_turns(content):
            content = "".join(_part(part) for part in content)
        if not isinstance(content, str):
            raise BadRow("bad_turns", f"{role} turn with {type(content).__name__} for its text")
        turns.append((_ROLES[role.casefold()], content))
    return tuple(turns)


def _part(part: Mapping[str, Any]) -> str:
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise BadRow("bad_turns", f"content of type {part.get('type')!r}; only text can be used")
    return part["text"]


# -- The prompt ------------------------------------------------------------------------------------


def _prompt(
    row: Mapping[str, Any], name: str, found: bool, notes: list[str]
) -> tuple[Turns, tuple[str, ...]]:
    """The turns of a prompt and the columns that they are taken from. Beside a column that was
    ``found`` and not named by the caller stand those that are a part of it."""
    names = (name,)
    if lookup(row, name) is None:
        names = tuple(part.strip() for part in name.split("+"))
    elif found and name.casefold() == "instruction" and (extra := lookup(row, "input")):
        names = (name, extra)
    values = [parsed(value_at(row, part), has_roles, notes) for part in names]
    if all(value is None for value in values):
        raise BadRow("null", name)
    if len(values) == 1 and are_turns(values[0]):
        return _turns(values[0]), names
    texts = [_text_of_prompt(value) for value in values if value is not None]
    prompt: Turns = (("user", "\n".join(text for text in texts if text.strip())),)
    for part, kind in (("history", "user"), ("system", "system"), ("system_prompt", "system")):
        column = lookup(row, part) if found else None
        if column is not None and (before := _turns_before(row[column], kind)):
            prompt, names = before + prompt, (*names, column)
    return prompt, names


def _turns_before(value: Any, kind: str) -> Turns:
    """The turns before a question: a system text, or a history of pairs; () for anything else."""
    if kind == "system":
        return (("system", value),) if isinstance(value, str) and value.strip() else ()
    if not is_list(value):
        return ()
    if are_turns(value):
        return _turns(value)
    pairs = [pair for pair in value if is_list(pair) and len(pair) == 2]
    return tuple((role, str(text)) for p in pairs for role, text in zip(_SPEAKERS, p, strict=True))


def _text_of_prompt(value: Any) -> str:
    """Text of one prompt column; a list of strings is put one per line."""
    if is_list(value) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return text_of(value)


def shown(row: Mapping[str, Any], path: str) -> str:
    """A column as a prompt template writes it: options one per line behind their letters, lists one
    per line. Raises BadRow."""
    value = value_at(row, path)
    if path.rpartition(".")[2].casefold() in _OPTIONS:
        value = parsed(value, bool, [])
    if has_roles(value):
        raise BadRow("wrong_type", f"{path}: chat turns, which a template cannot hold")
    if isinstance(value, Mapping):
        labels: Any = value.get("label")
        texts: Any = value.get("text")
        if is_list(labels) and is_list(texts):
            return "\n".join(f"{a}. {b}" for a, b in zip(labels, texts, strict=False))
        return "\n".join(f"{key}. {text_of(item)}" for key, item in value.items())
    if is_list(value) and all(isinstance(item, Mapping) for item in value):
        return "\n".join(". ".join(map(text_of, item.values())) for item in value)
    if is_list(value) and path.rpartition(".")[2].casefold() in _OPTIONS:
        return "\n".join(f"{chr(65 + i)}. {text_of(item)}" for i, item in enumerate(value))
    return _text_of_prompt(value)


# -- The answers -----------------------------------------------------------------------------------


def _split(turns: Turns, notes: list[str]) -> tuple[Turns, tuple[str, ...]]:
    """What stands before the last assistant turn, and that turn's text."""
    for index in reversed(range(len(turns))):
        if turns[index][0] == "assistant":
            if index + 1 < len(turns):
                notes.append("turns_after_answer")
            return turns[:index], (turns[index][1].strip(),)
    raise BadRow("no_answer_turn")


def _answers(
    prompt: Turns, value: Any, name: str, notes: list[str]
) -> tuple[Turns, tuple[str, ...]]:
    """The prompt (turns of a completion before its last one join it) and the answers' texts. A
    completion that begins with its prompt is taken behind it."""
    if not name.casefold().endswith(_NOT_PARSED):
        value = parsed(value, _are_answers, notes)
    if has_roles(value):
        before, answers = _split(_turns(value), notes)
        if before[: len(prompt)] == prompt:
            notes.append("prompt_in_answer")
            before = before[len(prompt) :]
        return prompt + before, answers
    try:
        texts = [text.strip() for text in _references(value, name)]
    except BadRow as bad:
        detail = f"{name}: {bad.detail}" if bad.detail else name
        raise BadRow(bad.reason, detail) from None
    asked = prompt[-1][1].strip()
    behind = [text.removeprefix(asked).strip() for text in texts if text.startswith(asked)]
    if len(asked) >= _PROMPT_LIKE and len(behind) == len(texts) and all(behind):
        notes.append("prompt_in_answer")
        texts = behind
    if len(texts) > 1:
        texts = list(dict.fromkeys(filter(None, texts))) or [""]
    if len(texts) > 1:
        notes.append("several_answers")
    return prompt, tuple(texts)


def _references(value: Any, name: str) -> list[str]:
    """Every reference in a value: a text, a list, or an object with them (SQuAD's ``text``,
    TriviaQA's ``value`` and ``aliases``, DROP's ``spans`` and ``a|b``)."""
    if isinstance(value, Mapping):
        for keys in (("text",), ("value", "aliases"), ("spans",)):
            if keys[0] in value:
                parts = [value[key] for key in keys if value.get(key) is not None]
                return [text for part in parts for text in _references(part, name)]
    if is_list(value):
        return [text for item in value for text in _references(item, name)] or _references(
            None, name
        )
    text = text_of(value)
    parts = text.split("|") if name.rpartition(".")[2].casefold() in _PARTED else []
    whole = all(part.strip() and part.count("(") == part.count(")") for part in parts)
    return parts if len(parts) > 1 and whole else [text]


def _are_answers(value: Any) -> bool:
    """Whether a value that was written as text is references or turns, and not an answer that is
    JSON: a list of texts, SQuAD's or TriviaQA's object, or chat turns."""
    if isinstance(value, Mapping):
        return is_list(value.get("text")) or "aliases" in value
    texts = is_list(value) and len(value) > 0 and all(isinstance(item, str) for item in value)
    return texts or has_roles(value)


def _check(prompt: Turns, answers: Sequence[str]) -> None:
    """Raises BadRow unless a turn to be answered comes last and all is text for UTF-8."""
    if all(role == "system" for role, _ in prompt) or not prompt[-1][1].strip():
        raise BadRow("empty_prompt")
    if prompt[-1][0] not in ("user", "tool"):
        raise BadRow("bad_turns", f"{prompt[-1][0]} turn just before the answer")
    if not all(answers):
        raise BadRow("empty_answer")
    try:
        "".join((*answers, *(text for _, text in prompt))).encode()
    except UnicodeEncodeError as error:
        raise BadRow("unencodable", str(error.reason)) from None
