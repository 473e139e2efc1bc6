"""The simulation of docs/asynchrony.md against what can be said in closed form, and its page."""

import importlib.util
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.objective.losses import RATIOS
from native_reasoning.rollout.schedule import Schedule

ROOT = Path(__file__).parents[1]


def load(name: str):
    """A script of benchmarks/asynchrony as a module."""
    path = ROOT / "benchmarks" / "asynchrony" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"asynchrony_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


simulate = load("simulate")
A = simulate.Assumptions()
seconds = st.floats(0.1, 100)
stages = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=30)


# -- Schedules -------------------------------------------------------------------------------------


@given(seconds, seconds, st.integers(0, 3))
def test_without_variance_a_rollout_takes_what_the_formula_says(sample, train, lag):
    """The timeline grows by ``period`` a rollout: exactly so over a whole turn of the longest
    cycle."""
    run, turn = simulate.timeline([sample] * 200, [train] * 200, lag), lag + 1
    grown = run.training[100 + turn][1] - run.training[100][1]
    assert grown == pytest.approx(turn * simulate.period(sample, train, lag), rel=1e-9)


@given(stages)
def test_lag_0_is_one_after_the_other(both):
    run = simulate.timeline(*zip(*both, strict=True), 0)
    assert run.seconds == pytest.approx(sum(map(sum, both)))


@given(stages, st.integers(1, 3))
def test_overlap_is_between_its_longer_stage_and_no_overlap(both, lag):
    sample, train = zip(*both, strict=True)
    run = simulate.timeline(sample, train, lag)
    assert max(sum(sample), sum(train)) <= run.seconds * (1 + 1e-9)
    assert run.seconds <= simulate.timeline(sample, train, lag - 1).seconds * (1 + 1e-9)


@given(stages, st.integers(0, 3))
def test_every_rollout_is_sampled_whole_then_trained_on_and_never_staler_than_the_lag(both, lag):
    sample, train = zip(*both, strict=True)
    run = simulate.timeline(sample, train, lag)
    for spans, lengths in ((run.sampling, sample), (run.training, train)):
        assert [b - a for a, b in spans] == pytest.approx(list(lengths))
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    for n, (begin, _) in enumerate(run.training):
        assert run.sampling[n][1] <= begin
    for n, (begin, _) in enumerate(run.sampling[lag + 1 :], lag + 1):
        assert run.training[n - lag - 1][1] <= begin  # its weights are there


# -- Stages ----------------------------------------------------------------------------------------


def plain_seconds(lengths, a) -> float:
    """One GPU's sampling, token by token."""
    waiting, active, total = list(lengths), [], 0.0
    while waiting or active:
        while waiting and len(active) < a.at_once():
            active.append(waiting.pop(0))
        total += float(a.decoding(np.array(len(active))))
        active = [left - 1 for left in active if left > 1]
    return total


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 5), st.integers(1, 9))
def test_sampling_is_what_decoding_token_by_token_takes(seed, prompts, gpus, rows):
    a = replace(A, prompt=0, trace=12, limit=40, rows=rows, traces=3)
    lengths = simulate.draw(np.random.default_rng(seed), a, prompts)
    found = simulate.sampling_seconds(lengths, gpus, a)
    expected = [plain_seconds(lengths[gpu::gpus].ravel(), a) for gpu in range(gpus)]
    assert found == pytest.approx(expected)


def test_equal_traces_need_no_waiting():
    a = replace(A, spread=0)
    found = simulate.compare(a, 8, 4, 3, seed=0)
    lengths = simulate.draw(np.random.default_rng(0), a, 32)
    assert (lengths == 512).all()
    assert found["waiting_for_slowest"] == pytest.approx(0)
    # one step of 32 rows for each of 512 tokens, and four prompts' prefill
    prefill = 4 * 2 * a.parameters * a.prompt / (a.flops * a.efficiency)
    expected = 512 * float(a.decoding(np.array(32))) + prefill
    assert found["sampling"] == pytest.approx(expected)


def test_long_tails_take_longer_for_no_more_tokens():
    """Everybody waits for the slowest GPU, and each GPU for its longest trace, with few rows."""
    rng = np.random.default_rng(0)
    even, tailed = (simulate.draw(rng, replace(A, spread=x), 256) for x in (0.0, 1.0))
    assert tailed.sum() < even.sum()
    one, other = (simulate.sampling_seconds(lengths, 64, A) for lengths in (even, tailed))
    assert other.max() > 2 * one.max()
    assert one.max() == pytest.approx(one.mean())
    assert other.max() > 1.05 * other.mean()


def test_training_counts_every_token_once_and_a_prompt_is_not_divided():
    a = replace(A, spread=0, updates=2)
    lengths = simulate.draw(np.random.default_rng(0), a, 8)
    one, two, four, many = (simulate.training_seconds(lengths, g, a) for g in (1, 2, 4, 8))
    tokens = 8 * (300 + 8 * 512 + 9 * 415)
    assert one == pytest.approx(10 * a.parameters * tokens / (a.flops * a.efficiency))
    assert [two, four] == pytest.approx([one / 2, one / 4])
    assert many == pytest.approx(four)  # four prompts an update: the other GPUs have nothing to do
    assert simulate.training_seconds(lengths, 64, a) > four  # gradients cross nodes


def test_decoding_is_slowed_down_to_the_ratio_that_is_asked_for():
    lengths = simulate.draw(np.random.default_rng(0), A, 32)
    for ratio in (0.5, 4):
        a = simulate.at_ratio(A, ratio, 8, 4)
        sampled = simulate.sampling_seconds(lengths, 8, a).max()
        assert sampled / simulate.training_seconds(lengths, 8, a) == pytest.approx(ratio)


# -- What the ratio mends, and what it does not ----------------------------------------------------


def gradient(kind: str, old: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    """The expected trace gradient at the new policy, of three one-token traces of ``old``."""
    new = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    wide = ObjectiveSettings(ratio_low=0.0, ratio_high=1e9)
    log_new, log_old = torch.log_softmax(new, 0), torch.log_softmax(old, 0)
    terms = RATIOS[kind](log_new, log_old, reward, wide)
    (found,) = torch.autograd.grad((log_old.exp() * terms).sum(), new)
    return found


def test_the_ratio_makes_the_expected_trace_gradient_that_of_the_new_policy():
    reward = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
    stale = torch.tensor([0.0, 0.4, -0.3], dtype=torch.float64)
    fresh = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    wanted = gradient("none", fresh, reward)
    for kind in ("ppo", "cispo"):
        assert torch.allclose(gradient(kind, stale, reward), wanted)
    assert not torch.allclose(gradient("none", stale, reward), wanted, atol=1e-2)


def test_late_rollouts_are_made_before_the_one_ahead_is_trained_on():
    """stale.py's wrapper: rollout n is made when n - 1 is asked for, each once, none too many."""
    schedule = Schedule(rows=40, prompts=2, seed=0, minibatches=4)
    collector = SimpleNamespace(args=SimpleNamespace(max_steps=20), schedule=schedule)
    asked: list[tuple[int, int]] = []  # rollout, updates done when it was made
    done = 0

    def make(self, plan, model, state):
        asked.append((plan.rollout, done))
        return plan.rollout

    made = load("stale").late(make)
    for done in range(0, 20, 4):
        assert made(collector, schedule.step(done), None, None) == done
    assert asked == [(0, 0), (4, 0), (8, 4), (12, 8), (16, 12)]


# -- The results and the page ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "benchmarks" / "asynchrony" / "results.json").read_text("utf-8"))


def test_the_results_are_of_these_assumptions(results):
    assert replace(A, **results["assumptions"]) == A
    first = dict(results["sizes"][len(simulate.SIZES)])
    assert (first["gpus"], first["prompts_per_gpu"]) == (8, 4)
    again = simulate.table(A, 8, 4, results["rollouts"], results["seeds"])
    assert again.pop("gain_range") == pytest.approx(first.pop("gain_range"))
    assert again == pytest.approx(first)


def test_the_page_has_the_results(results):
    text = (ROOT / "docs" / "asynchrony.md").read_text("utf-8")
    for told in load("table").tables(results):
        assert told in text, "python benchmarks/asynchrony/table.py prints it"
