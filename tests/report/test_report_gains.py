"""Where thinking pays, against numbers worked out by hand."""

import math

import pytest

from native_reasoning import load_run
from native_reasoning.report.gains import by_difficulty, by_place, by_token
from report_runs import made_run, trace_row


def run_of(folder, traces, **knobs):
    return load_run(made_run(folder / "run", traces=traces, **knobs))


def row(step=1, row_id=0, k=0, *, b, l, tokens=None):
    names = tokens or [f"t{i}" for i in range(len(b))]
    return trace_row(step, row_id, k, baseline_logps=b, answer_logps=l, answer_tokens=names)


def test_late_tokens_are_of_the_last_recorded_steps(tmp_path):
    run = run_of(tmp_path, [row(step, b=[-1.0], l=[-0.5]) for step in (1, 3, *range(5, 15))])
    assert list(run.late_tokens["step"]) == list(range(5, 15))
    assert run.late_tokens is run.late_tokens


def test_by_difficulty(tmp_path):
    """Probabilities 0.05 (hard), 0.1 and 0.4 (middle), 0.5 and 1 (easy); edges go upward."""
    b = [math.log(p) for p in (0.05, 0.1000001, 0.4, 0.5000001, 1.0)]
    gains = (0.5, 0.2, 0.4, -0.1, 0.0)
    l = [x + gain for x, gain in zip(b, gains, strict=True)]
    metrics = {
        "gain_hard": lambda step: {1: 9.0, 2: 0.1, 3: 0.2, 5: 0.6}.get(step),
        "gain_easy": lambda step: 0.25 if step == 5 else None,
    }
    run = run_of(tmp_path, [row(b=b, l=l)], steps=5, metrics=metrics)
    table = by_difficulty(run, run.late_tokens).set_index("bin")
    assert list(table.index) == ["hard", "middle", "easy"]
    assert list(table["below"]) == [0.1, 0.5, math.inf]
    assert list(table["share"]) == pytest.approx([0.2, 0.4, 0.4])
    assert list(table["uplift"]) == pytest.approx([0.5, 0.3, -0.05], abs=1e-6)
    assert table["gain"]["hard"] == pytest.approx((0.1 + 0.2 + 0.6) / 3)  # the last three
    assert table["gain"]["easy"] == 0.25
    assert math.isnan(table["gain"]["middle"])


def test_a_bin_without_tokens_is_left_out(tmp_path):
    run = run_of(tmp_path, [row(b=[-0.1], l=[-0.1])])
    assert list(by_difficulty(run, run.late_tokens)["bin"]) == ["easy"]


def test_by_token(tmp_path):
    """Means of b = −1 and −3: e^−2; of l = −1 and −2: e^−1.5; so 0.5 nats. Four are too few."""
    rows = [
        row(row_id=i, b=[-1.0 - 2 * (i % 2), -0.5], l=[-1.0 - (i % 2), -0.75], tokens=["a", "b"])
        for i in range(6)
    ]
    rows += [row(row_id=9, k=k, b=[-1.0], l=[5.0], tokens=["rare"]) for k in range(4)]
    table = by_token(run_of(tmp_path, rows).late_tokens)
    assert list(table["token"]) == ["a", "b"]
    assert list(table["times"]) == [6, 6]
    assert list(table["before"]) == pytest.approx([math.exp(-2), math.exp(-0.5)])
    assert list(table["after"]) == pytest.approx([math.exp(-1.5), math.exp(-0.75)])
    assert list(table["uplift"]) == pytest.approx([0.5, -0.25])


def test_traces_of_a_question_are_one_sight_of_its_tokens(tmp_path):
    """Of 'few' there are 32 traces at four places; of 'a' six places, the first with nine traces of
    l = −1 and the others with one of l = −2: the mean counts places, (−1 − 5 · 2) / 6."""
    rows = [
        row(row_id=i, k=k, b=[-3.0], l=[-1.0], tokens=["few"]) for i in range(4) for k in range(8)
    ]
    rows += [row(row_id=4, k=k, b=[-3.0], l=[-1.0], tokens=["a"]) for k in range(9)]
    rows += [row(row_id=i, b=[-3.0], l=[-2.0], tokens=["a"]) for i in range(5, 10)]
    (found,) = by_token(run_of(tmp_path, rows).late_tokens).to_dict("records")
    assert (found["token"], found["times"]) == ("a", 6)
    assert found["after"] == pytest.approx(math.exp(-11 / 6))
    assert found["uplift"] == pytest.approx(3 - 11 / 6)


def test_a_word_among_the_gains_is_left_out(tmp_path):
    metrics = {"gain_easy": [0.25, 0.75, "much"]}
    run = run_of(tmp_path, [row(b=[-0.1], l=[-0.1])], steps=3, metrics=metrics)
    assert by_difficulty(run, run.late_tokens)["gain"].tolist() == [0.5]


def test_tokens_that_gained_most_and_that_lost_most(tmp_path):
    """Ten gained 1, 2, … 10 and ten lost as much: the three at each end, largest first."""
    names = [f"{sign}{n}" for n in range(1, 11) for sign in "+-"]
    b = [-20.0] * 20
    l = [-20 + float(name) for name in names]
    rows = [row(row_id=i, b=b, l=l, tokens=names) for i in range(5)]
    table = by_token(run_of(tmp_path, rows).late_tokens, most=3)
    assert list(table["token"]) == ["+10", "+9", "+8", "-8", "-9", "-10"]


def test_by_place(tmp_path):
    """20 tokens, two a tenth; and 5 tokens, which stand in tenths 1, 3, 5, 7, 9."""
    long = row(row_id=0, b=[-30.0] * 20, l=[-30.0 + i for i in range(20)])
    short = row(row_id=1, b=[-1.0] * 5, l=[99.0] * 5)
    table = by_place(run_of(tmp_path / "1", [long]).late_tokens)
    assert list(table["tenth"]) == list(range(1, 11))
    assert list(table["uplift"]) == pytest.approx([2 * i + 0.5 for i in range(10)])
    table = by_place(run_of(tmp_path / "2", [short]).late_tokens)
    assert list(table["tenth"]) == [1, 3, 5, 7, 9]
    both = by_place(run_of(tmp_path / "3", [long, short]).late_tokens).set_index("tenth")
    assert both["uplift"][1] == pytest.approx((0 + 1 + 100) / 3)
    assert both["uplift"][2] == pytest.approx(2.5)


def test_a_question_that_comes_twice_in_a_step_is_not_one_long_answer(tmp_path):
    rows = [row(b=[-9.0] * 10, l=[-9.0 + i for i in range(10)])] * 2
    table = by_place(run_of(tmp_path, rows).late_tokens)
    assert list(table["tenth"]) == list(range(1, 11))
    assert list(table["uplift"]) == pytest.approx(list(range(10)))


@pytest.mark.parametrize("steps", [0, 3])
def test_nothing_recorded(tmp_path, steps):
    run = run_of(tmp_path, [], steps=steps)
    tokens = run.late_tokens
    assert tokens.empty
    assert by_difficulty(run, tokens).empty
    assert by_token(tokens).empty
    assert by_place(tokens).empty
