r"""How right an answer is, and how sure we are of the average: pure functions of text and numbers.

``normalize``, ``exact_match`` and ``token_f1`` are those of the SQuAD 2.0 evaluation script
(Rajpurkar et al. 2018), with one difference: where SQuAD's normal form is empty ("A", "The", "+"),
so that every such answer would equal every other, ``exact_match`` compares what is left when less
is taken away. Multiple choice with the options A, B, C, D needs that.

Numbers are compared exactly, as fractions: 51.0 = 51, 3/4 = 0.75, and 0.33 is not 1/3.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from statistics import NormalDist

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

_MAX_DIGITS = 300
"""A longer numeral is a model that repeats itself, not a number."""

_NUMBER = re.compile(
    r"""
    (?<!\w)(?<!\w\.)(?<!\d/)              # not inside a word (B12), a version, a date
    (?P<sign>(?<![)\]}%])[-+−])?          # in "10-20" and "(1)-3" it is no sign
    [$€£¥]?
    (?P<inner_sign>(?<=[$€£¥])[-+−])?     # $-5
    (?:
        (?:(?P<whole>\d+)[ ])?(?P<top>\d+)/(?P<bottom>\d+)         # 3/4, 1 1/2
      | (?P<decimal>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\.)\.\d+)
        (?:[eE](?P<exponent>[-+]?\d{1,3}))?
        (?:\s*(?:[×x*]|\\times)\s*10\s*(?:\^|\*\*)\s*\{?(?P<power>[-+−]?\d{1,3}))?
    )
    (?!\d|[./]\d|[eE][-+]?\d)             # the whole numeral, and not 1.2.3 or 3/4/2020
    """,
    re.VERBOSE,
)
_FEW_WORDS = 5
_FRAC = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_CLOSERS = re.compile(r"[\s.,;:!?%°$€£¥)\]}*_\"'`\\]*")
_OPENERS = re.compile(r"[\s(\[{*\"'`$]*")
_JOINER = re.compile(
    r"(?:\b(?:is|are|was|were|equals|about|approximately)|(?<!\d):|[=≈~#]|\\boxed\{)[\s$(*]*",
    re.IGNORECASE,
)


def normalize(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no a/an/the, single spaces.

    >>> normalize("The  Eiffel Tower!")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _key(text: str) -> str:
    """What exact match compares: the normal form, or the nearest form to it that is not empty."""
    plain = " ".join(text.lower().split())
    return normalize(text) or " ".join(plain.translate(_NO_PUNCTUATION).split()) or plain


def exact_match(prediction: str, reference: str) -> float:
    """1.0 where both have the same normal form, else 0.0.

    >>> exact_match("the answer", "Answer."), exact_match("The", "A")
    (1.0, 0.0)
    """
    return float(_key(prediction) == _key(reference))


def token_f1(prediction: str, reference: str) -> float:
    """SQuAD 2.0's F1 over the words of the normal forms, in 0..1; two empty ones make 1.0.

    >>> round(token_f1("the big dog", "a dog"), 3)
    0.667
    """
    predicted, wanted = normalize(prediction).split(), normalize(reference).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    return 2.0 * shared / (len(predicted) + len(wanted))


def _prepare(text: str) -> str:
    r"""LaTeX that hides a number, in plain form: \frac{3}{4} and 1{,}234."""
    return _FRAC.sub(r"\1/\2", text).replace("{,}", ",")


def _value(found: re.Match[str]) -> Fraction | None:
    """The value of one numeral, or None for a division by zero and for an endless numeral."""
    part = found.groupdict()
    if len(found[0]) > _MAX_DIGITS:
        return None
    if part["decimal"]:
        value = Fraction(part["decimal"].replace(",", ""))
        for exponent in (part["exponent"], part["power"]):
            value *= Fraction(10) ** int((exponent or "0").replace("−", "-"))
    elif int(part["bottom"]) == 0:
        return None
    else:
        value = int(part["whole"] or 0) + Fraction(int(part["top"]), int(part["bottom"]))
    negative = (part["sign"] or part["inner_sign"] or "+") in "-−"
    return -value if negative else value


def _last_number(text: str) -> tuple[Fraction, re.Match[str]] | None:
    """The last numeral of a prepared text with its place."""
    for found in reversed(list(_NUMBER.finditer(text))):
        value = _value(found)
        if value is not None:
            return value, found
    return None


def numeric_match(prediction: str, reference: str) -> float | None:
    """1.0 where the prediction's last number equals the reference's last, else 0.0; None where the
    reference holds none.

    Read as numbers: 1,234 · $5.00 · -3 · 3/4 · 1 1/2 · 2e-3 · 3 × 10^4 · \\frac{3}{4} · 50% (50,
    not 0.5). Not read: digits inside a word (B12), dates, versions, and numbers in words. The
    comma groups thousands; "1.234,5" is not understood.

    >>> numeric_match("So it costs $1,234.00.", "1234"), numeric_match("seven", "no number")
    (1.0, None)
    """
    wanted = _last_number(_prepare(reference))
    if wanted is None:
        return None
    given = _last_number(_prepare(prediction))
    return float(given is not None and given[0] == wanted[0])


def _numeric_answer(reference: str) -> tuple[Fraction, str] | None:
    """The value and the unit of a reference that is a number; None where it is not (``accuracy``).

    The unit is normalised, and empty where nothing but punctuation follows the number.
    """
    text = _prepare(reference)
    last = _last_number(text)
    if last is None or len(text.split()) > 20:
        return None
    value, found = last
    before, after = text[: found.start()], text[found.end() :]
    alone = _OPENERS.fullmatch(before) is not None
    if _CLOSERS.fullmatch(after):
        joined = any(hit.end() == len(before) for hit in _JOINER.finditer(before))
        sentence = len(before.split()) >= 4 and before[-1].isspace() and not _NUMBER.search(before)
        return (value, "") if alone or joined or sentence else None
    unit = normalize(after)
    return (value, unit) if alone and unit and len(after.split()) <= 2 else None


def accuracy(prediction: str, reference: str) -> float:
    """The product's default correctness, 1.0 or 0.0: by number where the reference is one.

    A reference counts as a number where it has at most 20 words and its last number

    - stands alone, apart from punctuation, currency and percent signs: "$1,234.00", "(3/4)"; or
    - stands alone but for a unit of one or two words after it: "45 mg", "12 red apples"; or
    - ends it, right behind is/are/was/were/equals/about/approximately or ``: = ≈ ~ # \\boxed{``:
      "x = 5", "#### 12"; or
    - ends it as its only number, behind four or more words: "the last digit of their sum is 7 .".

    Then the prediction's last number must equal it; where the reference has a unit and words
    follow the prediction's number, these must begin with that unit ("5 g" is not "5 mg").
    Everything else ("Type 2 diabetes", "COVID-19", "Paris") is ``exact_match``.

    >>> accuracy("It is 12.", "12 apples"), accuracy("grade 2", "type 2"), accuracy("5 g", "5 mg")
    (1.0, 0.0, 0.0)
    """
    wanted = _numeric_answer(reference)
    if wanted is None:
        return exact_match(prediction, reference)
    text = _prepare(prediction)
    given = _last_number(text)
    if given is None or given[0] != wanted[0]:
        return 0.0
    rest, unit = normalize(text[given[1].end() :]).split(), wanted[1].split()
    return float(not unit or not rest or rest[: len(unit)] == unit)


def comparable(reference: str) -> bool:
    """Whether ``accuracy`` says something beside this reference: it is a number, or has at most
    five words. Hardly any answer matches a longer one word by word."""
    return _numeric_answer(reference) is not None or len(reference.split()) <= _FEW_WORDS


def majority(answers: Sequence[str]) -> str:
    """The answer most often given (maj@k), as first written; of several, the first seen.

    Answers are the same where they are the same number with the same unit (as in ``accuracy``),
    or have the same normal form (as in ``exact_match``). ``answers`` must not be empty.

    >>> majority(["6", "$1,234", "1234.0", "7"])
    '$1,234'
    """
    assert answers, "no answers to vote"
    keys = [_numeric_answer(answer) or _key(answer) for answer in answers]
    ((most, _),) = Counter(keys).most_common(1)  # of several the first
    return answers[keys.index(most)]


@dataclass(frozen=True)
class Interval:
    """A mean with its interval: ``low <= mean <= high`` in practice, over ``n`` values.

    All three are nan where n = 0.
    """

    mean: float
    low: float
    high: float
    n: int


def bootstrap_interval(
    values: Sequence[float | int] | np.ndarray,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979): the same seed gives the same interval.

    The values are drawn ``resamples`` times with replacement; ``low`` and ``high`` cut off
    (1 - ``confidence``)/2 of the resampled means on each side. A nan among the values makes all
    three nan.

    Equal values (0 of 20 right) resample to themselves, which is not certainty. Where the least and
    the largest possible value are given as ``bounds``, a share w = z²/(n + z²) of the mean may then
    lie anywhere between them: Wilson's limit (1927) for a share of which none of n was seen.

    >>> bootstrap_interval([0.0] * 20, bounds=(0, 1))
    Interval(mean=0.0, low=0.0, high=0.16112515805281932, n=20)
    """
    assert 0.0 < confidence < 1.0, confidence
    assert resamples > 0, resamples
    data = np.asarray(values, dtype=np.float64)
    assert data.ndim == 1, data.shape
    if data.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    if bounds is not None and data.min() == data.max():
        value, z = float(data[0]), NormalDist().inv_cdf((1.0 + confidence) / 2.0)
        unseen = z**2 / (data.size + z**2)
        low, high = (value + unseen * (bound - value) for bound in bounds)
        return Interval(value, low, high, int(data.size))
    generator = np.random.default_rng(seed)
    draws = (generator.integers(data.size, size=data.size) for _ in range(resamples))
    means = [data[drawn].mean() for drawn in draws]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, (tail, 1.0 - tail))
    return Interval(float(data.mean()), float(low), float(high), int(data.size))


def paired_interval(
    ours: np.ndarray,
    theirs: np.ndarray | None = None,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """The mean over seeds and questions of ``ours`` (S, Q), or of its difference to ``theirs``
    (S', Q) on the same questions, with a bootstrap interval over both.

    Questions, and each arm's seeds, are drawn anew and apart from each other: the pigeonhole
    bootstrap (Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1, 386-411), whose
    variance is somewhat too large where single answers are noise. Both arms have the same draw of
    questions, which pairs them. Of S seeds S - 1 are drawn, so that few seeds do not make the
    variance too small (Rao & Wu 1988); with one seed, the interval is about the questions alone,
    and with two or three it is rough. Differences that are all alike have the limits of
    ``bootstrap_interval`` within ``bounds``.

    >>> paired_interval(np.array([[1.0, 0.0, 1.0, 1.0]]), np.array([[0.0, 0.0, 1.0, 0.0]])).mean
    0.5
    """
    arms = [ours] if theirs is None else [ours, theirs]
    assert all(arm.ndim == 2 and arm.shape[1] == ours.shape[1] for arm in arms)
    means = [arm.mean(0) for arm in arms]
    values = means[0] - (0 if theirs is None else means[1])
    if not values.size or values.min() == values.max():
        return bootstrap_interval(values, confidence, bounds=bounds)
    questions = _shares(ours.shape[1], ours.shape[1], 0)
    drawn = [
        ((questions @ arm.T) * _shares(len(arm), max(len(arm) - 1, 1), place)).sum(1)
        for place, arm in enumerate(arms, start=1)
    ]
    tail = (1.0 - confidence) / 2.0
    resampled = drawn[0] if theirs is None else drawn[0] - drawn[1]
    low, high = np.quantile(resampled, (tail, 1.0 - tail))
    return Interval(float(values.mean()), float(low), float(high), int(values.size))


@cache
def _shares(among: int, draws: int, seed: int) -> np.ndarray:
    """(5000, among): which share of so many ``draws`` with replacement each of them has, drawn
    5,000 times."""
    generator = np.random.default_rng([seed, among])
    return generator.multinomial(draws, np.full(among, 1 / among), size=5000) / draws
