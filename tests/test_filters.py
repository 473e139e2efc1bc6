"""RLPR's filter: its running mean by hand."""

import json

import pytest
import torch

from native_reasoning.objective.types import Signal
from native_reasoning.training.judging import DECAY, FIRST, LAST, StdFilter

CPU = torch.device("cpu")


def keeps(one, spread):
    zero = torch.zeros(2)
    return one.judge(Signal(zero, zero.sum(), zero, zero[:, None], spread=spread)).kept


def roll(one, *spreads):
    kept = [keeps(one, spread) for spread in spreads]
    one.close(CPU)
    return kept


def test_the_mean_begins_with_rollouts_6_to_10_and_acts_from_11():
    one = StdFilter(0.5)
    for i in range(1, 11):
        assert one.threshold is None
        assert roll(one, 0.0, 2.0 * i) == [True, True]  # a mean of i
    first = (6 + 7 + 8 + 9 + 10) / 5
    assert one.mean == pytest.approx(first)
    assert roll(one, 3.9, 4.0, 12.1) == [False, True, True]
    second = 0.99 * first + 0.01 * (3.9 + 4.0 + 12.1) / 3  # those left out count too
    assert one.mean == pytest.approx(second)
    assert roll(one, 0.5 * second - 1e-9, 0.5 * second) == [False, True]
    assert one.rollouts == 12


def test_order_and_state_do_not_matter():
    one, other = StdFilter(1.0), StdFilter(1.0)
    for i in range(12):
        roll(one, 1.0, 2.0 + i)
        roll(other, 2.0 + i, 1.0)
        again = StdFilter(1.0)
        again.restore(one.state())
        one = again
    assert one.mean == pytest.approx(other.mean)
    assert one.rollouts == other.rollouts == 12


def test_a_rollout_without_groups_counts_as_no_spread():
    one = StdFilter(0.5)
    roll(one)
    assert one.rollouts == 1


def test_a_signal_is_marked():
    one = StdFilter(0.5)
    one.mean = 1.0
    zero = torch.zeros(2)
    low, high = (Signal(zero, zero.sum(), zero, zero[:, None], spread=s) for s in (0.1, 0.9))
    assert not one.judge(low).kept
    assert one.judge(high) is high


#: The spreads of 13 rollouts' groups; their means are 1, 2, 3, …, 10, 20, 0, 5.
ROLLOUTS = [*([m - 0.5, m + 0.5] for m in range(1, 11)), [10.0, 20.0, 30.0], [0.0], [2.0, 8.0]]


def test_thirteen_rollouts_by_hand():
    assert (FIRST, LAST, DECAY) == (6, 10, 0.99)  # as in RLPR's released code
    one, means = StdFilter(0.5), []
    for spreads in ROLLOUTS:
        roll(one, *spreads)
        means.append(one.mean)
    eight = (6 + 7 + 8 + 9 + 10) / 5
    eleven = 0.99 * eight + 0.01 * 20
    twelve = 0.99 * eleven  # a mean of 0
    thirteen = 0.99 * twelve + 0.01 * 5
    assert means[:9] == [None] * 9
    assert means[9:] == pytest.approx([eight, eleven, twelve, thirteen])
    assert one.threshold == pytest.approx(0.5 * thirteen)
    assert one.rollouts == 13


@pytest.mark.parametrize("closed", range(13))
def test_a_filter_restored_from_a_checkpoint_goes_on_as_if_never_stopped(closed):
    """Checkpoints are JSON; the two go on apart."""
    whole, again = StdFilter(0.5), StdFilter(0.5)
    for spreads in ROLLOUTS[:closed]:
        roll(whole, *spreads)
    again.restore(json.loads(json.dumps(whole.state())))
    for spreads in [*ROLLOUTS[closed:], [3.0, 5.0]]:
        assert roll(whole, *spreads) == roll(again, *spreads)
        assert whole.state() == again.state()
    assert whole.mean is not None


def test_the_state_is_of_the_moment_it_was_taken():
    one, other = StdFilter(0.5), StdFilter(0.5)
    for spreads in ROLLOUTS[:7]:
        roll(one, *spreads)
    state = one.state()
    other.restore(state)
    roll(one, 8.0)
    assert state["first"] == [6.0, 7.0]
    assert other.state()["first"] == [6.0, 7.0]


def test_one_threshold_holds_for_a_whole_rollout_in_any_order():
    spreads = [3.9, 4.0, 100.0, 0.0, 4.1]
    for order in (spreads, spreads[::-1], sorted(spreads)):
        one = StdFilter(0.5)
        one.restore({"rollouts": 20, "mean": 8.0, "first": []})
        assert {s: keeps(one, s) for s in order} == {s: s >= 4.0 for s in spreads}
        one.close(CPU)
        assert one.mean == pytest.approx(0.99 * 8 + 0.01 * sum(spreads) / 5)


def test_an_empty_rollout_once_it_acts_has_a_mean_of_nothing():
    one = StdFilter(0.5)
    one.restore({"rollouts": 10, "mean": 8.0, "first": []})
    one.close(CPU)
    assert one.mean == pytest.approx(0.99 * 8)
    assert roll(one, 0.99 * 4 + 1e-9, 0.99 * 4 - 1e-9) == [True, False]


def test_a_coefficient_of_nothing_keeps_all():
    one = StdFilter(0.0)
    one.restore({"rollouts": 10, "mean": 8.0, "first": []})
    assert roll(one, 0.0) == [True]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_group_does_not_break_the_mean(broken):
    one = StdFilter(0.5)
    one.restore({"rollouts": 10, "mean": 8.0, "first": []})
    roll(one, 2.0, broken, 6.0)
    assert one.mean == pytest.approx(0.99 * 8 + 0.01 * 4)
