"""The embedded base model, its two tasks, and four methods on them (``nrt demo``), offline.

``make_rows`` makes questions and answers, ``run_demo`` (race) trains. ``base/`` is a Llama of
0.14 M parameters from benchmarks/lab/pretrain.py. Importing this package imports no torch.

In the answers one token is hard. A question is a lead word and five digits; the hard token of its
answer is the last digit of their sum. What stands around that digit is easy::

    short_answer   add 4 8 3 1 7   ->   the last digit of their sum is 3 .
    style_shift    tell 4 8 3 1 7  ->   dear friend i am very happy to say that the answer is 3

Every string of digits belongs to one split, by a hash of the string. No choice of seeds can put a
held-out problem into the training rows, or into the documents that the embedded base model was
pre-trained on (benchmarks/lab/tasks.py).
"""

import hashlib
import random
from functools import cache
from pathlib import Path

DIGITS = 5
"""Digits of a sum: 100,000 strings, about 90,000 of them in the training split."""

TASKS = {
    "short_answer": ("add", "the last digit of their sum is {} ."),
    "style_shift": ("tell", "dear friend i am very happy to say that the answer is {}"),
}
"""The lead word and the answer of each task. In ``style_shift`` the base model writes the easy
words in another style after a trace, so thinking costs likelihood before it helps."""


def make_rows(task: str, split: str, n: int, seed: int) -> list[dict[str, str]]:
    """``n`` different question-answer pairs of one split; the keys are question and answer.

    The same arguments give the same rows on every machine.

    >>> make_rows("short_answer", "train", 1, seed=0)
    [{'question': 'add 1 1 2 3 3', 'answer': 'the last digit of their sum is 0 .'}]
    """
    lead, answer = TASKS[task]
    chosen = draw(random.Random(f"rows/{task}/{split}/{seed}"), split, n)
    return [{"question": f"{lead} {' '.join(s)}", "answer": answer.format(last(s))} for s in chosen]


def draw(rng: random.Random, split: str, n: int) -> list[str]:
    """``n`` different digit strings of a split."""
    return rng.sample(pool(split), n)


@cache
def pool(split: str) -> tuple[str, ...]:
    """All strings of ``DIGITS`` digits of a split, in increasing order."""
    assert split in ("train", "heldout"), split
    numbers = (f"{number:0{DIGITS}d}" for number in range(10**DIGITS))
    return tuple(s for s in numbers if is_heldout(s) == (split == "heldout"))


def is_heldout(digits: str) -> bool:
    """Whether a digit string belongs to the held-out split: one string in ten, by its SHA-256."""
    return int.from_bytes(hashlib.sha256(digits.encode()).digest()[:8], "big") % 10 == 0


def last(digits: str) -> str:
    """The last digit of the sum.

    >>> last("48317")
    '3'
    """
    return str(sum(map(int, digits)) % 10)


def base_path() -> Path:
    """The folder of the embedded base model and its tokenizer: an ordinary Hugging Face folder."""
    return Path(__file__).parent / "base"
