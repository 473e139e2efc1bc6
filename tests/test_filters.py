"""RLPR's filter: its running mean by hand."""

import pytest
import torch

from native_reasoning.filters import StdFilter
from native_reasoning.types import Signal

CPU = torch.device("cpu")


def roll(one, *spreads):
    kept = [one.keeps(spread) for spread in spreads]
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
