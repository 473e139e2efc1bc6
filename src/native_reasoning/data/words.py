"""Byte-level BPE by chunks: the tokenizer's own ids, eight times sooner.

Such a tokenizer cuts a text into words by a regular expression and encodes each by itself. Most
words come again, so ids are kept: of chunks, which end only where all the known expressions cut,
whatever stands before and behind. A chunk that is new is encoded by the tokenizer.
"""

import json
import re
from array import array
from collections.abc import Set
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

_KEPT = 1 << 17
_LONGEST = 64

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
#: How a tokenizer cuts: GPT-2, SmolLM2, Llama 3, Qwen 2 and 3.
_KNOWN = (("bytes",), ("digits", "bytes"), (_LLAMA3, "plain bytes"), (_QWEN, "plain bytes"))

#: A chunk ends between two ASCII characters that are no white space: before a single space, behind
#: a single newline, or behind a letter that no other letter follows; or where the text ends.
_CHUNKS = re.compile(
    r" ?[A-Za-z]+(?=[!-@\[-`{-~]| [!-~]|\Z)"
    r"| ?[!-~]+(?:(?= [!-~])|\n(?=[!-~])|\Z)"
    r"|.+?(?:(?<=[!-~])(?= [!-~])|(?<=[!-~]\n)(?=[!-~])|\Z)",
    re.DOTALL,
).findall


class UnsafeWord(Exception):
    """A chunk that the model itself turns into a control token."""


class Words(dict[str, bytes]):
    """The ids of each chunk seen, as uint32 in the machine's order; a new one is encoded.

    ``plain`` is the tokenizer without its added tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, plain: Tokenizer, control_ids: Set[int]
    ) -> None:
        super().__init__()
        self.plain, self.control_ids = plain, control_ids
        added = tokenizer.added_tokens_decoder
        self.added = {token.content: i for i, token in added.items()}
        # a tokenizer looks for its added tokens in two passes, for the longest at each place
        passes = ([t.content for t in added.values() if t.normalized is n] for n in (False, True))
        self.cuts = [
            re.compile(f"({'|'.join(map(re.escape, sorted(texts, key=len, reverse=True)))})")
            for texts in passes
            if texts
        ]

    def __missing__(self, chunk: str) -> bytes:
        ids = self.plain.encode(chunk, add_special_tokens=False).ids
        if not self.control_ids.isdisjoint(ids):
            raise UnsafeWord(chunk)
        encoded = array("I", ids).tobytes()
        if len(chunk) <= _LONGEST:
            if len(self) >= _KEPT:
                self.clear()
            self[chunk] = encoded
        return encoded

    def encode(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """The ids of a text, and from where to where each control token among them stands.

        Raises UnsafeWord.
        """
        parts = [text]  # text, token, text, token, ..., text
        for cut in self.cuts:
            cuts = ([part] if i % 2 else cut.split(part) for i, part in enumerate(parts))
            parts = [piece for pieces in cuts for piece in pieces]
        found, controls, end = list[bytes](), list[tuple[int, int]](), 0
        for i, part in enumerate(parts):
            start, end = end, end + len(part)
            if i % 2 == 0:
                found += map(self.__getitem__, _CHUNKS(part))
                continue
            token = self.added[part]
            found.append(array("I", [token]).tobytes())
            if token in self.control_ids:
                controls.append((start, end))
        return tuple(array("I", b"".join(found))), controls


def make_words(
    tokenizer: PreTrainedTokenizerFast, plain: Tokenizer, control_ids: Set[int]
) -> Words | None:
    """The words of a tokenizer that cuts in a known way, else None."""
    added = tokenizer.added_tokens_decoder.values()
    backend = tokenizer.backend_tokenizer
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None
    if tokenizer.split_special_tokens or not isinstance(backend.model, BPE):
        return None
    normal = _state(backend.normalizer)
    if normal is not None and (normal != {"type": "NFC"} or any(t.normalized for t in added)):
        return None
    kinds = tuple(map(_kind, _steps(_state(backend.pre_tokenizer))))
    if backend.model.dropout or kinds not in _KNOWN:
        return None
    return Words(tokenizer, plain, control_ids)


def _state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as tokenizer.json has it."""
    return None if part is None else json.loads(part.__getstate__())


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    if step is None:
        return []
    return step["pretokenizers"] if step["type"] == "Sequence" else [step]


def _kind(step: dict[str, Any]) -> str:
    """A name for one step of cutting, "" for one that is not known."""
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return "bytes" if step.get("use_regex", True) else "plain bytes"
    if kind == "Digits" and step["individual_digits"]:
        return "digits"
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return step["pattern"].get("Regex", "")
    return ""
