"""What separates prompt, trace and answer: chosen for a tokenizer and written into it.

The boundary is a pair of think tokens that the tokenizer has, a pair that is added to it, or a text
cut at a place where no vocabulary item can span it. template.py encodes rows with it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from native_reasoning.config.errors import TemplateError, warn
from native_reasoning.data.chat_template import render, unwrap, wrap


@dataclass(frozen=True)
class Boundary:
    """What opens and closes a trace.

    ``open_text`` ends the prompt ("" in text mode). ``close_ids`` are the closing tag's tokens, one
    in the token modes. ``gap`` is fixed white space after it, forwarded and never scored.
    ``lead`` is white space that belongs to the answer's first token (text mode).
    """

    mode: str
    open_text: str
    close_text: str
    close_ids: tuple[int, ...]
    gap: str = ""
    lead: str = ""

    @property
    def closes_by_text(self) -> bool:
        """Whether a trace closes when its text, not its last token, is the tag."""
        return self.mode == "text"

    def warn_of_servers(self) -> None:
        """Says what servers cannot do with a boundary that is text."""
        if self.closes_by_text:
            warn(
                f"the boundary is the text {self.close_text!r}: pipelines and servers return "
                "trace and answer as one text, and enable_thinking does nothing. Models for "
                "servers: --boundary auto"
            )


# -- Choosing one ----------------------------------------------------------------------------------


def existing_pair(tokenizer: PreTrainedTokenizerBase, think: tuple[str, str]) -> bool:
    """Whether both think texts are single tokens of the tokenizer."""
    vocabulary = tokenizer.get_vocab()
    return all(text in vocabulary for text in think)


def token_boundary(
    tokenizer: PreTrainedTokenizerFast, boundary: str, think: tuple[str, str], trained: bool
) -> Boundary:
    """The existing think tokens, or new ones; the chat template is made to open the trace, and to
    be what servers need (chat_template.py).

    A pair that the model knows (``trained``) is "existing" whether or not "new" was asked for.
    """
    exists = existing_pair(tokenizer, think)
    if boundary == "existing" and not exists:
        raise TemplateError(
            f"the tokenizer has no tokens {think[0]} and {think[1]}",
            why="boundary 'existing' needs them",
            fix="boundary auto adds them; think_open and think_close name others",
        )
    mode = "existing" if exists and (trained or boundary == "existing") else "new"
    known = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    for text in think:
        token = known.get(text, AddedToken(text, normalized=False))
        if text not in known or token.special:
            # else servers that skip special tokens would remove the tags from their output
            token.special = False
            tokenizer.add_tokens([token])  # type: ignore[list-item]
    space, gap = wrap(tokenizer, think)
    close = tokenizer.get_vocab()[think[1]]
    return Boundary(mode, think[0] + space, think[1], (close,), gap=gap)


def text_boundary(tokenizer: PreTrainedTokenizerFast, text: str) -> Boundary:
    """A text after which " answer" follows, if no token of the vocabulary spans the two. The chat
    template is the model's own."""
    tokenizer.chat_template = unwrap(tokenizer.get_chat_template())
    tokenizer.response_template = None
    cut = text[-1:] + " "
    spanning = [
        token for token in tokenizer.get_vocab() if cut in token.replace("Ġ", " ").replace("▁", " ")
    ]
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    # byte-level vocabularies write printable ASCII as it is, a newline as something else
    plain = text.isascii() and text[-1:].isprintable() and text == text.rstrip() != ""
    if not plain or spanning or decode(tokenizer, ids) != text:
        seen = f", such as {spanning[0]!r}" if spanning else ""
        raise TemplateError(
            f"boundary_text {text!r} cannot be cut safely{seen}",
            why="a token that spans the cut would make scored ids differ from sampled ids",
            fix="end it with a letter that no token has before a space, or use boundary auto",
        )
    return Boundary("text", "", text, ids, lead=" ")


# -- What a tokenizer knows ------------------------------------------------------------------------


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Ids as text, special tokens included."""
    return str(tokenizer.decode(list(ids)))


def control_ids(tokenizer: PreTrainedTokenizerFast, end_ids: Sequence[int]) -> frozenset[int]:
    """Added tokens that mean something: not runs of white space, not "unknown"."""
    added = tokenizer.added_tokens_decoder.items()
    control = {i for i, token in added if token.content.strip() and i != tokenizer.unk_token_id}
    return frozenset(control | {*end_ids})


def first_id(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The token that the tokenizer puts before every text; None where it puts none."""
    ids, plain = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    return None if ids[:1] == plain[:1] else ids[0]


def find_end_ids(tokenizer: PreTrainedTokenizerFast, extra: Sequence[int]) -> tuple[int, ...]:
    """The token that the chat template writes after an assistant turn, then EOS, then ``extra``."""
    mark = "\ue000"
    rendered = render(tokenizer, [("user", "?"), ("assistant", mark)], generate=False)
    _, found, tail = rendered.rpartition(mark)
    ids = tokenizer(tail if found else "", add_special_tokens=False)["input_ids"]
    ends = [i for i in ids[:1] if i in tokenizer.added_tokens_decoder]
    ends += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not ends:
        raise TemplateError(
            "the tokenizer has no end token",
            why="the answer's end is part of what is scored",
            fix="set tokenizer.eos_token, or a chat template that ends assistant turns",
        )
    return tuple(dict.fromkeys([*ends, *(i for i in extra if i < len(tokenizer))]))


def without_added_tokens(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer that recognises no added token."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"], state["post_processor"] = [], None
    return Tokenizer.from_str(json.dumps(state))
