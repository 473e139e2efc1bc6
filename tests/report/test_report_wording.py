"""Words that became more or less frequent, against Monroe, Colaresi & Quinn (2008)."""

import math

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from native_reasoning import load_run
from native_reasoning.report.gains import PRIOR, changed_words, log_odds, words
from report_runs import made_run, trace_row


def paper(y_i, y_j, alpha_0):
    """Equations 16, 19 or 20 and 22 of the paper, word by word. The prior is that of its section
    3.5.1: alpha_0 words, spread as in both bodies of text together."""
    n_i, n_j = sum(y_i), sum(y_j)
    z = []
    for y_wi, y_wj in zip(y_i, y_j, strict=True):
        alpha_w = alpha_0 * (y_wi + y_wj) / (n_i + n_j)
        delta = math.log((y_wi + alpha_w) / (n_i + alpha_0 - y_wi - alpha_w)) - math.log(
            (y_wj + alpha_w) / (n_j + alpha_0 - y_wj - alpha_w)
        )
        variance = 1 / (y_wi + alpha_w) + 1 / (y_wj + alpha_w)
        z.append(delta / math.sqrt(variance))
    return z


COUNTS = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 5000)).filter(any), min_size=2, max_size=30
)


@settings(deadline=None)
@given(COUNTS)
def test_log_odds_are_those_of_the_paper(counts):
    after, before = np.array(counts, float).T
    if not after.any() or not before.any():
        return
    expected = paper(after.tolist(), before.tolist(), PRIOR)
    assert log_odds(after, before) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(COUNTS)
def test_exchanging_the_bodies_of_text_flips_the_sign(counts):
    after, before = np.array(counts, float).T
    assert log_odds(before, after) == pytest.approx(-log_odds(after, before), abs=1e-12)


def test_log_odds_by_hand():
    """Two words, 30 : 10 after and 10 : 30 before; prior 250 each: log (280/260) − log (260/280),
    in errors of √(1/280 + 1/260)."""
    z = 2 * math.log(280 / 260) / math.sqrt(1 / 280 + 1 / 260)
    found = log_odds(np.array([30.0, 10.0]), np.array([10.0, 30.0]))
    assert found == pytest.approx([z, -z])


def test_the_only_word_there_is_became_no_more_frequent():
    assert log_odds(np.array([5000.0]), np.array([100.0])).tolist() == [0.0]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("So 3+4 is SEVEN.", ["so", "3", "+", "4", "is", "seven", "."]),
        ("don't snake_case", ["don't", "snake_case"]),
        ("第3章", ["第", "3", "章"]),
        ("x是y的2倍", ["x", "是", "y", "的", "2", "倍"]),
        ("答えは五です", ["答", "えは", "五", "です"]),
        ("ラーメン", ["ラーメン"]),
        ("한국어 말", ["한국어", "말"]),
        ("ไทยดี", ["ไ", "ท", "ย", "ดี"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("שלום, עולם", ["שלום", ",", "עולם"]),
        ("cafe\u0301!", ["cafe\u0301", "!"]),
        ("👍🏽 ok 👩‍👩‍👧🇩🇪", ["👍🏽", "ok", "👩‍👩‍👧", "🇩🇪"]),
        ("<think>", ["<", "think", ">"]),
        ("a\x00b", ["a", "\x00", "b"]),
        (" \n\t\u3000", []),
        ("", []),
    ],
)
def test_words(text, pieces):
    assert words(text) == pieces


@settings(deadline=None)
@given(st.text())
def test_no_letter_is_lost_or_made_up(text):
    spaces = regex.compile(r"\s")
    assert spaces.sub("", "".join(words(text))) == spaces.sub("", text.lower())


def written(folder, texts):
    """What changed in a run with these traces, one a step."""
    rows = [trace_row(step, trace=text) for step, text in enumerate(texts, 1)]
    return changed_words(load_run(made_run(folder / "run", traces=rows)))


def test_first_against_last_tenth(tmp_path):
    """20 steps: the first two and the last two. 'then' goes from 100 of 200 words to 20, 'so' from
    none to 80, and 'and' stays; the steps between, full of other words, do not count."""
    first, last = ["then and " * 50] * 2, ["then " * 10 + "so " * 40 + "and " * 50] * 2
    table = written(tmp_path, [*first, *["noise " * 900] * 16, *last]).set_index("word")
    assert list(table.index) == ["so", "then"]
    assert list(table["first"]) == [0.0, 500.0]
    assert list(table["last"]) == [400.0, 100.0]
    z = paper([80, 20, 100], [0, 100, 100], 500)
    assert list(table["z"]) == pytest.approx(z[:2])


def test_words_that_did_not_change_by_two_errors_are_left_out(tmp_path):
    assert written(tmp_path, ["a b c d"] * 3 + ["a b c e"] * 3).empty


def test_most_words_at_each_end(tmp_path):
    """Word n grows from 1,000 to 1,000 + 100 n, its twin shrinks as much."""
    plus, minus = "abcdefgh", "ijklmnop"
    before = " ".join(f"{name} " * 1000 for name in plus + minus)
    grown = [f"{name} " * (1000 + 100 * n) for n, name in enumerate(plus, 1)]
    shrunk = [f"{name} " * (1000 - 100 * n) for n, name in enumerate(minus, 1)]
    rows = [trace_row(1, trace=before), trace_row(2, trace=" ".join(grown + shrunk))]
    run = load_run(made_run(tmp_path / "run", traces=rows))
    table = changed_words(run, most=3)
    assert list(table["word"]) == ["h", "g", "f", "n", "o", "p"]


@pytest.mark.parametrize("texts", [[], ["then and so"], ["then and so " * 90], ["", ""]])
def test_nothing_to_compare(tmp_path, texts):
    table = written(tmp_path, texts)
    assert table.empty
    assert list(table.columns) == ["word", "first", "last", "z"]


def test_two_steps_are_one_against_the_other(tmp_path):
    table = written(tmp_path, ["yes " * 200, "no " * 200])
    assert list(table["word"]) == ["no", "yes"]
    assert list(table["z"]) == pytest.approx(paper([200, 0], [0, 200], 500))
