"""Byte-level BPE by whole words: the tokenizer's own ids for ASCII text, several times sooner.

A byte-level BPE cuts a text into words by a regular expression and encodes each word by itself, so
the ids of a word can be kept. In ASCII text the expression means the same here as there; any other
text, and any tokenizer that is not of ``_KNOWN`` kinds, is left to the tokenizer.
"""

import json
import re
from array import array
from collections.abc import Set
from typing import Any

from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

_KEPT = 1 << 17
_LONGEST = 64

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
_DIGITS = r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+"
_LLAMA3 = (
    r"'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{1,3}"
    r"| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SOURCE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: What a tokenizer cuts by, and the same for ASCII: GPT-2, SmolLM2, Llama 3, Qwen 2 and 3.
_KNOWN: dict[tuple[str, ...], str] = {
    ("bytes",): _GPT2,
    ("digits", "bytes"): _DIGITS,
    (_LLAMA3_SOURCE, "plain bytes"): _LLAMA3,
    (_LLAMA3_SOURCE.replace(r"\p{N}{1,3}", r"\p{N}"), "plain bytes"): _LLAMA3.replace(
        "[0-9]{1,3}", "[0-9]"
    ),
}


class UnsafeWord(Exception):
    """A word that the model itself turns into a control token."""


class Words(dict[str, bytes]):
    """The ids of each word seen, as uint32 in the machine's order; a new one is encoded."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, control_ids: Set[int], pattern: str
    ) -> None:
        super().__init__()
        self.backend, self.control_ids = tokenizer.backend_tokenizer, control_ids
        added = tokenizer.added_tokens_decoder
        self.controls = {token.content for i, token in added.items() if i in control_ids}
        for i, token in added.items():
            self[token.content] = array("I", [i]).tobytes()
        self.added = dict(self)
        longest_first = sorted(map(re.escape, self.added), key=len, reverse=True)
        self.cut = re.compile(f"({'|'.join(longest_first)})") if longest_first else None
        self.words = re.compile(pattern, re.ASCII).findall

    def __missing__(self, word: str) -> bytes:
        ids = self.backend.encode(word, add_special_tokens=False).ids
        if not self.control_ids.isdisjoint(ids):
            raise UnsafeWord(word)
        encoded = array("I", ids).tobytes()
        if len(word) <= _LONGEST:
            if len(self) >= _KEPT:
                self.clear()
                self.update(self.added)
            self[word] = encoded
        return encoded

    def encode(self, text: str) -> tuple[bytes, int]:
        """The ids of an ASCII text, and how many of them are control tokens.

        Raises UnsafeWord.
        """
        if self.cut is None:
            return b"".join(map(self.__getitem__, self.words(text))), 0
        parts, controls = self.cut.split(text), 0
        if len(parts) == 1:
            return b"".join(map(self.__getitem__, self.words(text))), 0
        found = []
        for i, part in enumerate(parts):
            if i % 2:
                controls += part in self.controls
                found.append(self.added[part])
            else:
                found.extend(map(self.__getitem__, self.words(part)))
        return b"".join(found), controls


def make_words(tokenizer: PreTrainedTokenizerFast, control_ids: Set[int]) -> Words | None:
    """The words of a tokenizer that cuts ASCII text in a known way, else None."""
    if array("I").itemsize != 4:
        return None
    added = tokenizer.added_tokens_decoder.values()
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, BPE) or backend.model.dropout:
        return None
    if _state(backend.normalizer) not in (None, {"type": "NFC"}):
        return None
    pattern = _KNOWN.get(tuple(map(_kind, _steps(_state(backend.pre_tokenizer)))))
    return None if pattern is None else Words(tokenizer, control_ids, pattern)


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
