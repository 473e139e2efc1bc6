"""Differences between arms: their interval against the same thing written out, and its coverage."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from native_reasoning.evaluation.grading import bootstrap_interval, paired_interval


def arms(seeds=3, questions=200, seed=0):
    """Right or wrong answers of two arms; questions are easy or hard for both."""
    random = np.random.default_rng(seed)
    easy = random.random(questions)
    return [(random.random((seeds, questions)) < easy**power).astype(float) for power in (1, 2)]


def written_out(ours, theirs, seed=1, resamples=4000):
    """Questions for both, two of three seeds for each: one loop."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        questions = random.integers(ours.shape[1], size=ours.shape[1])
        mine = random.integers(len(ours), size=len(ours) - 1)
        others = random.integers(len(theirs), size=len(theirs) - 1)
        found.append(
            np.mean([ours[s][questions] for s in mine])
            - np.mean([theirs[s][questions] for s in others])
        )
    return np.quantile(found, (0.025, 0.975))


def test_the_interval_is_that_of_a_loop_over_questions_and_seeds():
    ours, theirs = arms()
    found = paired_interval(ours, theirs)
    low, high = written_out(ours, theirs)
    assert found.mean == pytest.approx(ours.mean() - theirs.mean())
    assert found.n == 200
    assert found.low == pytest.approx(low, abs=0.006)  # draws of 4,000 and 5,000 differ by this
    assert found.high == pytest.approx(high, abs=0.006)
    assert found == paired_interval(ours, theirs)  # the same numbers each time


def test_with_one_seed_it_is_scipys_bootstrap_of_the_differences():
    ours, theirs = arms(seeds=1)
    found = paired_interval(ours, theirs)
    by_scipy = bootstrap(
        ((ours - theirs)[0],), np.mean, n_resamples=5000, method="percentile", random_state=0
    ).confidence_interval
    assert found.low == pytest.approx(by_scipy.low, abs=0.006)
    assert found.high == pytest.approx(by_scipy.high, abs=0.006)
    alone = paired_interval(ours)
    plain = bootstrap_interval(ours[0], resamples=5000)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high), abs=0.006)


def test_pairing_narrows_it_and_seeds_that_differ_widen_it():
    ours, theirs = arms(seeds=3)
    shared = np.linspace(-2, 2, 200)  # what makes a question easy for both
    paired = paired_interval(ours + shared, theirs + shared)
    shuffled = paired_interval(ours + shared, theirs + np.random.default_rng(0).permutation(shared))
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)
    apart = ours + np.array([[-0.3], [0.0], [0.3]])
    wide, narrow = paired_interval(apart, theirs), paired_interval(ours, theirs)
    assert wide.mean == pytest.approx(narrow.mean)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_an_interval_of_95_percent_holds_the_truth_about_that_often():
    """Five seeds that differ, 60 questions, 300 worlds: between 90 and 99 percent. With few seeds
    a percentile interval is a little short, and the noise that is counted twice makes up for it."""
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        easy = random.normal(size=60)
        gain = 0.5 + random.normal(size=60)
        ours, theirs = (
            (easy + own + random.normal(0, 0.2, (5, 1)) + random.normal(size=(5, 60)))
            for own in (gain, 0)
        )
        found = paired_interval(ours, theirs)
        hits += found.low <= 0.5 <= found.high
    assert 270 <= hits <= 297, hits


def test_answers_that_are_all_alike_are_no_certainty():
    same = np.ones((3, 20))
    found = paired_interval(same, same, bounds=(-1, 1))
    assert found.mean == 0
    assert -0.2 < found.low < 0 < found.high < 0.2
    assert paired_interval(same, bounds=(0, 1)).low < 1
    assert np.isnan(paired_interval(np.empty((2, 0)), np.empty((2, 0))).mean)
