"""Rewards of a whole group, what is added to them, and the policies for a wrong format: by hand."""

import math
from dataclasses import replace

import pytest
import torch

from groups_of_scores import full_scores
from native_reasoning.config.settings import GROUP_REWARDS, TOKEN_REWARDS
from native_reasoning.objective.credit import Objective
from native_reasoning.objective.losses import group_loss, kl_k3
from native_reasoning.objective.rewards import (
    CENTRES,
    REWARDS,
    Group,
    efficiency,
    exact_match,
    jepo_weights,
    perplexity_rank,
    policy_mask,
    reflection,
    twice_mean,
)
from native_reasoning.objective.types import Judgement, Scores, Verdict


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def group(l, b=(-1.0, -1.0), length=None, complete=None, correct=None):
    k = len(l)
    b = tensor(b)
    return Group(
        l=tensor(l),
        b=b,
        clamped=b,
        length=torch.tensor(length or [5] * k),
        complete=torch.tensor([True] * k if complete is None else complete),
        correct=torch.tensor([False] * k if correct is None else correct),
    )


def close(got, expected):
    torch.testing.assert_close(got, tensor(expected), rtol=1e-9, atol=1e-12)


def test_the_table_holds_every_reward_and_says_which_have_weights():
    assert set(REWARDS) == {"none", *TOKEN_REWARDS, *GROUP_REWARDS}
    assert {name for name, reward in REWARDS.items() if reward.weights} == set(TOKEN_REWARDS)


# -- Rewards of a group ----------------------------------------------------------------------------


def test_reflection_weighs_tokens_by_how_much_they_react():
    # σ of (−1, −3) is 1, of (−2, −2) is 0: the first token alone counts
    worth, base = reflection(group([[-1.0, -2.0], [-3.0, -2.0]], b=(-2.0, -5.0)))
    close(worth, [-1.0, -3.0])
    close(base, -2.0)
    # σ = 1 and 3: weights 1/4 and 3/4
    worth, base = reflection(group([[-1.0, -1.0], [-3.0, -7.0]], b=(-2.0, -4.0)))
    close(worth, [-1.0, -3 / 4 - 3 * 7 / 4])
    close(base, -2 / 4 - 3 * 4 / 4)
    worth, base = reflection(group([[-1.0, -2.0]] * 3))
    close(worth, [0.0, 0.0, 0.0])  # nothing reacts
    close(base, 0.0)


def test_perplexity_rank_ranks_complete_traces_and_breaks_ties_by_order():
    one = group([[-1.0, -1.0], [-3.0, -3.0], [-1.0, -1.0], [-0.1, -0.1]])
    worth, _ = perplexity_rank(replace(one, complete=torch.tensor([True, True, True, False])))
    close(worth, [3 / 3, 1 / 3, 2 / 3, 0.0])
    worth, _ = perplexity_rank(replace(one, complete=torch.zeros(4, dtype=torch.bool)))
    close(worth, [0.0] * 4)


def test_longer_traces_divide_their_perplexity():
    # −2/(1 + log10 100) = −2/3 beats −1/(1 + log10 1) = −1
    worth, _ = perplexity_rank(group([[-2.0, -2.0], [-1.0, -1.0]], length=[100, 1]))
    close(worth, [1.0, 0.5])
    score, base = REWARDS["length_normalised"].score(group([[-2.0, -2.0]], length=[100]))
    close(score, [-2 / 3])
    assert base == -1
    score, _ = REWARDS["length_normalised"].score(group([[-2.0, -2.0]] * 2, length=[0, 1]))
    close(score, [-2.0, -2.0])


def test_efficiency_counts_traces_that_are_longer_and_worse():
    one = group([[-1.0, -1.0], [-3.0, -3.0], [-4.0, -4.0], [-9.0, -9.0]], length=[1, 2, 1, 1])
    close(efficiency(one), [1 / 3, 0.0, 0.0, 0.0])
    alone = replace(one, complete=torch.tensor([True, False, False, False]))
    close(efficiency(alone), [0.0] * 4)
    three = replace(one, complete=torch.tensor([True, True, False, True]))
    close(efficiency(three), [1 / 2, 0.0, 0.0, 0.0])


def test_exact_match_and_its_chance_without_a_trace():
    worth, base = exact_match(group([[-1.0, -1.0]] * 2, b=(-0.5, -1.5), correct=[True, False]))
    close(worth, [1.0, 0.0])
    assert base.item() == pytest.approx(math.exp(-2))


def test_jepo_weights_are_n_times_the_softmax_of_the_answers():
    l = [[-1.0, -1.0], [-1.0, -3.0], [-500.0, -500.0]]
    w = jepo_weights(tensor(l), tensor([-1.0, -1.0]))
    share = math.exp(-2) / (math.exp(-2) + math.exp(-4))
    close(w, [[3 * share] * 2, [3 * (1 - share)] * 2, [0.0] * 2])


def test_log_mean_exp_centring_by_hand_and_for_unequal_groups():
    s = tensor([-1.0, -2.0, -4.0])
    every = math.log(sum(math.exp(x) for x in s.tolist()) / 3)
    others = [
        math.log(sum(math.exp(x) for j, x in enumerate(s.tolist()) if j != k) / 2) for k in range(3)
    ]
    close(CENTRES["lme_loo"](s), [3 * (every - o) for o in others])
    far = CENTRES["lme_loo"](tensor([-3.0, -300.0]))
    close(far, [2 * (-3 - math.log(2) + 300), 2 * (-3 - math.log(2) + 3)])
    close(CENTRES["lme_loo"](tensor([-3.0])), [0.0])


def test_rank_centring_shares_ties_and_adds_up_to_nothing():
    close(CENTRES["rank"](tensor([5.0, 1.0, 3.0])), [0.5, -0.5, 0.0])
    close(CENTRES["rank"](tensor([2.0, 2.0, 9.0])), [-0.25, -0.25, 0.5])
    close(CENTRES["rank"](tensor([2.0, 2.0])), [0.0, 0.0])
    close(CENTRES["rank"](tensor([7.0])), [0.0])


# -- Additions and wrong formats -------------------------------------------------------------------


def scores(r=(-1.0, -2.0, -3.0, -6.0), complete=(True, True, True, False), **parts):
    """Answers of one token, so that logp is ``r``; the last trace is not in the right format."""
    k = len(r)
    verdict = Verdict(
        complete=torch.tensor(complete),
        correct=torch.tensor([True, False, False, False]),
        repetitive=torch.tensor([False, True, False, True]),
    )
    given = {
        "trace": torch.full((k, 3), -1.0, dtype=torch.float64),
        "trace_mask": torch.ones(k, 3, dtype=torch.bool),
        "forced_tag": torch.zeros(k, dtype=torch.float64),
        "closed": torch.tensor(complete),
        "verdict": verdict,
        "trace_length": torch.tensor([2] * k),
        "answer_length": torch.tensor([1, 1, 3, 1]),
        "rounding": 1e-12,
        **parts,
    }
    return Scores(answer=tensor(r)[:, None], baseline=tensor([-2.5]), **given)


def plain(**settings):
    """logp, uncentred, so that an advantage is the reward."""
    off = {"baseline": "none", "clip": "none", "centre": "none", "scale": "none"}
    return Objective(**{"reward": "logp", **off, **settings})


def test_each_addition_by_hand():
    close(plain(reward_coef=0.5)(scores()).advantages, [-0.5, -1.0, -1.5, -3.0])
    close(plain(format_reward=0.1)(scores()).advantages, [-0.9, -1.9, -2.9, -6.0])
    close(plain(repetition_penalty=1.0)(scores()).advantages, [-1.0, -3.0, -3.0, -7.0])
    zero = scores(r=(-1.0, 0.0, -3.0, -6.0))
    close(plain(repetition_penalty=1.0)(zero).advantages, [-1.0, 0.0, -3.0, -7.0])  # escapes it
    shorter = scores(trace_length=torch.tensor([1, 2, 2, 2]))
    # by length-normalised probability the first is best, and shorter than two that are complete
    close(plain(efficiency_reward=1.0)(shorter).advantages, [0.0, -2.0, -3.0, -6.0])
    added = replace(scores().verdict, added=tensor([1.0, 0.0, 0.0, 2.0]))
    close(plain()(scores(verdict=added)).advantages, [0.0, -2.0, -3.0, -4.0])
    close(plain()(scores(verdict=added)).rewards, [0.0, -2.0, -3.0, -4.0])


def test_additions_that_need_a_sampled_text_do_nothing_without_one():
    bare = scores(verdict=None, answer_length=None)
    close(plain(repetition_penalty=1.0)(bare).advantages, [-1.0, -2.0, -3.0, -6.0])
    close(plain(format_reward=1.0)(bare).advantages, [0.0, -1.0, -2.0, -6.0])  # closed is complete


def test_each_policy_for_a_wrong_format():
    weigh = {"answer_weight": "one"}
    splice = plain(bad_format="splice", **weigh)(scores())
    close(splice.advantages, [-1.0, -2.0, -3.0, -6.0])
    close(splice.answer_weights[:, 0], [1.0, 1.0, 1.0, 1.0])
    zero = plain(bad_format="zero", **weigh)(scores())
    close(zero.advantages, [-1.0, -2.0, -3.0, 0.0])
    close(zero.answer_weights[:, 0], [1.0, 1.0, 1.0, 0.0])
    mask = plain(bad_format="mask", centre="mean", **weigh)(scores())
    close(mask.advantages, [2.0, 1.0, 0.0, 0.0])  # it counts in the mean, and is not trained on
    close(mask.answer_weights[:, 0], [1.0, 1.0, 1.0, 0.0])
    twice = plain(bad_format="twice_mean", **weigh)(scores())
    close(twice.advantages, [-1.0, -2.0, -3.0, 2 * -3.0])
    close(twice.answer_weights[:, 0], [1.0, 1.0, 1.0, 1.0])
    # −10 for the last, less the mean of the others, added without a scale
    penalty = plain(bad_format="penalty", **weigh)(scores())
    close(penalty.advantages, [-1 + 10 / 3, -2 + 10 / 3, -3 + 10 / 3, -6 - 10.0])
    close(penalty.answer_weights[:, 0], [1.0, 1.0, 1.0, 0.0])
    clipped = plain(bad_format="penalty", adv_clip=1.0)(scores())
    close(clipped.advantages, [-1 + 1.0, -1 + 1.0, -1 + 1.0, -1 - 1.0])
    # with std: one of four, −10 → (−1, 1/3, 1/3, 1/3) of −10, by its own std of 2/3 of that
    scaled = plain(bad_format="penalty", scale="std", std_eps=0.0, centre="mean")(scores())
    r = [2.0, 1.0, 0.0, -3.0]
    std = math.sqrt(sum(x * x for x in r) / 3)
    expected = [x / std + f for x, f in zip(r, [0.5, 0.5, 0.5, -1.5], strict=True)]
    torch.testing.assert_close(scaled.advantages, tensor(expected), rtol=1e-5, atol=0)
    all_good = plain(bad_format="penalty", scale="std", std_eps=0.0, centre="mean")(
        scores(complete=(True,) * 4)
    )
    close(all_good.advantages, [x / std for x in r])


def test_twice_the_mean_is_of_all_rewards_as_they_were():
    close(twice_mean(tensor([-1.0, -3.0]), torch.tensor([True, False])), [-1.0, -4.0])


def test_the_divergence_is_part_of_f_and_the_relu_acts_on_both():
    """R = logp − β·log ratio, then relu(R − R_base): a trace that hurts is worth nothing."""
    one = scores(verdict=None, frozen=Judgement(tensor([-2.5]), trace=torch.full((4, 3), -2.0)))
    signal = plain(baseline="current", clip="relu", kl_in_reward=0.5)(one)  # a log ratio of 3
    close(signal.advantages, [-1 - 1.5 + 2.5, 0.0, 0.0, 0.0])
    late = plain(bad_format="twice_mean", kl_in_reward=0.5)(replace(scores(), frozen=one.frozen))
    close(late.advantages, [-2.5, -3.5, -4.5, 2 * -3.0 - 1.5])  # the mean is before the divergence


def test_traces_masked_for_their_format_have_no_kl_either():
    one = replace(scores(), frozen=Judgement(tensor([-2.5]), trace=torch.full((4, 3), -2.0)))
    objective = plain(bad_format="mask", beta=1.0, answer_weight="none", format_loss_coef=0.0)
    terms = group_loss(one, objective(one), objective)
    assert terms.kl.item() == pytest.approx(3 * 3 * (math.exp(-1) + 1 - 1))


# -- KL, tokens and lengths ------------------------------------------------------------------------


def test_policy_tokens():
    one = scores(trace_mask=torch.tensor([[True, True, True]] * 3 + [[True, True, False]]))
    assert policy_mask(one, "trace_tag").sum(-1).tolist() == [3, 3, 3, 2]
    assert policy_mask(one, "trace").sum(-1).tolist() == [2, 2, 2, 2]


def test_k3_is_nonnegative_right_near_zero_and_finite_far_away():
    new = tensor([-1.0, -1.0, -1.0, -200.0]).requires_grad_()
    reference = tensor([-1.0, -2.0, -0.5, -1.0])
    kl = kl_k3(new, reference)
    close(kl[:3].detach(), [0.0, math.exp(-1) + 1 - 1, math.exp(0.5) - 0.5 - 1])
    assert kl.isfinite().all()
    assert (kl >= 0).all()
    (gradient,) = torch.autograd.grad(kl.sum(), new)
    close(gradient[:3], [0.0, 1 - math.exp(-1), 1 - math.exp(0.5)])
    assert gradient[3] < -1e8  # it still pulls the token back up


@pytest.mark.parametrize("norm", ["token_sum", "token_mean", "sequence_mean"])
def test_length_norms_divide_the_trace_term_and_the_kl_alike(norm):
    one = full_scores(dtype=torch.float64)
    objective = Objective(length_norm=norm, beta=0.5, reward="logp", clip="none", centre="none")
    objective = replace(objective, scale="none", format_loss_coef=0.0, answer_weight="none")
    one = replace(one, verdict=None)
    terms = group_loss(one, objective(one), objective, mean_tokens=4.0)
    a = objective(one).advantages
    trace = kl = 0.0
    for k in range(len(a)):
        tokens = [t for t in range(one.trace.shape[1]) if one.trace_mask[k, t]]
        divisor = {"token_sum": 1, "token_mean": 4.0, "sequence_mean": len(tokens)}[norm]
        for t in tokens:
            new, old = one.trace[k, t].item(), one.frozen.trace[k, t].item()
            trace -= a[k].item() * new / divisor
            kl += 0.5 * (math.exp(old - new) - (old - new) - 1) / divisor
    assert terms.trace.item() == pytest.approx(trace, rel=1e-9)
    assert terms.kl.item() == pytest.approx(kl, rel=1e-9)
    assert terms.total().item() == pytest.approx(trace + kl, rel=1e-9)


def test_a_group_that_is_not_kept_has_no_loss_and_no_gradient():
    one = full_scores(dtype=torch.float64)
    trace = one.trace.clone().requires_grad_()
    one = replace(one, trace=trace)
    objective = Objective(beta=0.1, length_norm="sequence_mean")
    signal = replace(objective(one), kept=False)
    total = group_loss(one, signal, objective).total()
    assert total.item() == 0
    assert torch.autograd.grad(total, trace)[0].abs().max() == 0


# -- Answer weights --------------------------------------------------------------------------------


def test_the_reward_span_leaves_out_the_end_token_in_reward_and_weights():
    l = tensor([[-1.0, -2.0, -9.0], [-0.5, -1.0, -8.0]])
    one = Scores(
        trace=torch.zeros(2, 1),
        trace_mask=torch.ones(2, 1, dtype=torch.bool),
        answer=l,
        baseline=tensor([-1.0, -1.0, -1.0]),
        forced_tag=torch.zeros(2),
        closed=torch.ones(2, dtype=torch.bool),
    )
    objective = plain(reward_span="answer", answer_weight="exact")
    close(objective(one).rewards, [-3.0, -1.5])
    close(objective(one).baseline_reward, -2.0)
    close(objective(one).answer_weights, [[1.0, 1.0, 0.0]] * 2)
    single = replace(one, answer=l[:, :1], baseline=one.baseline[:1])
    close(objective(single).rewards, [-1.0, -0.5])  # nothing else is left to look at


@pytest.mark.parametrize("baseline", ["current", "frozen", "ema"])
def test_the_baseline_is_the_one_that_is_named(baseline):
    one = full_scores(dtype=torch.float64)
    one = replace(one, verdict=None)
    base = {"current": one, "frozen": one.frozen, "ema": one.ema}[baseline].baseline
    signal = Objective(reward="arithmetic_mean", baseline=baseline)(one)
    assert signal.baseline_reward.item() == pytest.approx(base.exp().mean().item())
    weighted = Objective(reward="weighted_neglog", baseline=baseline)(one)
    expected = (one.answer.exp() * -base).mean(-1)
    torch.testing.assert_close(weighted.rewards, expected, rtol=1e-9, atol=0)


def test_a_lagging_copy_may_score_in_place_of_the_policy():
    one = replace(full_scores(dtype=torch.float64), verdict=None)
    signal = plain(scored_by="ema")(one)
    close(signal.rewards, one.ema.answer.sum(-1).tolist())


def test_supervised_objective_without_answer_weight_trains_nothing():
    one = replace(full_scores(), verdict=None)
    signal = Objective(reward="none", answer_weight="none")(one)
    assert signal.answer_weights.abs().max() == 0
    assert signal.advantages.abs().max() == 0


def test_rewards_of_ones_own_are_enough():
    """reward none with reward functions is plain GRPO."""
    one = full_scores(k=4, dtype=torch.float64)
    added = tensor([1.0, 0.0, 0.0, 0.0])
    one = replace(one, verdict=replace(one.verdict, added=added))
    signal = Objective(reward="none", clip="none", std_eps=1e-4)(one)
    close(signal.advantages, [(x - 0.25) / (0.5 + 1e-4) for x in added.tolist()])
    assert signal.answer_weights.tolist() == torch.ones(4, 4).tolist()


@pytest.mark.parametrize("policy", ["mask", "zero", "penalty"])
def test_supervised_answers_after_a_trace_in_a_wrong_format_are_left_out_too(policy):
    weights = Objective(reward="none", bad_format=policy, clip="none", format_penalty=1.0)(scores())
    answer = weights.answer_weights[:, 0].tolist()
    assert answer == [1.0, 1.0, 1.0, 0.0]
