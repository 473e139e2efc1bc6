"""What a chat template writes around the turns, which depends on their roles alone.

Turns are rendered with a mark for each text, once for the same roles: rendering takes longer than
encoding a short row.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from native_reasoning.config.errors import TemplateError
from native_reasoning.data.chat_template import render

#: Texts one after the other, each with whether it is the user's.
Pieces = list[tuple[str, bool]]

_KEPT = 1024


@dataclass(frozen=True)
class Frame:
    """The ``text`` of turns of some roles with a mark for each turn, the ``parts`` between the
    marks, one more than there are turns, and the turns in the ``order`` in which they stand."""

    marks: tuple[tuple[str, str], ...]
    text: str
    parts: tuple[str, ...]
    order: tuple[int, ...]


class Frames:
    """The frames of a tokenizer's chat template, made when they are first asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._source = tokenizer.chat_template
        self._made: dict[tuple[str, ...], Frame | TemplateError] = {}

    def of(self, roles: tuple[str, ...]) -> Frame:
        """The frame of turns of these roles. Raises TemplateError if the template refuses them."""
        if self._source != self.tokenizer.chat_template or len(self._made) >= _KEPT:
            self._source = self.tokenizer.chat_template
            self._made.clear()
        if roles not in self._made:
            try:
                self._made[roles] = make_frame(self.tokenizer, roles)
            except TemplateError as error:
                self._made[roles] = error.with_traceback(None)
        found = self._made[roles]
        if isinstance(found, TemplateError):
            raise TemplateError(found.what, why=found.why, fix=found.fix)
        return found

    def shown(self, frame: Frame, i: int, content: str) -> str:
        """Turn i's text as the chat template writes it: some strip white space around it."""
        if content == content.strip():
            return content
        role, mark = frame.marks[i]
        before, _, after = frame.text.partition(mark)
        text = render(self.tokenizer, [*frame.marks[:i], (role, content), *frame.marks[i + 1 :]])
        shown = text[len(before) : len(text) - len(after)]
        framed = text == before + shown + after
        return shown if framed and shown.strip() == content.strip() else content


def make_frame(tokenizer: PreTrainedTokenizerFast, roles: Sequence[str]) -> Frame:
    """Renders turns of these roles.

    Raises TemplateError if the chat template refuses them, leaves one out, or writes one twice.
    """
    marks = tuple((role, f"\ue000{i}\ue001") for i, role in enumerate(roles))
    text = render(tokenizer, marks)
    parts = re.split("\ue000(\\d+)\ue001", text)  # text, turn, text, turn, ..., text
    order = tuple(int(turn) for turn in parts[1::2])
    if sorted(order) != [*range(len(marks))]:
        raise TemplateError(
            "the chat template leaves out a turn, or writes one twice",
            why="the model would not see the question as it is",
            fix="set chat_template_path to a template that shows every turn once",
        )
    return Frame(marks, text, tuple(parts[::2]), order)
