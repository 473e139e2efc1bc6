"""Where prompt, trace and answer begin and end, in text and in ids.

A row of training is ``prompt … <think>`` + trace + ``</think>`` + gap + ``answer<end of turn>``.
The trace is sampled ids and stays so; everything else is encoded here. The boundary between trace
and answer is a token of the tokenizer, a token that was added, or a text cut at a place where no
vocabulary item can span it. User text never becomes a control token: see ``Template.encode``.
"""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from native_reasoning.config.errors import TemplateError
from native_reasoning.data.chat_template import (
    PLAIN_CHAT_TEMPLATE,
    Boundary,
    Frame,
    Pieces,
    answered,
    control_ids,
    decode,
    find_end_ids,
    first_id,
    make_frame,
    split_responses,
    text_boundary,
    token_boundary,
    without_added_tokens,
)
from native_reasoning.data.rows import Example, PromptGroup, Traces


class Template:
    """Encodes rows and recognises boundaries for one tokenizer.

    Build it with ``make_template``. ``end_ids`` are the tokens that end a turn; an answer ends with
    the first of them. ``vocabulary`` is the first id beyond the tokenizer's: logits from there on
    are padding of the embedding table.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        boundary: Boundary,
        end_ids: tuple[int, ...],
        system_prompt: str | None = None,
    ) -> None:
        self.tokenizer, self.boundary, self.end_ids = tokenizer, boundary, end_ids
        self.system_prompt = system_prompt
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1
        tags = () if boundary.closes_by_text else boundary.close_ids
        self.control_ids = control_ids(tokenizer, end_ids) | {*tags}
        self.plain = without_added_tokens(tokenizer)
        self._frames: dict[tuple[str, ...], Frame] = {}
        added = tokenizer.added_tokens_decoder
        texts = [re.escape(added[i].content) for i in self.control_ids if i in added]
        self._controls = re.compile("|".join(texts) or "(?!)")
        self._own_controls: dict[str, int] = {}
        # as they stand behind the tag: alone they may be other tokens
        behind = self.encode([(boundary.close_text + boundary.gap, False)])
        self.gap_ids = () if boundary.closes_by_text else behind[len(boundary.close_ids) :]

    # -- text to ids -------------------------------------------------------------------------------

    def encode(self, pieces: Sequence[tuple[str, bool]]) -> tuple[int, ...]:
        """Token ids of ``(text, from_user)`` pieces, as if joined, with user text kept plain.

        The joined text is encoded as it stands. If that makes a control token out of user text, the
        pieces are encoded one by one, user text by a copy of the tokenizer that has no added
        tokens. Raises TemplateError if a control token comes out of user text even so.
        """
        return self._encode_rows([pieces])[0]

    def _encode_rows(self, rows: Sequence[Sequence[tuple[str, bool]]]) -> list[tuple[int, ...]]:
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        texts = ["".join(text for text, _ in pieces) for pieces in rows]
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [
            tuple(one.ids) if self._surely_plain(pieces, one.ids) else self._encode_row(pieces)
            for pieces, one in zip(rows, encoded, strict=True)
        ]

    def _surely_plain(self, pieces: Sequence[tuple[str, bool]], ids: Sequence[int]) -> bool:
        """Whether user text holds no control token's text, and the ids have as many control tokens
        as the template's own text: then none came out of user text."""
        if any(user and self._controls.search(text) for text, user in pieces):
            return False
        own = sum(self._controls_in(text) for text, user in pieces if not user)
        return own == sum(map(self.control_ids.__contains__, ids))

    def _controls_in(self, text: str) -> int:
        """The number of control tokens in a text of the template, of which there are few."""
        if text not in self._own_controls:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._own_controls[text] = sum(map(self.control_ids.__contains__, ids))
        return self._own_controls[text]

    def _encode_row(self, pieces: Sequence[tuple[str, bool]]) -> tuple[int, ...]:
        encoded = self.tokenizer("".join(text for text, _ in pieces), add_special_tokens=False)
        ids = encoded["input_ids"]
        places = (j for j, token in enumerate(ids) if token in self.control_ids)
        apart = _in_user_text(pieces, [encoded.token_to_chars(j) for j in places])
        return self._encode_apart(pieces) if apart else tuple(ids)

    def _encode_apart(self, pieces: Sequence[tuple[str, bool]]) -> tuple[int, ...]:
        ids: list[int] = []
        for text, from_user in pieces:
            if not from_user:
                ids += self.tokenizer(text, add_special_tokens=False)["input_ids"]
                continue
            plain = self.plain.encode(text, add_special_tokens=False).ids
            if self.control_ids.intersection(plain):
                raise TemplateError(
                    f"user text holds a control token: {text[:60]!r}",
                    why="it would end the prompt, the trace or the answer",
                    fix="remove the token from the row",
                )
            ids += plain
        return tuple(ids)

    def prompt_pieces(self, turns: Sequence[tuple[str, str]]) -> Pieces:
        """The chat template's text around the turns' texts, ending where the trace begins; earlier
        assistant turns without their reasoning.

        Raises TemplateError if the chat template refuses the turns.
        """
        b = self.boundary
        if not b.closes_by_text:
            think = (b.open_text.strip(), b.close_text)
            turns = [(r, answered(text, think) if r == "assistant" else text) for r, text in turns]
        if self.system_prompt is not None and turns[0][0] != "system":
            turns = [("system", self.system_prompt), *turns]
        try:
            return self._pieces(turns)
        except TemplateError:
            if turns[0][0] != "system" or len(turns) < 2:
                raise
        (_, system), (role, first), *rest = turns  # templates without a system turn
        return self._pieces([(role, f"{system}\n\n{first}"), *rest])

    def _pieces(self, turns: Sequence[tuple[str, str]]) -> Pieces:
        roles, texts = zip(*turns, strict=True)
        if roles not in self._frames:
            self._frames[roles] = make_frame(self.tokenizer, roles)
        return self._frames[roles].pieces(texts)

    def prompt_text(self, example: Example) -> str:
        """The prompt as text, ending where the trace begins."""
        return "".join(text for text, _ in self.prompt_pieces(example.prompt))

    def prompt_ids(self, example: Example) -> tuple[int, ...]:
        """The prompt in ids, ending where the trace begins."""
        return self.encode(self.prompt_pieces(example.prompt))

    def lost_start(self) -> str | None:
        """The token that the tokenizer puts before every text, where prompts do not begin with it
        because the chat template does not write it."""
        first = first_id(self.tokenizer)
        text = self.prompt_text(Example((("user", "?"),), "", row_id=0, line=0))
        prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return None if first is None or prompt[0] == first else decode(self.tokenizer, [first])

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """The answer in ids as it follows the boundary, with the end-of-turn token."""
        return self._answers([answer])[0]

    def _answers(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        b = self.boundary
        before, head = "", ()
        if b.closes_by_text:
            before, head = decode(self.tokenizer, b.close_ids), b.close_ids
        elif b.gap:  # behind the tag: alone, the gap may be other tokens
            before, head = b.close_text + b.gap, (*b.close_ids, *self.gap_ids)
        pieces = [((b.lead, False), (answer, True)) for answer in answers]
        joined = self._encode_rows([((before, False), *row) for row in pieces])
        return [
            (*(ids[len(head) :] if ids[: len(head)] == head else self.encode(row)), self.end_ids[0])
            for ids, row in zip(joined, pieces, strict=True)
        ]

    def groups(self, examples: Sequence[Example]) -> list[PromptGroup]:
        """The rows in token ids. Raises TemplateError if one of them cannot be encoded."""
        prompts = self._encode_rows([self.prompt_pieces(example.prompt) for example in examples])
        answers = iter(self._answers([text for e in examples for text in e.references]))
        return [
            PromptGroup(e, prompt, next(answers), others=tuple(islice(answers, len(e.others))))
            for e, prompt in zip(examples, prompts, strict=True)
        ]

    def group(self, example: Example) -> PromptGroup:
        """The row in token ids."""
        return self.groups([example])[0]

    # -- ids to text, and boundaries ---------------------------------------------------------------

    def answer_prompt(self, prompt: Sequence[int], trace: Sequence[int], closed: bool) -> list[int]:
        """Prompt, trace, tag and gap: the ids after which the answer begins."""
        tag = () if closed else self.boundary.close_ids
        return [*prompt, *trace, *tag, *self.gap_ids]

    def empty_trace(self) -> tuple[int, ...]:
        """The ids of a trace that closes at once."""
        return self.boundary.close_ids

    def stop_trace(self, ids: list[int]) -> str | None:
        """Returns "closed" after the closing tag, "ended" after an end-of-turn token, else None.

        Text that merely looks like the tag is not the tag, except in text mode, where the tag is
        text; there it counts only if it ends at the end of a token, which is where the cut is safe.
        """
        last = ids[-1]
        if last in self.end_ids:
            return "ended"
        if not self.boundary.closes_by_text:
            return "closed" if last == self.boundary.close_ids[0] else None
        tail = decode(self.tokenizer, ids[-2 * len(self.boundary.close_text) :])
        return "closed" if tail.endswith(self.boundary.close_text) else None

    def tag_length(self, ids: Sequence[int]) -> int:
        """How many of a closed trace's last tokens are its tag, which a model may write in other
        pieces than ours where the tag is text."""
        if not self.boundary.closes_by_text:
            return 1
        ends = (
            n
            for n in range(1, len(ids))
            if decode(self.tokenizer, ids[-n:]).endswith(self.boundary.close_text)
        )
        return next(ends, len(ids))

    def trace_lengths(self, traces: Traces) -> list[int]:
        """Tokens of each trace without its tag and without the decision to stop."""
        pairs = zip(traces.ids, traces.closed, strict=True)
        return [len(ids) - (self.tag_length(ids) if closed else 0) for ids, closed in pairs]

    def stop_answer(self, ids: list[int]) -> str | None:
        """Returns "ended" after an end-of-turn token, else None."""
        return "ended" if ids[-1] in self.end_ids else None

    def text(self, ids: Sequence[int]) -> str:
        """Ids as text for people, without end-of-turn tokens and closing tags."""
        b = self.boundary
        hidden = (*self.end_ids, *(() if b.closes_by_text else b.close_ids))
        text = decode(self.tokenizer, [i for i in ids if i not in hidden])
        return text.removesuffix(b.close_text) if b.closes_by_text else text

    def completion(self, ids: Sequence[int]) -> str:
        """Ids as text for reward functions: the closing tag stays, end-of-turn tokens do not."""
        return decode(self.tokenizer, [i for i in ids if i not in self.end_ids])

    @property
    def tags(self) -> tuple[str, ...]:
        """The texts that a trace or an answer in the right format does not hold."""
        b = self.boundary
        return tuple(filter(None, (b.open_text.strip(), b.close_text)))

    def is_empty(self, ids: Sequence[int]) -> bool:
        """Whether a trace holds nothing before what closed it."""
        if self.boundary.closes_by_text:
            return not self.text(ids).strip()
        return tuple(ids) in ((), self.boundary.close_ids)

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each id as text of its own."""
        return tuple(decode(self.tokenizer, [i]) for i in ids)


def _in_user_text(pieces: Sequence[tuple[str, bool]], spans: Sequence[Any]) -> bool:
    """Whether one of the ``spans`` in the joined text takes in some of the user's text; a control
    token may take in white space around it."""
    end = 0
    for text, from_user in pieces:
        start, end = end, end + len(text)
        left, right = end - len(text.lstrip()), start + len(text.rstrip())
        if from_user and any(begin < right and stop > left for begin, stop in spans):
            return True
    return False


# -- Building one ----------------------------------------------------------------------------------


def make_template(
    tokenizer: PreTrainedTokenizerBase,
    *,
    boundary: str = "auto",
    think: tuple[str, str] = ("<think>", "</think>"),
    boundary_text: str = "\nThe answer is",
    system_prompt: str | None = None,
    extra_end_ids: Sequence[int] = (),
    trained: bool = True,
) -> Template:
    """Chooses the boundary and writes it into the tokenizer: added tokens, opening chat template.

    ``trained`` says whether the think tokens that the tokenizer may have are known to the model
    (policy.py looks at their rows). ``auto`` takes an existing pair if it is trained, else adds
    ``think`` as new tokens. ``extra_end_ids`` end a turn besides the chat template's own token.

    Raises TemplateError for a tokenizer without an end token, a slow tokenizer, ``existing``
    without such tokens, or a text that this tokenizer cannot be cut at.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TemplateError(
            f"{type(tokenizer).__name__} is not a fast tokenizer",
            why="token offsets tell user text from control tokens",
            fix="save the tokenizer as tokenizer.json (AutoTokenizer with use_fast)",
        )
    if tokenizer.chat_template is None:
        first = first_id(tokenizer)
        bos = "{{- bos_token -}}" if first is not None and first == tokenizer.bos_token_id else ""
        tokenizer.chat_template = bos + PLAIN_CHAT_TEMPLATE
    ends = find_end_ids(tokenizer, extra_end_ids)
    if boundary == "text":
        made = text_boundary(tokenizer, boundary_text)
    else:
        made = token_boundary(tokenizer, boundary, think, trained)
        split_responses(tokenizer, think, [decode(tokenizer, [end]) for end in ends])
    return Template(tokenizer, made, ends, system_prompt)
