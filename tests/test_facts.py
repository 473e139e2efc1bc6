"""Facts that follow from the objective, one test each, and the rule for flat groups.

Fact 8, on sampled answers, is in test_gradient.py: test_rewards_of_the_trace_alone_train_no_sampled
_answer and test_verified_rewards_are_verifree_on_average.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from lab_run import lab_trainer
from native_reasoning.model.forward import inference
from native_reasoning.objective.credit import Objective, preset_objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.types import Scores, Verdict

L = torch.tensor(
    [[-0.7, -0.1, -3.9], [-1.4, -0.5, -1.2], [-2.3, -0.05, -4.9], [-0.4, -4.6, -0.5]],
    dtype=torch.float64,
)
B = torch.tensor([-1.6, -0.2, -2.0], dtype=torch.float64)
FAMILY = (
    *("logp", "avg_logp", "prob", "geometric_mean", "arithmetic_mean"),
    *("weighted_inverse", "weighted_neglog"),
)


def scores(l=L, b=B, **parts):
    k = len(l)
    given = {
        "trace": torch.full((k, 2), -0.5, dtype=l.dtype),
        "trace_mask": torch.ones(k, 2, dtype=torch.bool),
        "forced_tag": torch.zeros(k, dtype=l.dtype),
        "closed": torch.ones(k, dtype=torch.bool),
        "rounding": 1e-12,
        **parts,
    }
    return Scores(answer=l, baseline=b, **given)


def advantages(l=L, b=B, **settings):
    return Objective(**settings)(scores(l, b)).advantages


@pytest.mark.parametrize("name", FAMILY)
def test_1_an_unclipped_baseline_and_under_std_any_affine_change_do_nothing(name):
    for settings in ({"scale": "std"}, {"scale": "none"}, {"centre": "leave_one_out"}):
        with_base = advantages(reward=name, clip="none", **settings)
        without = advantages(reward=name, clip="none", baseline="none", **settings)
        torch.testing.assert_close(with_base, without, rtol=1e-5, atol=1e-12)
    # R -> 7R + 3 through the settings that do it: a coefficient, and a reward that all traces get
    plain = advantages(reward=name, clip="none", baseline="none", std_eps=0.0)
    moved = Objective(
        reward=name, clip="none", baseline="none", std_eps=0.0, reward_coef=7.0, format_reward=3.0
    )(scores()).advantages
    torch.testing.assert_close(moved, plain, rtol=1e-8, atol=1e-12)
    clipped = advantages(reward=name, clip="relu", std_eps=0.0)
    assert not torch.allclose(clipped, plain, rtol=1e-3)  # the relu is what matters


def test_2_log_probability_and_its_mean_have_one_trace_term_and_different_answer_weights():
    one = Objective(reward="logp", clip="none", answer_weight="exact")(scores())
    mean = Objective(reward="avg_logp", clip="none", answer_weight="exact")(scores())
    geometric = Objective(reward="geometric_mean", clip="none", answer_weight="exact")(scores())
    torch.testing.assert_close(one.advantages, mean.advantages, rtol=1e-5, atol=1e-9)
    assert geometric.advantages.argsort().tolist() == mean.advantages.argsort().tolist()
    totals = [signal.answer_weights.sum(-1) for signal in (one, mean, geometric)]
    assert totals[0].tolist() == [3.0] * 4  # O(T)
    torch.testing.assert_close(totals[1], torch.ones(4, dtype=torch.float64))  # O(1)
    torch.testing.assert_close(totals[2], L.mean(-1).exp())


def test_3_answer_weights_are_not_centred_and_unscaled_mean_centring_gives_a_share():
    centred = {}
    for name in ("logp", "geometric_mean", "arithmetic_mean", "weighted_neglog"):
        w = Objective(reward=name, answer_weight="exact")(scores()).answer_weights
        assert (w > 0).all()
        centred[name] = w - w.mean(0)
    # what centring would do: nothing left, one sign per trace, negative on half or more
    assert centred["logp"].abs().max() == 0
    assert all(len(set(row.sign().tolist())) == 1 for row in centred["geometric_mean"])
    assert (centred["arithmetic_mean"] < 0).double().mean() >= 0.5
    assert (centred["weighted_neglog"] < 0).double().mean() >= 0.5
    plain = {"clip": "none", "scale": "none"}
    mean = advantages(reward="prob", centre="mean", **plain)
    out = advantages(reward="prob", centre="leave_one_out", **plain)
    torch.testing.assert_close(mean, out * 3 / 4)
    scaled = [advantages(reward="prob", centre=c) for c in ("mean", "leave_one_out")]
    torch.testing.assert_close(*scaled, rtol=1e-5, atol=1e-9)


def test_4_weight_one_leaves_the_ranking_of_traces_to_f_and_is_the_default():
    for name in FAMILY:
        one = Objective(reward=name)(scores())
        exact = Objective(reward=name, answer_weight="exact")(scores())
        assert one.answer_weights.tolist() == [[1.0] * 3] * 4
        assert torch.equal(one.advantages, exact.advantages)
    assert Objective().answer_weight == "one"


def test_5_zero_is_the_best_log_probability_without_the_relu_and_the_worst_with_it():
    verdict = Verdict(*(torch.tensor([True, True, True, False]) for _ in range(2)), torch.zeros(4))
    group = scores(verdict=verdict)
    free = Objective(reward="logp", clip="none", baseline="none", bad_format="zero")(group)
    assert free.advantages.argmax() == 3
    floor = Objective(reward="logp", bad_format="zero")(group)
    assert floor.advantages[3] == floor.advantages.min()


def test_6_without_the_relu_the_least_bad_trace_is_reinforced():
    worse = B - torch.tensor([[0.1], [0.5], [1.0], [2.0]], dtype=torch.float64)
    assert advantages(worse, reward="logp", clip="none")[0] > 0.5
    assert advantages(worse, reward="logp", clip="relu").tolist() == [0.0] * 4


def test_7_a_tag_that_was_forced_in_gets_the_format_loss_alone():
    tag = torch.tensor([-2.0, 0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    for name in ("nrt-ws", "jepo-1", "verifree", "sft-think"):
        objective = replace(preset_objective(name), beta=0.0)
        group = scores(forced_tag=tag, closed=torch.tensor([False, True, True, True]))
        terms = group_loss(group, objective(group), objective)
        (gradient,) = torch.autograd.grad(terms.total(), tag)
        assert gradient[0] == -objective.format_loss_coef


def test_9_answers_are_scored_at_temperature_one_and_traces_as_they_were_drawn(tmp_path):
    trainer = lab_trainer(tmp_path / "run", temperature=0.5, max_steps=1, learning_rate=0.0)
    trainer.train()
    (micro,) = trainer.collector.window.minibatches[0]
    group, traces = micro.groups[0], micro.traces[0]
    with inference(trainer.model):
        found = trainer.objective.scores(micro, trainer.model)[0]
        for k, (ids, closed) in enumerate(zip(traces.ids, traces.closed, strict=True)):
            before = trainer.template.answer_prompt(group.prompt_ids, ids, closed)
            logits = trainer.model(torch.tensor([[*before, *group.answer_ids]])).logits[0]
            logps = logits[len(before) - 1 : -1].log_softmax(-1)
            expected = logps.gather(-1, torch.tensor(group.answer_ids)[:, None])[:, 0]
            torch.testing.assert_close(found.answer[k], expected, rtol=1e-4, atol=1e-5)
            # the trace's own probability is that of the distribution it was drawn from
            at = len(group.prompt_ids) - 1
            cooled = (logits[at : at + len(ids)] / 0.5).log_softmax(-1)
            drawn = cooled.gather(-1, torch.tensor(ids)[:, None])[:, 0]
            torch.testing.assert_close(found.trace[k, : len(ids)], drawn, rtol=1e-4, atol=1e-5)


# -- Flat groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", ["none", "relu"])
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("rounding", [1e-5, 5e-3])
def test_flat_rule_for_identical_nearly_identical_and_one_winner_groups(name, clip, rounding):
    base = torch.full((8, 3), -0.5, dtype=torch.float64)
    b = torch.full((3,), -0.6, dtype=torch.float64)
    rule = Objective(reward=name, clip=clip)

    def of(l):
        return rule(scores(l, b, rounding=rounding))

    identical = of(base)
    assert identical.flat
    assert identical.advantages.abs().max() == 0
    nearly = base + 0.05 * rounding * torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    assert of(nearly).flat
    assert of(nearly).advantages.abs().max() == 0
    winner = torch.full((8, 3), -0.7, dtype=torch.float64)
    winner[2] = -0.5
    won = of(winner)
    assert not won.flat
    # one among eight: (1 − 1/8)/std, std of one 1 among eight = 1/√8
    assert won.advantages[2].item() == pytest.approx(7 / math.sqrt(8), rel=1e-3)
    # a winner by less than rounding wins nothing
    tiny = b.expand(8, 3).clone()
    tiny[2] += 0.02 * rounding
    assert of(tiny).flat


@pytest.mark.parametrize(("name", "rounding"), [("dro", 1e-5), ("dro@shared", 5e-3)])
def test_traces_that_say_what_the_empty_one_says_are_flat_for_reflection_too(name, rounding):
    torch.manual_seed(0)
    b = -3 * torch.rand(5, dtype=torch.float64)
    noise = 0.2 * rounding * torch.randn(6, 5, dtype=torch.float64)
    signal = preset_objective(name)(scores(b + noise, b, rounding=rounding))
    assert signal.flat
    assert signal.advantages.abs().max() == 0


def test_permuting_the_answer_leaves_the_traces_probability(tmp_path):
    """log π(z) is read before y*: whatever the answer is, it is the same."""
    trainer = lab_trainer(tmp_path / "run", preset="sft-think", max_steps=1, learning_rate=0.0)
    trainer.train()
    (micro,) = trainer.collector.window.minibatches[0]
    group, traces = micro.groups[0], micro.traces[0]
    found = []
    for answer in itertools.islice(itertools.permutations(group.answer_ids[:-1]), 0, 500, 125):
        other = type(group)(group.example, group.prompt_ids, (*answer, group.answer_ids[-1]))
        with inference(trainer.model):
            found.append(trainer.objective.scorer(trainer.model, [other], [traces])[0])
    assert len(found) == 4
    for one in found[1:]:
        torch.testing.assert_close(one.trace, found[0].trace, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(one.answer, found[0].answer)
