"""Every preset on answers of any length, hopeless probabilities, equal groups and bfloat16."""

import math
import time
from dataclasses import replace

import pytest
import torch

from groups_of_scores import full_scores
from native_reasoning.config.papers import PRESETS
from native_reasoning.objective.credit import Objective, preset_objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.types import Judgement


def check(objective, scores):
    scores = replace(scores, trace=scores.trace.clone().requires_grad_())
    scores = replace(scores, answer=scores.answer.clone().requires_grad_())
    signal = objective(scores)
    loss = group_loss(scores, signal, objective, mean_tokens=4.0).total()
    gradients = torch.autograd.grad(loss, (scores.trace, scores.answer), allow_unused=True)
    for tensor in (
        signal.rewards,
        signal.baseline_reward,
        signal.advantages,
        signal.answer_weights,
        loss,
        *(g for g in gradients if g is not None),
    ):
        assert tensor.isfinite().all()
    assert (signal.answer_weights >= 0).all()
    assert math.isfinite(signal.spread)
    return signal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 400, 4000])
@pytest.mark.parametrize("preset", PRESETS)
def test_any_answer_length_down_to_e_to_the_minus_100(preset, length, dtype):
    check(preset_objective(preset), full_scores(t=length, deep=100.0, dtype=dtype))


@pytest.mark.parametrize("value", [0.0, -1e-9, -1.0, -100.0])
@pytest.mark.parametrize("preset", PRESETS)
def test_groups_of_equal_traces(preset, value):
    group = full_scores()
    same = torch.full_like(group.answer, value)
    base = torch.full_like(group.baseline, value)
    every = torch.ones_like(group.closed)
    group = replace(
        group,
        answer=same,
        baseline=base,
        closed=every,
        trace_length=torch.full_like(group.trace_length, 2),
        answer_length=torch.full_like(group.answer_length, 3),
        verdict=replace(
            group.verdict,
            complete=every,
            correct=every,
            repetitive=~every,
            added=torch.zeros(len(every)),
        ),
        frozen=Judgement(base, trace=group.trace),
        ema=Judgement(base, answer=same),
    )
    signal = check(preset_objective(preset), group)
    if preset == "nover":  # its ranks never go quiet: ties are told apart by the order of sampling
        assert signal.advantages[0] > 1
        return
    exact = PRESETS[preset].settings.scale == "std"  # else the mean of equal numbers may be rounded
    assert signal.advantages.abs().max() <= (0 if exact else 1e-6)
    assert PRESETS[preset].settings.reward == "none" or signal.flat


@pytest.mark.parametrize("kind", ["all empty", "all truncated", "one trace", "all malformed"])
@pytest.mark.parametrize("preset", PRESETS)
def test_degenerate_groups(preset, kind):
    group = full_scores(k=1 if kind == "one trace" else 6)
    nothing = torch.zeros_like(group.closed)
    if kind == "all empty":
        group = replace(
            group,
            trace_length=torch.zeros_like(group.trace_length),
            answer=group.baseline.expand_as(group.answer),
        )
    elif kind == "all truncated":
        verdict = replace(group.verdict, complete=nothing)
        group = replace(group, closed=nothing, verdict=verdict)
    elif kind == "all malformed":
        group = replace(group, verdict=replace(group.verdict, complete=nothing))
    check(preset_objective(preset), group)


def test_underflow_is_counted_where_it_matters_and_nowhere_else():
    group = full_scores(t=400, deep=3.0)
    assert Objective(reward="prob", scale="none")(group).underflow == 1.0
    assert preset_objective("verifree")(group).underflow == 1.0
    relative = replace(group, verdict=None)
    assert Objective(reward="prob")(relative).underflow == 0.0  # relative to the best: exact
    assert preset_objective("nrt-p")(relative).advantages.abs().max() > 0
    assert preset_objective("avg-logp")(group).underflow == 0.0
    short = replace(full_scores(t=4, deep=3.0), verdict=None)
    assert Objective(reward="prob", scale="none")(short).underflow == 0.0


def test_objectives_of_a_demo_step_are_quick():
    """16 groups of 8 traces; a step of the demo takes 100 ms (benchmarks/objective/run.py)."""
    group = replace(full_scores(k=8, t=14, length=6), verdict=None)
    objective = preset_objective("nrt-ws")
    times = []
    for _ in range(20):
        began = time.process_time()
        signals = objective.of_groups([group] * 16)
        times.append(time.process_time() - began)
    assert len(signals) == 16
    assert min(times) < 0.003  # one group at a time takes 3 to 4 ms
