"""Where thinking pays, against numbers worked out by hand."""

import math

import pytest

from native_reasoning import load_run
from native_reasoning.report.gains import by_difficulty, by_place, by_token, late_tokens
from report_runs import made_run, trace_row


def run_of(folder, traces, **knobs):
    return load_run(made_run(folder / "run", traces=traces, **knobs))


def row(step=1, row_id=0, k=0, *, b, l, tokens=None):
    names = tokens or [f"t{i}" for i in range(len(b))]
    return trace_row(step, row_id, k, baseline_logps=b, answer_logps=l, answer_tokens=names)


def test_late_tokens_are_of_the_last_recorded_steps(tmp_path):
    run = run_of(tmp_path, [row(step, b=[-1.0], l=[-0.5]) for step in (1, 3, 4, 9)])
    assert list(late_tokens(run, 2)["step"]) == [4, 9]
    assert list(late_tokens(run)["step"]) == [1, 3, 4, 9]


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
    table = by_difficulty(run, late_tokens(run)).set_index("bin")
    assert list(table.index) == ["hard", "middle", "easy"]
    assert list(table["below"]) == [0.1, 0.5, math.inf]
    assert list(table["share"]) == pytest.approx([0.2, 0.4, 0.4])
    assert list(table["uplift"]) == pytest.approx([0.5, 0.3, -0.05], abs=1e-6)
    assert table["gain"]["hard"] == pytest.approx((0.1 + 0.2 + 0.6) / 3)  # the last three
    assert table["gain"]["easy"] == 0.25
    assert math.isnan(table["gain"]["middle"])


def test_a_bin_without_tokens_is_left_out(tmp_path):
    run = run_of(tmp_path, [row(b=[-0.1], l=[-0.1])])
    assert list(by_difficulty(run, late_tokens(run))["bin"]) == ["easy"]


def test_by_token(tmp_path):
    """Means of b = −1 and −3: e^−2; of l = −1 and −2: e^−1.5; so 0.5 nats. Four are too few."""
    rows = [
        row(row_id=i, b=[-1.0 - 2 * (i % 2), -0.5], l=[-1.0 - (i % 2), -0.75], tokens=["a", "b"])
        for i in range(6)
    ]
    rows += [row(row_id=9, k=k, b=[-1.0], l=[5.0], tokens=["rare"]) for k in range(4)]
    table = by_token(late_tokens(run_of(tmp_path, rows)))
    assert list(table["token"]) == ["a", "b"]
    assert list(table["times"]) == [6, 6]
    assert list(table["before"]) == pytest.approx([math.exp(-2), math.exp(-0.5)])
    assert list(table["after"]) == pytest.approx([math.exp(-1.5), math.exp(-0.75)])
    assert list(table["uplift"]) == pytest.approx([0.5, -0.25])


def test_tokens_that_gained_most_and_that_lost_most(tmp_path):
    """Ten gained 1, 2, … 10 and ten lost as much: the three at each end, largest first."""
    names = [f"{sign}{n}" for n in range(1, 11) for sign in "+-"]
    b = [-20.0] * 20
    l = [-20 + float(name) for name in names]
    rows = [row(row_id=i, b=b, l=l, tokens=names) for i in range(5)]
    table = by_token(late_tokens(run_of(tmp_path, rows)), most=3)
    assert list(table["token"]) == ["+10", "+9", "+8", "-8", "-9", "-10"]


def test_by_place(tmp_path):
    """20 tokens, two a tenth; and 5 tokens, which stand in tenths 1, 3, 5, 7, 9."""
    long = row(row_id=0, b=[-30.0] * 20, l=[-30.0 + i for i in range(20)])
    short = row(row_id=1, b=[-1.0] * 5, l=[99.0] * 5)
    table = by_place(late_tokens(run_of(tmp_path / "1", [long])))
    assert list(table["tenth"]) == list(range(1, 11))
    assert list(table["uplift"]) == pytest.approx([2 * i + 0.5 for i in range(10)])
    table = by_place(late_tokens(run_of(tmp_path / "2", [short])))
    assert list(table["tenth"]) == [1, 3, 5, 7, 9]
    both = by_place(late_tokens(run_of(tmp_path / "3", [long, short]))).set_index("tenth")
    assert both["uplift"][1] == pytest.approx((0 + 1 + 100) / 3)
    assert both["uplift"][2] == pytest.approx(2.5)


def test_a_question_that_comes_twice_in_a_step_is_not_one_long_answer(tmp_path):
    rows = [row(b=[-9.0] * 10, l=[-9.0 + i for i in range(10)])] * 2
    table = by_place(late_tokens(run_of(tmp_path, rows)))
    assert list(table["tenth"]) == list(range(1, 11))
    assert list(table["uplift"]) == pytest.approx(list(range(10)))


@pytest.mark.parametrize("steps", [0, 3])
def test_nothing_recorded(tmp_path, steps):
    run = run_of(tmp_path, [], steps=steps)
    tokens = late_tokens(run)
    assert tokens.empty
    assert by_difficulty(run, tokens).empty
    assert by_token(tokens).empty
    assert by_place(tokens).empty
