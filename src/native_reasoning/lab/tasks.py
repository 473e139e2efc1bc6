"""Procedural questions and answers in which only one token of the answer is hard.

A question is a lead word and five digits; the hard token of its answer is the last digit of their
sum. Two families share the sums and differ in the easy tokens around that digit:

``short_answer``
    ``add 4 8 3 1 7`` -> ``the last digit of their sum is 3 .``
``style_shift``
    ``tell 4 8 3 1 7`` -> ``dear friend i am very happy to say that the answer is 3``

Every string of five digits belongs to exactly one split, by a hash of the string, so no choice of
seeds can put a held-out problem into the training rows or into the pre-training documents.
"""

import hashlib
import random
from functools import cache

from native_reasoning.errors import ConfigError

FAMILIES: tuple[str, ...] = ("short_answer", "style_shift")
SPLITS: tuple[str, ...] = ("train", "heldout")
DIGITS = 5
"""Digits in a question: 100,000 questions, about 90,000 of them in the training split."""

LEADS = {"short_answer": "add", "style_shift": "tell"}
SHORT_ANSWER = "the last digit of their sum is {digit} ."
STYLES = (
    ("dear", "hello"),
    ("friend", "pal"),
    ("i", "we"),
    ("am", "feel"),
    ("very", "so"),
    ("happy", "glad"),
    ("to", "and"),
    ("say", "report"),
    ("that", "how"),
    ("the", "our"),
    ("answer", "result"),
    ("is", "equals"),
)
"""The twelve easy words of ``style_shift``: at each place one of style A and one of style B."""

STYLE_A, STYLE_B = zip(*STYLES, strict=True)
STYLE_B_SHARE = 0.3
"""Chance of each of the twelve words to be in style B, in a document that has a trace."""

CHATTER = (
    *("hmm", "well", "let", "me", "think", "now"),
    *("okay", "wait", "right", "maybe", "just", "look"),
)
TRACE_KINDS = {"sum": 0.1, "copy": 0.35, "chatter": 0.35, "empty": 0.2}
"""What the traces of the pre-training documents are, and how often; only ``sum`` is useful."""

OPEN, CLOSE, END = "<think>", "</think>", "<eos>"


def make_rows(family: str, split: str, n: int, seed: int) -> list[dict[str, str]]:
    """``n`` different question-answer pairs of one split; the keys are question and answer.

    The same arguments give the same rows on every machine.

    >>> make_rows("short_answer", "train", 1, seed=0)
    [{'question': 'add 1 1 2 3 3', 'answer': 'the last digit of their sum is 0 .'}]
    """
    _check_family(family)
    pool = _split_strings(split)
    if not 0 <= n <= len(pool):
        raise ConfigError(
            f"{n} rows asked of split {split!r}, which has {len(pool)}",
            why="the rows of one set are all different",
            fix=f"ask for between 0 and {len(pool)} rows",
        )
    chosen = random.Random(f"rows/{family}/{split}/{seed}").sample(pool, n)
    return [{"question": _question(family, s), "answer": _answer(family, s)} for s in chosen]


def documents(family: str, n: int, seed: int | str) -> list[str]:
    """``n`` pre-training documents ``question <think> trace </think> answer <eos>``.

    ``seed`` is a number or a label. Only digit strings of the training split occur. One trace in
    ten is the running sum of the digits modulo 10; the others copy the digits, chatter, or are
    empty (``TRACE_KINDS``). The answer's digit is always the true one: after a running sum it can
    be read from the trace, and after anything else a model this small cannot compute it, so it
    guesses. Nothing false is taught; the base is near chance without a useful trace because it is
    small.

    In ``style_shift`` a document with an empty trace writes the twelve easy words in style A, as
    the reference answers do; a document with a trace writes each of them in style B with
    probability ``STYLE_B_SHARE``. So thinking costs likelihood on easy words before it helps on
    the hard one.
    """
    _check_family(family)
    rng = random.Random(f"documents/{family}/{seed}")
    pool = _split_strings("train")
    kinds, shares = tuple(TRACE_KINDS), tuple(TRACE_KINDS.values())
    texts = []
    for kind in rng.choices(kinds, shares, k=n):
        digits = rng.choice(pool)
        trace = _trace(kind, digits, rng)
        answer = _answer(family, digits)
        if family == "style_shift" and trace:
            answer = " ".join([*_mixed_style(rng), _sum_digit(digits)])
        texts.append(" ".join([_question(family, digits), OPEN, *trace, CLOSE, answer, END]))
    return texts


def final_digit(text: str) -> str | None:
    """The last digit in an answer's text, the hard token; None where there is no digit.

    >>> final_digit("the last digit of their sum is 3 .")
    '3'
    """
    return next((character for character in reversed(text) if character in "0123456789"), None)


def words() -> list[str]:
    """Every word that questions, traces and answers are made of, each once, in a fixed order."""
    digits = "0123456789"
    answers = [word for word in SHORT_ANSWER.split() if word != "{digit}"]
    return list(dict.fromkeys([*digits, *LEADS.values(), *answers, *STYLE_A, *STYLE_B, *CHATTER]))


def is_heldout(digits: str) -> bool:
    """Whether a digit string belongs to the held-out split: one string in ten, by its SHA-256."""
    return int.from_bytes(hashlib.sha256(digits.encode()).digest()[:8], "big") % 10 == 0


@cache
def _split_strings(split: str) -> tuple[str, ...]:
    """All digit strings of a split, in increasing order."""
    if split not in SPLITS:
        raise ConfigError(
            f"unknown split {split!r}",
            why="the lab has a training and a held-out split",
            fix=f"use one of {', '.join(SPLITS)}",
        )
    strings = (f"{number:0{DIGITS}d}" for number in range(10**DIGITS))
    return tuple(s for s in strings if is_heldout(s) == (split == "heldout"))


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        raise ConfigError(
            f"unknown family {family!r}",
            why="the lab makes rows of its own families only",
            fix=f"use one of {', '.join(FAMILIES)}",
        )


def _question(family: str, digits: str) -> str:
    return " ".join([LEADS[family], *digits])


def _answer(family: str, digits: str) -> str:
    """The reference answer: in ``style_shift`` all twelve easy words are of style A."""
    if family == "short_answer":
        return SHORT_ANSWER.format(digit=_sum_digit(digits))
    return " ".join([*STYLE_A, _sum_digit(digits)])


def _trace(kind: str, digits: str, rng: random.Random) -> list[str]:
    """The words of one trace; ``chatter`` has one to eight of them."""
    if kind == "sum":
        return [_sum_digit(digits[: i + 1]) for i in range(len(digits))]
    if kind == "copy":
        return list(digits)
    if kind == "chatter":
        return rng.choices(CHATTER, k=rng.randint(1, 8))
    return []


def _mixed_style(rng: random.Random) -> list[str]:
    return [b if rng.random() < STYLE_B_SHARE else a for a, b in STYLES]


def _sum_digit(digits: str) -> str:
    return str(sum(map(int, digits)) % 10)
