"""One row of data, as text and as token ids."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: A line that is not empty.
_LINE = re.compile(r"\S[^\n]*")


@dataclass(frozen=True, slots=True)
class Example:
    """One usable row of a data file.

    ``prompt`` is a tuple of chat turns ``(role, content)`` that ends with the turn to be answered;
    a plain question is one user turn. ``answer`` is the reference's text, ``others`` are more
    references, each as right. ``row_id`` is the row's stable number after filtering: it is part of
    the random key. ``line`` is the 1-based row of the source, for messages. ``columns`` holds the
    row's other columns where reward functions may ask for them, else nothing.

    >>> Example(prompt=(("user", "2 + 2?"),), answer="4", row_id=0, line=1).question
    '2 + 2?'
    """

    prompt: tuple[tuple[str, str], ...]
    answer: str
    row_id: int
    line: int
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    others: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The last turn's text: what a person would call the question."""
        return self.prompt[-1][1]

    @property
    def references(self) -> tuple[str, ...]:
        """All references, any of which is a right answer."""
        return (self.answer, *self.others)

    def graded(self, text: str, ended: bool) -> str:
        """What of a sampled answer is compared with the references, without white space around it:
        all of it where it ended its turn.

        A model that was never taught to end a turn answers and goes on with the next question. Of
        such an answer its first lines count, as many as the longest reference has, empty ones left
        out: few-shot tasks stop at a new line (``until`` in lm-eval).

        >>> row = Example(prompt=(("user", "6 * 9?"),), answer="54", row_id=0, line=1)
        >>> row.graded("54\\n\\nQuestion: 7 * 8?", ended=False), row.graded("541\\n", ended=False)
        ('54', '541')
        """
        lines = max(len(_LINE.findall(reference)) for reference in self.references)
        ends = [line.end() for line in _LINE.finditer(text)]
        if not ended and len(ends) > lines:
            text = text[: ends[lines - 1]]
        return text.strip()


@dataclass(frozen=True)
class PromptGroup:
    """One prompt in token ids, ready to be sampled from and scored.

    ``prompt_ids`` ends where the trace begins. ``answer_ids`` (T) ends with the end-of-turn token.
    A group of ``weight`` 0 only fills up a batch: it is forwarded and counts for nothing.
    ``others`` are the ids of the example's other references.

    For "2 + 2?" the prompt ids spell ``<user>2 + 2?<assistant><think>`` and the answer ids
    ``4<end>``; the trace and the closing tag come between them.
    """

    example: Example
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    weight: float = 1.0
    others: tuple[tuple[int, ...], ...] = ()

    @property
    def answer_size(self) -> int:
        """Tokens of the longest reference."""
        return max(map(len, (self.answer_ids, *self.others)))

    def with_reference(self, number: int) -> "PromptGroup":
        """The group with another of its references, 0 being the first, as the answer."""
        if number == 0:
            return self
        texts, ids = list(self.example.references), [self.answer_ids, *self.others]
        answer, answer_ids = texts.pop(number), ids.pop(number)
        example = replace(self.example, answer=answer, others=tuple(texts))
        return replace(self, example=example, answer_ids=answer_ids, others=tuple(ids))


@dataclass(frozen=True)
class Traces:
    """The K sampled traces of one prompt, as sampled: ids are never decoded and encoded again.

    ``ids[k]`` ends with the closing tag's tokens if and only if ``closed[k]``: the tag was sampled.
    An open trace ran into the length limit, or was stopped by the end-of-turn token ``ended[k]``
    (None: it was not). That token is not in ``ids``, because the tag is spliced in its place; but
    it was sampled, so its decision is part of log π(z). ``ended`` may be () for "none was".
    ``answers[k]`` is the answer that was sampled after a closed trace, with its end-of-turn token
    unless it ran into a limit; () where none was. ``answers`` may be () for "none was".
    ``sampler_logps[k]`` is what a sampler with weights and kernels of its own (vLLM) says of each
    token that it sampled for the trace: a diagnostic, and () where the trainer's model samples.

    Three traces, the second cut at the limit of three tokens, the third ended by token 2 (9 is the
    closing tag)::

        Traces(ids=((5, 6, 9), (5, 5, 5), (5,)), closed=(True, False, False), ended=(None, None, 2))
    """

    ids: tuple[tuple[int, ...], ...]
    closed: tuple[bool, ...]
    ended: tuple[int | None, ...] = ()
    answers: tuple[tuple[int, ...], ...] = ()
    sampler_logps: tuple[tuple[float, ...], ...] = ()

    def stops(self) -> tuple[tuple[tuple[int, ...], int | None], ...]:
        """Each trace's ids with the end-of-turn token that stopped it, or None."""
        return tuple(zip(self.ids, self.ended or (None,) * len(self.ids), strict=True))

    def answered(self) -> tuple[tuple[int, ...], ...]:
        """Each trace's sampled answer, () where there is none."""
        return self.answers or ((),) * len(self.ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Sampled tokens of each trace, the one that stopped it included."""
        return tuple(len(ids) + (end is not None) for ids, end in self.stops())
