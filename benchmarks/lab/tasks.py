"""Procedural questions and answers in which only a token or two of the answer are hard.

A question is a lead word and five digits; the hard token of its answer is the last digit of their
sum. What stands around that digit, how it is said after a trace and without one, and what the
traces of pre-training look like, is the choice of a ``Family``. Two of them are the demo's::

    short_answer   add 4 8 3 1 7   ->   the last digit of their sum is 3 .
    style_shift    tell 4 8 3 1 7  ->   dear friend i am very happy to say that the answer is 3

Those of the experiments are in families.py. No held-out problem is in the training rows or in the
pre-training documents.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from native_reasoning.demo import DIGITS, draw, is_heldout, last, pool

Pairs = tuple[tuple[str, str], ...]
"""Easy words: at each place one of style A and one of style B."""

STYLES: Pairs = (
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
SHORT: Pairs = tuple((word, word) for word in ["the", "last", "digit", "of", "their", "sum", "is"])

CHATTER = (
    *("hmm", "well", "let", "me", "think", "now"),
    *("okay", "wait", "right", "maybe", "just", "look"),
)
EMPTY = 0.2
"""Share of pre-training documents without a trace."""

LONGEST = 128
"""Tokens that a model of one sum has positions for."""

OPEN, CLOSE, END = "<think>", "</think>", "<eos>"
COMMA = ","


@dataclass(frozen=True)
class Family:
    """One kind of question, answer and pre-training document.

    ``before`` and ``after`` are the easy words around each hard digit. Each is of style B with
    probability ``b_reference`` in a reference answer, ``b_plain`` in a document without a trace
    and ``b_thinking`` in one with a trace. A question has ``sums`` strings of digits, and its
    answer as many hard digits. ``useful`` is the share of documents whose trace is the running
    sum; documents have strings of ``lengths`` digits.
    ``by_chance``: the answer's digit has nothing to do with the question. ``unanswered`` is the
    share of documents that end inside their trace.
    """

    name: str
    lead: str
    before: Pairs = STYLES
    after: Pairs = ()
    sums: int = 1
    b_reference: float = 0.0
    b_plain: float = 0.0
    b_thinking: float = 0.0
    useful: float = 0.1
    lengths: tuple[int, ...] = (DIGITS,)
    by_chance: bool = False
    unanswered: float = 0.0

    @property
    def hard(self) -> tuple[int, ...]:
        """Places of the hard tokens in the answer, from 0."""
        sentence = len(self.before) + 1 + len(self.after)
        return tuple(i * sentence + len(self.before) for i in range(self.sums))

    @property
    def words(self) -> tuple[str, ...]:
        """The words of its questions and answers, digits apart; some stand there twice."""
        easy = self.before + self.after
        comma = (COMMA,) if self.sums > 1 else ()
        return (self.lead, *comma, *(a for a, _ in easy), *(b for _, b in easy))


DEMO = {
    "short_answer": Family("short_answer", "add", before=SHORT, after=((".", "."),)),
    "style_shift": Family("style_shift", "tell", b_thinking=0.3),
}
"""The families that the embedded base model knows."""


def make_rows(
    family: Family, split: str, n: int, seed: int, digits: int = DIGITS
) -> list[dict[str, str]]:
    """``n`` different question-answer pairs of one split; the keys are question and answer.

    The same arguments give the same rows on every machine, and for the demo's two families the
    rows of native_reasoning.demo.make_rows. ``digits`` is the length of each sum.
    """
    rng = random.Random(f"rows/{family.name}/{split}/{seed}")
    if family.sums == 1 and digits == DIGITS:
        return [_row(family, (string,)) for string in draw(rng, split, n)]
    chosen: dict[tuple[str, ...], None] = {}
    while len(chosen) < n:
        chosen[tuple(_string(rng, split, digits) for _ in range(family.sums))] = None
    return [_row(family, strings) for strings in chosen]


def documents(family: Family, n: int, seed: int | str) -> list[str]:
    """``n`` pre-training documents ``question <think> trace </think> answer <eos>``.

    ``seed`` is a number or a label. Only digit strings of the training split occur. A share
    ``useful`` of the traces is the running sum of the digits modulo 10; the others copy the
    digits, chatter, or are empty. The answer's digit is always the true one: after a running sum
    it can be read from the trace, and after anything else a model this small cannot compute it, so
    it guesses. Nothing false is taught; the base is near chance without a useful trace because it
    is small.

    In ``style_shift`` a document with an empty trace writes the twelve easy words in style A, as
    the reference answers do; a document with a trace writes each of them in style B with
    probability 0.3. So thinking costs likelihood on easy words before it helps on the hard one.
    """
    rng = random.Random(f"documents/{family.name}/{seed}")
    idle = (1 - EMPTY - family.useful) / 2
    shares = {"sum": family.useful, "copy": idle, "chatter": idle, "empty": EMPTY}
    texts = []
    for kind in rng.choices(tuple(shares), tuple(shares.values()), k=n):
        length = family.lengths[0] if len(family.lengths) == 1 else rng.choice(family.lengths)
        strings = [_string(rng, "train", length) for _ in range(family.sums)]
        trace = _trace(kind, strings, rng)
        head = [_question(family, strings), OPEN, *trace]
        if family.unanswered and rng.random() < family.unanswered:
            texts.append(" ".join([*head, END]))
            continue
        share = family.b_thinking if trace else family.b_plain
        texts.append(" ".join([*head, CLOSE, *_answer(family, strings, share, rng), END]))
    return texts


def running_sums(strings: Sequence[str]) -> list[str]:
    """The useful trace: for each string the running sum of its digits modulo 10.

    >>> running_sums(["483"])
    ['4', '2', '5']
    """
    return [last(s[: i + 1]) for s in strings for i in range(len(s))]


def digit_strings(question: str) -> list[str]:
    """The strings of digits of a question.

    >>> digit_strings("two 1 2 3 4 5 , 0 0 0 0 1")
    ['12345', '00001']
    """
    return "".join(question.split()[1:]).split(",")


def words(families: Sequence[Family] = tuple(DEMO.values())) -> list[str]:
    """Every word that questions, traces and answers are made of, each once, in a fixed order.

    Lead words come first, as they do in the embedded tokenizer.
    """
    leads = [family.lead for family in families]
    of_families = [word for family in families for word in family.words]
    return list(dict.fromkeys([*"0123456789", *leads, *of_families, *CHATTER]))


def _string(rng: random.Random, split: str, length: int) -> str:
    """A string of ``length`` digits of a split."""
    if length == DIGITS:
        return rng.choice(pool(split))
    while True:
        string = f"{rng.randrange(10**length):0{length}d}"
        if is_heldout(string) == (split == "heldout"):
            return string


def _row(family: Family, strings: Sequence[str]) -> dict[str, str]:
    rng = random.Random(f"answer/{family.name}/{','.join(strings)}")
    answer = _answer(family, strings, family.b_reference, rng)
    return {"question": _question(family, strings), "answer": " ".join(answer)}


def _question(family: Family, strings: Sequence[str]) -> str:
    return f"{family.lead} " + f" {COMMA} ".join(map(" ".join, strings))


def _answer(family: Family, strings: Sequence[str], share: float, rng: random.Random) -> list[str]:
    """The words of an answer; ``share`` is how often an easy one is of style B."""
    said = []
    for string in strings:
        digit = rng.choice("0123456789") if family.by_chance else last(string)
        said += [*_styled(family.before, share, rng), digit, *_styled(family.after, share, rng)]
    return said


def _styled(pairs: Pairs, share: float, rng: random.Random) -> list[str]:
    return [b if a != b and share and rng.random() < share else a for a, b in pairs]


def _trace(kind: str, strings: Sequence[str], rng: random.Random) -> list[str]:
    """The words of one trace; ``chatter`` has one to eight of them."""
    if kind == "sum":
        return running_sums(strings)
    if kind == "copy":
        return list("".join(strings))
    if kind == "chatter":
        return rng.choices(CHATTER, k=rng.randint(1, 8))
    return []
