"""Which part of an answer is kept: a user's regular expression, with a time limit."""

import regex

from native_reasoning.config.errors import ConfigError
from native_reasoning.data.account import REASONS
from native_reasoning.data.shapes import BadRow

#: Rows on which a pattern runs out of time before reading is given up.
TIMEOUTS_ALLOWED = 10


class AnswerPattern:
    """A user's regular expression with a time limit per row.

    Raises ConfigError when the pattern is invalid.
    """

    def __init__(self, pattern: str, timeout: float = 1.0) -> None:
        self.timeout, self.timeouts = timeout, 0
        try:
            self.pattern = regex.compile(pattern)
        except regex.error as error:
            raise ConfigError(
                f"answer_regex {pattern!r} is not a regular expression: {error}",
                why="it says which part of the answer is kept",
                fix=r"correct it; for GSM8K it is '####\s*(.*)'",
            ) from None

    def extract(self, text: str) -> str:
        """Group 1 (or all) of the last match, stripped.

        Raises BadRow, and ConfigError when too many rows ran out of time.
        """
        group = 1 if self.pattern.groups else 0
        found = None
        try:
            for match in self.pattern.finditer(text, timeout=self.timeout):
                found = match
        except TimeoutError:
            self.timeouts += 1
            if self.timeouts >= TIMEOUTS_ALLOWED:
                raise self.too_slow() from None
            raise BadRow("regex_timeout", f"{self.timeout:g} s") from None
        if found is None or found.group(group) is None:
            raise BadRow("no_regex_match")
        answer = found.group(group).strip()
        if not answer:
            raise BadRow("empty_answer", "what --answer-regex takes is empty")
        return answer

    def too_slow(self) -> ConfigError:
        """The error for a pattern that ran out of time as often as it may."""
        return ConfigError(
            f"answer_regex {self.pattern.pattern!r} ran out of time ({self.timeout:g} s) "
            f"on {TIMEOUTS_ALLOWED} rows",
            why="at this pace reading the data would take longer than training",
            fix=REASONS["regex_timeout"].fix,
        )
