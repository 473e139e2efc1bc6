"""What a column of a local file may hold. A check says what is wanted, or "" for a good value."""

import json
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], str]


def text(value: Any) -> str:
    """Text that is not blank."""
    return "" if isinstance(value, str) and value.strip() else "text that is not empty"


def option(value: Any) -> str:
    """A choice: text or a number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if number else text(value)


def index(value: Any) -> str:
    """One of mmlu's four choices by its place, as a number or as text."""
    good = str(value) in {"0", "1", "2", "3"} and isinstance(value, str | int)
    return "" if good else "0, 1, 2 or 3"


def passage(value: Any) -> str:
    """drop's passage and question."""
    good = isinstance(value, str) and "\nQuestion:" in value
    return "" if good else "text with a line that begins with Question:"


def accepted(value: Any) -> str:
    """drop's answers with | between them."""
    good = isinstance(value, str) and value.replace("|", "").strip()
    return "" if good else "answers with | between them"


def possible(value: Any) -> str:
    """popqa's answers."""
    good = (answers := answers_in(value)) and not any(option(a) for a in answers)
    return "" if good else "a list of answers that are not empty, or its JSON"


def answers_in(value: Any) -> list[Any]:
    """popqa's answers, a list or the JSON of one; [] for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    return value if isinstance(value, list) else []


def targets(value: Any) -> str:
    """truthfulqa's choices with their labels."""
    found = value if isinstance(value, dict) else {}
    choices, labels = found.get("choices"), found.get("labels")
    good = (
        isinstance(choices, list)
        and isinstance(labels, list)
        and len(choices) == len(labels)
        and not any(text(choice) for choice in choices)
        and all(label in (0, 1) for label in labels)
        and 1 in labels
    )
    return "" if good else "choices and as many labels, 0 or 1, with a 1 among them"


def boxed(value: Any) -> str:
    """A solution of math."""
    good = isinstance(value, str) and ("\\boxed" in value or "\\fbox" in value)
    return "" if good else "text with \\boxed{…}"


def integer(value: Any) -> str:
    """A whole number."""
    return "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"


def names(value: Any) -> str:
    """A list of names."""
    good = isinstance(value, list) and value and not any(text(v) for v in value)
    return "" if good else "a list of names"


def settings(value: Any) -> str:
    """ifeval's settings, one object for each instruction."""
    good = isinstance(value, list) and all(isinstance(v, dict) for v in value)
    return "" if good else "a list of objects"
