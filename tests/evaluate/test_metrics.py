"""The metrics against the published SQuAD definitions, hand-made cases, scipy, the normal law."""

import collections
import math
import re
import string
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from native_reasoning.data.rows import Example
from native_reasoning.evaluation.grading import (
    Interval,
    accuracy,
    bootstrap_interval,
    exact_match,
    majority,
    normalize,
    numeric_match,
    token_f1,
)

# ---- What of an answer is graded -----------------------------------------------------------------

RUN_ON = [
    ("54\n\nQuestion: Ann has 3 boxes", "54", 1),
    ("\n 54.\nThink: 7", "54", 1),
    ("The answer is 54\nQuestion: 7", "54", 1),
    ("541\n\nQuestion: what is 54?", "54", 0),
    ("5\n4\n54", "54", 0),
    ("54 boxes of 3", "54", 0),  # nothing says where the answer ends
    ("Paris\nParis", "Paris", 1),
    ("Lyon\nParis", "Paris", 0),
    ("12 km\n\nnorth\nQuestion", "12 km\nnorth", 1),
    ("12 km\nsouth\nnorth", "12 km\nnorth", 0),
    ("", "54", 0),
]


@pytest.mark.parametrize(("text", "reference", "right"), RUN_ON)
def test_of_an_answer_that_ran_on_as_many_lines_count_as_the_reference_has(text, reference, right):
    row = Example((("user", "?"),), reference, row_id=0, line=1)
    assert accuracy(row.graded(text, ended=False), reference) == right
    assert row.graded(f" {text}\n", ended=True) == text.strip()  # its own end is believed


def test_the_longest_reference_says_how_many_lines():
    row = Example((("user", "?"),), "54", row_id=0, line=1, others=("it is\n54",))
    assert row.graded("it is\n54\nQuestion", ended=False) == "it is\n54"


# ---- SQuAD, from the text of its definition: lower, punctuation, articles, white space -----------


def squad_normalize(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(prediction: str, gold: str) -> float:
    gold_words, words = squad_normalize(gold).split(), squad_normalize(prediction).split()
    if len(gold_words) == 0 or len(words) == 0:
        return float(gold_words == words)
    common = collections.Counter(gold_words) & collections.Counter(words)
    same = sum(common.values())
    if same == 0:
        return 0.0
    precision, recall = same / len(words), same / len(gold_words)
    return 2 * precision * recall / (precision + recall)


words = st.lists(
    st.sampled_from(["the", "A", "an", "cat", "Cat.", "dog", "x-ray", "xray", "É", "-", "theory"])
).map(" ".join)


@given(words | st.text())
def test_normalize_is_squads(text):
    assert normalize(text) == squad_normalize(text)


@given(words, words)
def test_token_f1_is_squads(prediction, reference):
    assert token_f1(prediction, reference) == pytest.approx(squad_f1(prediction, reference))
    assert token_f1(prediction, reference) == token_f1(reference, prediction)


@given(words | st.text(), words | st.text())
def test_exact_match_is_squads_where_the_normal_form_says_something(prediction, reference):
    mine, squad = (
        exact_match(prediction, reference),
        squad_normalize(prediction) == squad_normalize(reference),
    )
    if squad_normalize(reference):
        assert mine == squad
    else:
        assert mine <= squad  # the one difference: stricter, never looser


@pytest.mark.parametrize(
    ("prediction", "reference", "match", "f1"),
    [
        ("The Eiffel  Tower!", "eiffel tower", 1, 1),
        ("Eiffel", "Eiffel Tower", 0, 2 / 3),
        ("Denver Broncos", "Carolina Panthers", 0, 0),
        ("cat cat dog", "cat", 0, 0.5),
        ("", "", 1, 1),
        ("cat", "", 0, 0),
        ("", "cat", 0, 0),
        ("A.", "(a)", 1, 1),  # options of multiple choice
        ("The", "A", 0, 1),
        ("B", "A", 0, 0),
        ("+", "-", 0, 1),
        ("+", " + ", 1, 1),
    ],
)
def test_squad_by_hand(prediction, reference, match, f1):
    assert exact_match(prediction, reference) == match
    assert token_f1(prediction, reference) == pytest.approx(f1)


# ---- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234),
        ("1,234,567.5", 1234567.5),
        ("1{,}234", 1234),
        ("$5.00", 5),
        ("$1,000.", 1000),
        ("-$5", -5),
        ("$-5", -5),
        ("51.0", 51),
        ("-3", -3),
        ("−3", -3),
        ("+3", 3),
        ("x=-3", -3),
        ("3/4", 0.75),
        ("-3/4", -0.75),
        ("1 1/2", 1.5),
        (r"\frac{3}{4}", 0.75),
        (r"-\dfrac{1}{2}", -0.5),
        ("50%", 50),
        (r"50\%", 50),
        ("7.", 7),
        ("The answer is 7.", 7),
        ("first 3, then 4", 4),
        ("10-20", 20),
        ("10%-20%", 20),
        ("$10-$20", 20),
        ("(5)-3", 3),
        ("...7", 7),
        (".5", 0.5),
        ("**7**", 7),
        ("5mg", 5),
        ("2e-3", 0.002),
        ("3 × 10^4", 30000),
        (r"3\times 10^{-4}", 0.0003),
        ("2 * 10**−1", 0.2),
        ("1,2345", 2345),
        ("5/0 of 6", 6),
        ("6, not 5/0", 6),
    ],
)
def test_numbers_are_read(text, value):
    assert (
        numeric_match(text, str(Fraction(str(value)).limit_denominator(10**6).__float__())) == 1.0
    )
    assert numeric_match(text, text) == 1.0
    assert numeric_match(f"after 99, {text}", text) == 1.0
    assert numeric_match(text, "77777") == 0.0


@pytest.mark.parametrize(
    "text", ["seven", "", "B12", "v1.2.3", "1.2.3", "3/4/2020", "1e9999", "9" * 5000, "5/0", "nan"]
)
def test_no_number(text):
    assert numeric_match("7", text) is None
    assert numeric_match(text, "7") == 0.0


def test_exact_not_approximate():
    assert numeric_match("0.333", "1/3") == 0.0
    assert numeric_match("0.1", "0.10000000000000001") == 0.0


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
@example(0, 0)
def test_any_spelling_of_an_integer(number, zeros):
    plain = str(number)
    for spelling in (
        plain,
        f"{number:,}",
        plain + "." + "0" * (zeros + 1),
        f"{plain}/1",
        f"({plain}).",
    ):
        assert numeric_match(f"So the result is {spelling}", plain) == 1.0
        assert accuracy(spelling, plain) == 1.0
        assert numeric_match(spelling, str(number + 1)) == 0.0


@given(st.integers(-500, 500), st.integers(1, 500))
def test_fractions_equal_their_decimals(top, bottom):
    assert numeric_match(f"{top}/{bottom}", f"{3 * top}/{3 * bottom}") == 1.0
    if 1000 % bottom == 0:
        assert numeric_match(f"{top}/{bottom}", str(top / bottom)) == 1.0


@given(st.text(alphabet="0123456789.,/-+%$e× ()*^ax", max_size=60), st.text(max_size=30))
def test_no_text_crashes(first, second):
    for text, other in ((first, second), (second, first), (first, first)):
        assert accuracy(text, other) in {0.0, 1.0}
        assert numeric_match(text, other) in {0.0, 1.0, None}
    assert accuracy(first, first) == accuracy(second, second) == 1.0
    assert majority([first, second, first]) == first


@pytest.mark.parametrize("unit", ["1", "1,111", "1 ", "1/", "1.", "-", " ", "$", ": ", "1 1/1"])
def test_long_repetitions_come_to_an_end(unit):
    text = unit * 100_000  # quadratic would be hours
    numeric_match(text, "5")
    accuracy(text, "5")
    accuracy("5", text)


# ---- accuracy -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("It is $1,234.00.", "1234", 1),
        ("1233", "1234", 0),
        ("none", "1234", 0),
        ("-3", "3", 0),  # SQuAD's normal form would call these equal
        ("15", "1.5", 0),
        ("0.75", "(3/4)", 1),
        ("The sum is 7.", "the last digit of their sum is 7 .", 1),
        ("7", "the last digit of their sum is 7 .", 1),
        ("8", "the last digit of their sum is 7 .", 0),
        ("so we obtain 7", "adding them all up we obtain 7", 1),
        ("5", "x = 5", 1),
        ("12", "#### 12", 1),
        ("5", r"$\boxed{5}$", 1),
        ("It is 12.", "12 apples", 1),
        ("12 apples in all", "12 apples", 1),
        ("12 pears", "12 apples", 0),
        ("5 g", "5 mg", 0),
        ("5mg", "5 mg", 1),
        ("2 months", "2 weeks", 0),
        ("grade 2 diabetes", "Type 2 diabetes", 0),
        ("type 2 diabetes.", "Type 2 diabetes", 1),
        ("grade 2", "type 2", 0),
        ("influenza 19", "COVID-19", 0),
        ("6:1", "3:1", 0),
        ("2 January 2020", "2 March 2020", 0),
        ("Paris.", "paris", 1),
        ("Paris", "Rome", 0),
        ("7", "a " * 30 + "b is 7", 0),  # long: not a number
        ("20", "the normal range lies between 10 and 20", 0),  # two numbers: not a number
    ],
)
def test_accuracy(prediction, reference, right):
    assert accuracy(prediction, reference) == right


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["Paris", "Rome", "the Paris!"], "Paris"),
        (["Rome", "Paris"], "Rome"),
        (["6", "$1,234", "1234.0", "7"], "$1,234"),
        (["-3", "3", "3.0"], "3"),
        (["A", "The", "a."], "A"),
        (["12 apples", "12 pears", "12 Apples"], "12 apples"),
        ([""], ""),
    ],
)
def test_majority(answers, winner):
    assert majority(answers) == winner


def test_majority_of_nothing_is_our_mistake():
    with pytest.raises(AssertionError):
        majority([])


# ---- bootstrap ----------------------------------------------------------------------------------


def test_bootstrap_agrees_with_the_normal_law_and_with_scipy():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    mine = bootstrap_interval(values, resamples=4000)
    error = values.std(ddof=1) / math.sqrt(400)
    assert mine.mean == pytest.approx(values.mean())
    assert mine.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert mine.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.15 * error)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    hits = 0
    for i in range(200):
        drawn = bootstrap_interval(generator.random(50) < 0.4, 0.9, resamples=300, seed=i)
        hits += drawn.low <= 0.4 <= drawn.high
    assert 165 <= hits <= 195  # 180 expected, standard deviation 4.2


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.integers(0, 5))
def test_bootstrap_is_seeded_ordered_and_within_the_values(values, seed):
    drawn = bootstrap_interval(values, resamples=50, seed=seed)
    assert drawn == bootstrap_interval(values, resamples=50, seed=seed)
    slack = 1e-9
    assert min(values) - slack <= drawn.low <= drawn.high <= max(values) + slack
    assert drawn.n == len(values)


def test_bootstrap_of_few():
    nothing = bootstrap_interval([])
    assert nothing.n == 0
    assert all(math.isnan(x) for x in (nothing.mean, nothing.low, nothing.high))
    assert bootstrap_interval([0.3]) == Interval(0.3, 0.3, 0.3, 1)
    assert math.isnan(bootstrap_interval([1.0, float("nan")]).mean)
    wide, narrow = (bootstrap_interval([0, 1, 1, 0, 1], confidence=c) for c in (0.99, 0.5))
    assert wide.high - wide.low > narrow.high - narrow.low


@pytest.mark.parametrize("right", [0, 20])
def test_equal_answers_are_not_certainty(right):
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(right, 20).proportion_ci(0.95, method="wilson")
    mine = bootstrap_interval([right / 20] * 20, bounds=(0, 1))
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))
    difference = bootstrap_interval([0] * 20, bounds=(-1, 1))  # right as often with as without
    wide = bootstrap_interval([0] * 20, bounds=(0, 1)).high
    assert (difference.low, difference.mean, difference.high) == pytest.approx((-wide, 0, wide))
