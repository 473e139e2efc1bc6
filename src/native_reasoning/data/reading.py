"""One raw row -> a usable one, by the settings of a source."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from native_reasoning.data.pattern import AnswerPattern
from native_reasoning.data.shapes import BadRow, Pair, Turns, read_row
from native_reasoning.data.sources import Row


@dataclass(frozen=True)
class Reading:
    """How rows are read; ``load_examples`` says what each setting does."""

    prompt_column: str | None = None
    answer_column: str | None = None
    answer_regex: str | None = None
    regex_timeout: float = 1.0
    keep_columns: bool = False

    def pattern(self) -> AnswerPattern | None:
        """The pattern, without any time-out so far. Raises ConfigError when it is invalid."""
        if self.answer_regex is None:
            return None
        return AnswerPattern(self.answer_regex, self.regex_timeout)

    def usable(self, row: Row, pattern: AnswerPattern | None) -> tuple[Pair, str]:
        """What a row holds, and its answer. Raises BadRow, and ConfigError as the pattern does."""
        if row.problem is not None:
            raise BadRow(*row.problem)
        pair = read_row(row.value, self.prompt_column, self.answer_column)
        return pair, pair.answer if pattern is None else pattern.extract(pair.answer)


def digest(prompt: Turns, answer: str = "") -> bytes:
    """A short fingerprint of the texts without surrounding white space."""
    texts = [[role, text.strip()] for role, text in prompt]
    return hashlib.blake2b(json.dumps([texts, answer]).encode(), digest_size=16).digest()


def unused(row: Any, pair: Pair) -> tuple[str, ...]:
    """The columns of a row that nothing was taken from."""
    used = {pair.prompt_column, pair.answer_column or "", *pair.prompt_column.split("+")}
    used = {column.casefold() for column in used | {column.split(".")[0] for column in used}}
    return tuple(str(column) for column in row if str(column).casefold() not in used)
