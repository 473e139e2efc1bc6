"""Many rows in token ids: what ``Template.group`` gives for each, several times sooner.

``Template.encode`` asks the tokenizer where each token stands, because a control token must not
come out of user text. Here that is known without: control tokens are found by their literal text,
no two of them overlap, so those of the template's own text are always found; if the row has no more
than these, user text made none. Any other row, and any tokenizer whose control tokens are found in
another way, goes through ``Template.encode``.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerFast

from native_reasoning.config.errors import TemplateError
from native_reasoning.data.boundary import decode
from native_reasoning.data.frames import Pieces, make_frame
from native_reasoning.data.rows import Example
from native_reasoning.data.template import Template
from native_reasoning.data.words import UnsafeWord, make_words

#: Rows that the tokenizer encodes at a time: its records take 100 bytes a token.
_ROWS = 64

#: Prompt and answer as uint32 in the machine's order, or why the template refuses the row.
Encoded = tuple[bytes, bytes] | TemplateError


class RowEncoder:
    """Encodes the rows of one template; the first use of a tokenizer takes a moment."""

    def __init__(self, template: Template) -> None:
        self.template, tokenizer = template, template.tokenizer
        added = tokenizer.added_tokens_decoder
        self.literal = has_literal_controls(tokenizer, template.control_ids)
        self.words = make_words(tokenizer, template.control_ids) if self.literal else None
        controls = [re.escape(t.content) for i, t in added.items() if i in template.control_ids]
        self._controls = re.compile("|".join(controls))
        self._is_control = np.zeros(template.vocabulary, dtype=bool)
        self._is_control[[*template.control_ids]] = True
        self._frame_controls = lru_cache(maxsize=4096)(self._count)
        boundary = template.boundary
        by_text = boundary.closes_by_text
        before = decode(tokenizer, boundary.close_ids) if by_text else boundary.gap
        self._before: Pieces = [(before, False), (boundary.lead, False)]
        self._head = array("I", boundary.close_ids if by_text else template.gap_ids).tobytes()
        self._end = array("I", template.end_ids[:1]).tobytes()

    def __call__(self, examples: Sequence[Example]) -> Iterator[Encoded]:
        """Each example's ids, in order."""
        rest = iter(examples)
        while some := [*islice(rest, _ROWS)]:
            yield from self._encode(some)

    def _encode(self, examples: Sequence[Example]) -> list[Encoded]:
        rows: list[Encoded | None] = [None] * len(examples)
        jobs: list[Pieces] = []
        for i, example in enumerate(examples):
            try:
                prompt = self.template.prompt_pieces(example.prompt)
            except TemplateError as error:
                rows[i] = error
            else:
                jobs += [prompt, [*self._before, (example.answer, True)]]
        ids = iter(self._fast(jobs) if self.literal else [None] * len(jobs))
        return [
            row or self._row(example, next(ids), next(ids))
            for row, example in zip(rows, examples, strict=True)
        ]

    def _row(self, example: Example, prompt: bytes | None, answer: bytes | None) -> Encoded:
        """The row from what could be encoded fast, else by the template itself."""
        try:
            if prompt is None:
                prompt = array("I", self.template.prompt_ids(example)).tobytes()
            if answer is None or not answer.startswith(self._head):
                return prompt, array("I", self.template.answer_ids(example.answer)).tobytes()
        except TemplateError as error:
            return error
        return prompt, answer[len(self._head) :] + self._end

    def _fast(self, jobs: Sequence[Pieces]) -> list[bytes | None]:
        """The ids of each text, or None where user text may have made a control token."""
        texts = ["".join(text for text, _ in pieces) for pieces in jobs]
        found: list[tuple[bytes, int] | None] = [None] * len(jobs)
        left = []
        for i, text in enumerate(texts):
            if self.words is not None and text.isascii():
                try:
                    found[i] = self.words.encode(text)
                except UnsafeWord:
                    continue
            else:
                left.append(i)
        backend = self.template.tokenizer.backend_tokenizer
        encoded = backend.encode_batch_fast([texts[i] for i in left], add_special_tokens=False)
        for i, encoding in zip(left, encoded, strict=True):
            ids = np.array(encoding.ids, dtype=np.uint32)
            found[i] = ids.tobytes(), int(self._is_control[ids].sum())
        return [
            None if one is None or one[1] != self._expected(pieces) else one[0]
            for pieces, one in zip(jobs, found, strict=True)
        ]

    def _expected(self, pieces: Pieces) -> int:
        """Control tokens of the template's own text."""
        return sum(self._frame_controls(text) for text, from_user in pieces if not from_user)

    def _count(self, text: str) -> int:
        return len(self._controls.findall(text))


def has_literal_controls(tokenizer: PreTrainedTokenizerFast, control_ids: frozenset[int]) -> bool:
    """Whether each control token is found wherever its text stands, whatever stands beside it."""
    added = tokenizer.added_tokens_decoder
    if tokenizer.split_special_tokens or not control_ids <= added.keys() or not control_ids:
        return False
    plain = tokenizer.backend_tokenizer.normalizer is None
    controls = [added[i] for i in control_ids]
    if any(t.single_word or (t.normalized and not plain) for t in controls):
        return False
    texts = {token.content for token in controls}
    others = {token.content for token in added.values()} - texts
    if any(text != text.strip() for text in texts):
        return False
    return not (_overlap(texts, texts | others) or _overlap(others, texts))


def _overlap(left: set[str], right: set[str]) -> bool:
    """Whether one of ``left`` can run into one of ``right``, or one of the two holds the other."""
    starts = {text[:i] for text in right for i in range(1, len(text))}
    inside = {
        text[i:j]
        for text in left
        for i in range(len(text))
        for j in range(i + 1, len(text) + 1)
        if j - i < len(text)
    }
    ends = {text[i:] for text in left for i in range(1, len(text))}
    return not starts.isdisjoint(ends) or not inside.isdisjoint(right)


def fingerprint(template: Template) -> str:
    """A hash (hex) of all that the ids of a row depend on, the row apart."""
    tokenizer = template.tokenizer
    parts = [
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        repr(tokenizer.special_tokens_map),
        tokenizer.split_special_tokens,
        asdict(template.boundary),
        template.end_ids,
        template.system_prompt,
        _rendered(template),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _rendered(template: Template) -> str:
    """A prompt as it is written today: some chat templates write the date."""
    try:
        return make_frame(template.tokenizer, ("user",)).text
    except TemplateError as error:
        return error.what
