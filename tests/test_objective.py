"""Rewards, weights, advantages and losses against plain Python and against autograd."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from native_reasoning.config.errors import ConfigError
from native_reasoning.config.papers import PRESETS
from native_reasoning.config.settings import SETTINGS, TOKEN_REWARDS
from native_reasoning.objective.credit import Objective, preset_objective
from native_reasoning.objective.losses import RATIOS, group_loss
from native_reasoning.objective.rewards import REWARDS
from native_reasoning.objective.types import Scores, Signal

C = [[0.5, 0.9, 0.02], [0.25, 0.6, 0.3], [0.1, 0.95, 0.4], [0.7, 0.01, 0.6]]
B = [0.2, 0.8, 0.15]
#: Rewards of one trace and its answer; those of the whole group are in test_rewards.py.
TOKENS = [name for name in TOKEN_REWARDS if name != "jepo"]
LOG_REWARDS = [name for name in TOKENS if REWARDS[name].is_log]


def f(name, c, b):
    """R = f(c) in plain Python; ``b`` holds probabilities."""
    t = len(c)
    return {
        "logp": lambda: sum(math.log(x) for x in c),
        "avg_logp": lambda: sum(math.log(x) for x in c) / t,
        "prob": lambda: math.prod(c),
        "geometric_mean": lambda: math.prod(c) ** (1 / t),
        "arithmetic_mean": lambda: sum(c) / t,
        "weighted_inverse": lambda: sum(x / y for x, y in zip(c, b, strict=True)) / t,
        "weighted_neglog": lambda: sum(-x * math.log(y) for x, y in zip(c, b, strict=True)) / t,
        "weighted_units": lambda: units(c, b),
    }[name]()


def units(c, b, longest=8):
    """The mean over units of Π c · −log Π b, in plain Python. There are as few units as can be with
    at most ``longest`` tokens each; the first are a token longer where they cannot be equal."""
    count = math.ceil(len(c) / longest)
    size, more = divmod(len(c), count)
    total, at = 0.0, 0
    for i in range(count):
        end = at + size + (i < more)
        total += math.prod(c[at:end]) * -math.log(math.prod(b[at:end]))
        at = end
    return total / count


def scores(answer, baseline, *, rounding=1e-12, dtype=torch.float64, **parts):
    """Scores of a group from log-probabilities; every trace is one token of probability 1/2."""
    answer = torch.as_tensor(answer, dtype=dtype)
    k = len(answer)
    given = {
        "trace": torch.full((k, 1), -math.log(2), dtype=dtype),
        "trace_mask": torch.ones(k, 1, dtype=torch.bool),
        "forced_tag": torch.zeros(k, dtype=dtype),
        "closed": torch.ones(k, dtype=torch.bool),
    }
    baseline = torch.as_tensor(baseline, dtype=dtype)
    return Scores(answer=answer, baseline=baseline, rounding=rounding, **{**given, **parts})


def of(c, b, **kwargs):
    return scores(torch.tensor(c, dtype=torch.float64).log(), [math.log(x) for x in b], **kwargs)


def standardise(values):
    mean, std = statistics.mean(values), statistics.stdev(values)
    return [(v - mean) / std for v in values]


def close(tensor, expected, tolerance=1e-9):
    torch.testing.assert_close(
        tensor, torch.as_tensor(expected, dtype=tensor.dtype), rtol=tolerance, atol=tolerance
    )


# -- Rewards and weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENS)
def test_reward_is_its_formula(name):
    signal = Objective(reward=name, scale="none")(of(C, B))
    close(signal.rewards, [f(name, c, B) for c in C])
    close(signal.baseline_reward, f(name, B, B))


@pytest.mark.parametrize("name", ["arithmetic_mean", "weighted_inverse", "weighted_neglog"])
def test_what_tokens_put_into_a_reward_adds_up_to_what_the_clip_left(name):
    group = [*C, [0.1, 0.5, 0.1]]  # the last one is worse than none
    single = {"arithmetic_mean": lambda x, y: x, "weighted_inverse": lambda x, y: x / y}
    one = single.get(name, lambda x, y: -x * math.log(y))
    signal = Objective(reward=name)(of(group, B))
    gains = [max(0.0, f(name, c, B) - f(name, B, B)) for c in group]
    assert 0 < sum(gain > 0 for gain in gains) < len(group)
    close(signal.token_rewards.sum(-1), gains)
    for k, (c, gain) in enumerate(zip(group, gains, strict=True)):
        each = [(one(x, y) - one(y, y)) / len(B) for x, y in zip(c, B, strict=True)]
        close(signal.token_rewards[k], each if gain > 0 else [0.0] * len(B))


def test_what_tokens_put_into_other_rewards():
    close(Objective(reward="avg_logp", clip="none")(of(C, B)).token_rewards, of(C, B).answer)
    without_end = Objective(reward_span="answer")(of(C, B)).token_rewards
    assert (without_end[:, -1] == 0).all()
    assert (without_end[:, :-1] != 0).any()
    assert Objective(reward="reflection")(of(C, B)).token_rewards is None


@pytest.mark.parametrize("name", TOKENS)
def test_exact_weight_is_c_times_the_derivative_of_f(name):
    c = torch.tensor(C, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(B, dtype=torch.float64)
    t = len(B)
    total = {
        "logp": c.log().sum(),
        "avg_logp": c.log().sum() / t,
        "prob": c.prod(-1).sum(),
        "geometric_mean": (c.prod(-1) ** (1 / t)).sum(),
        "arithmetic_mean": c.sum() / t,
        "weighted_inverse": (c / b).sum() / t,
        "weighted_neglog": -(c * b.log()).sum() / t,
        "weighted_units": -(c.prod(-1) * b.log().sum()).sum(),
    }[name]
    (derivative,) = torch.autograd.grad(total, c)
    signal = Objective(reward=name, answer_weight="exact", answer_coef=3.0)(of(C, B))
    close(signal.answer_weights, 3 * c.detach() * derivative)


@pytest.mark.parametrize("length", [1, 8, 9, 16, 17, 30])
def test_units_of_any_length_are_their_formula_and_their_weights_its_gradient(length):
    torch.manual_seed(length)
    c, b = torch.rand(4, length).double(), torch.rand(length).double()
    signal = Objective(reward="weighted_units", answer_weight="exact", clip="none", scale="none")(
        scores(c.log(), b.log())
    )
    close(signal.rewards, [units(row, b.tolist()) for row in c.tolist()])
    close(signal.baseline_reward, units(b.tolist(), b.tolist()))
    l = c.log().requires_grad_()
    cuts = {1: [1], 8: [8], 9: [5, 4], 16: [8, 8], 17: [6, 6, 5], 30: [8, 8, 7, 7]}[length]
    pairs = zip(l.exp().split(cuts, -1), b.split(cuts), strict=True)
    total = sum((x.prod(-1) * -y.prod().log()).sum() for x, y in pairs) / len(cuts)
    close(signal.answer_weights, torch.autograd.grad(total, l)[0])


@pytest.mark.parametrize("length", [1, 2, 400, 4000])
@pytest.mark.parametrize("name", TOKENS)
def test_any_length_and_tiny_probabilities_give_finite_numbers(name, length):
    torch.manual_seed(0)
    deep = -100 * torch.rand(8, length)
    group = scores(deep, -100 * torch.rand(length), rounding=1e-5, dtype=torch.float32)
    for scale in ("std", "none"):
        objective = Objective(reward=name, scale=scale, baseline="none", clip="none")
        signal = replace(objective, answer_weight="exact")(group)
        assert signal.advantages.isfinite().all()
        assert signal.answer_weights.isfinite().all()
        assert (signal.answer_weights >= 0).all()
        if scale == "std":
            assert not signal.flat
            assert signal.advantages.abs().max() > 0.5


def test_probability_of_e_to_the_minus_100_keeps_its_reward():
    signal = Objective(reward="logp", scale="none", centre="none", clip="none")(
        scores([[-100.0, -1.0]], [-2.0, -2.0], dtype=torch.float32)
    )
    close(signal.rewards, [-101.0], 1e-6)
    inverse = Objective(reward="weighted_inverse")(scores([[-100.0]] * 2, [-100.0]))
    # 1/p is bounded by e^10
    assert inverse.rewards.tolist() == pytest.approx([math.exp(-90)] * 2, rel=1e-9, abs=0)
    assert inverse.clamped == 1


def test_clamped_baseline_weights_and_its_share_is_reported():
    l, b = [[-0.1, -0.2], [-0.3, -0.1]], [0.0, -0.5]
    signal = Objective(reward="weighted_neglog", answer_weight="exact")(scores(l, b))
    weight = [1e-6, 0.5]
    expected = [[math.exp(x) * w / 2 for x, w in zip(row, weight, strict=True)] for row in l]
    close(signal.answer_weights, expected)
    close(signal.rewards, [sum(row) for row in expected])
    close(signal.baseline_reward, (1 * 1e-6 + math.exp(-0.5) * 0.5) / 2)
    assert signal.clamped == 0.5


def test_empty_trace_is_worth_exactly_nothing():
    torch.manual_seed(0)
    b = -torch.rand(7) * 20
    b[0] = 0.0  # clamped above, and below for weighted_inverse
    l = torch.stack([b, b - 0.5, b])
    for name in TOKENS:
        signal = Objective(reward=name, centre="none", scale="none")(
            scores(l, b, rounding=1e-5, dtype=torch.float32)
        )
        assert signal.advantages.tolist() == [0.0, 0.0, 0.0]
        assert (signal.rewards[0] == signal.baseline_reward).item()


# -- Advantages ------------------------------------------------------------------------------------


def test_relu_makes_a_trace_that_hurts_worth_nothing():
    traces = [C[0], [0.01, 0.8, 0.1], C[3], [0.1, 0.1, 0.1]]
    gains = [sum(c) / 3 - sum(B) / 3 for c in traces]
    assert [g > 0.01 for g in gains] == [True, False, True, False]
    signal = Objective(reward="arithmetic_mean", centre="none", scale="none")(of(traces, B))
    close(signal.advantages, [max(0.0, g) for g in gains])
    assert signal.advantages[1] == signal.advantages[3] == 0


@pytest.mark.parametrize("name", TOKENS)
def test_unclipped_baseline_is_irrelevant_under_centring(name):
    for centre in ("mean", "leave_one_out"):
        for scale in ("std", "none"):
            with_base = Objective(reward=name, clip="none", centre=centre, scale=scale)
            without = replace(with_base, baseline="none")
            close(with_base(of(C, B)).advantages, without(of(C, B)).advantages, 1e-5)


@pytest.mark.parametrize("name", TOKENS)
def test_without_a_baseline_the_empty_trace_cannot_silence_the_group(name):
    # the empty trace is far better than all: its size must not make the others look equal
    l = torch.tensor([[-40.0, -41.0], [-42.0, -40.0], [-44.0, -41.0]])
    group = scores(l, [-0.01, -0.02], rounding=1e-5, dtype=torch.float32)
    signal = Objective(reward=name, baseline="none", clip="none")(group)
    assert not signal.flat
    assert signal.advantages[0] > signal.advantages[2]
    assert signal.advantages.std().item() == pytest.approx(1, abs=1e-4)


def test_positive_affine_changes_of_the_reward_are_irrelevant_under_std():
    # avg_logp = logp / T; weighted_inverse with equal b everywhere = arithmetic_mean · e^-b
    for clip in ("none", "relu"):
        one = Objective(reward="logp", clip=clip)(of(C, B)).advantages
        close(Objective(reward="avg_logp", clip=clip)(of(C, B)).advantages, one, 1e-6)
        even = [0.3, 0.3, 0.3]
        mean = Objective(reward="arithmetic_mean", clip=clip)(of(C, even)).advantages
        inverse = Objective(reward="weighted_inverse", clip=clip)(of(C, even)).advantages
        neglog = Objective(reward="weighted_neglog", clip=clip)(of(C, even)).advantages
        close(inverse, mean, 1e-5)
        close(neglog, mean, 1e-5)
    shift = [[x * 0.5 for x in c] for c in C]  # log R moves by 3 log 2 for all: R' changes sign
    close(
        Objective(reward="logp", clip="none")(of(shift, B)).advantages,
        Objective(reward="logp", clip="none")(of(C, B)).advantages,
        1e-5,
    )


def test_mean_and_leave_one_out_give_the_same_advantages_under_std():
    for name in TOKENS:
        mean = Objective(reward=name, centre="mean")(of(C, B)).advantages
        out = Objective(reward=name, centre="leave_one_out")(of(C, B)).advantages
        assert not torch.equal(mean, torch.zeros_like(mean))
        close(out, mean, 1e-5)


def test_centres_without_scale_are_the_written_formulas():
    r = [sum(c) / 3 - sum(B) / 3 for c in C]
    base = Objective(reward="arithmetic_mean", clip="none", scale="none")
    close(base(of(C, B)).advantages, [x - sum(r) / 4 for x in r])
    others = [x - (sum(r) - x) / 3 for x in r]
    close(replace(base, centre="leave_one_out")(of(C, B)).advantages, others)
    close(replace(base, centre="none")(of(C, B)).advantages, r)


def test_scaled_advantages_are_divided_by_the_unbiased_std_of_the_clipped_rewards():
    worse = [[0.01, 0.8, 0.1], *C[2:4], [0.1, 0.1, 0.1]]
    r = [max(0.0, sum(c) / 3 - sum(B) / 3) for c in worse]
    close(Objective(reward="arithmetic_mean")(of(worse, B)).advantages, standardise(r), 1e-5)


@pytest.mark.parametrize("scale", ["std", "none"])
def test_one_trace_alone_has_no_advantage_and_no_error(scale):
    # filler groups of a last, partial step have one trace and go through every objective
    for centre in ("mean", "leave_one_out"):
        signal = Objective(centre=centre, scale=scale)(of(C[:1], B))
        assert signal.advantages.tolist() == [0.0]


# -- Flat groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENS)
def test_identical_traces_are_flat_and_get_no_advantage(name):
    signal = Objective(reward=name)(of([C[0]] * 4, B))
    assert signal.flat
    assert signal.advantages.tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["logp", "avg_logp", *LOG_REWARDS])
def test_certain_answers_are_flat_and_not_nan(name):
    # in float32 a memorised answer has probability exactly 1: every reward of logp is 0
    signal = Objective(reward=name)(scores(torch.zeros(4, 3), torch.zeros(3), rounding=1e-5))
    assert signal.flat
    assert signal.advantages.tolist() == [0.0] * 4


@pytest.mark.parametrize(("rounding", "dtype"), [(1e-5, torch.float32), (5e-3, torch.bfloat16)])
def test_nearly_identical_traces_are_flat_up_to_the_rounding(rounding, dtype):
    wiggle = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    b = torch.log(torch.tensor([0.05, 0.1, 0.2]))
    l = torch.log(torch.tensor(C[:1])).expand(4, 3)
    for factor, flat in ((0.1, True), (20.0, False)):
        group = scores(l + factor * rounding * wiggle, b, rounding=rounding, dtype=torch.float32)
        signal = Objective(reward="geometric_mean", clip="none")(group)
        assert signal.flat is flat
        assert (signal.advantages == 0).all().item() is flat


def test_one_winner_among_eight_counts_only_above_the_rounding():
    b = [math.log(0.5)] * 4
    for gain, flat in ((1e-4, False), (1e-6, True)):
        l = torch.full((8, 4), math.log(0.4), dtype=torch.float64)
        l[3] = math.log(0.5) + math.log1p(gain)
        signal = Objective(reward="arithmetic_mean")(scores(l, b, rounding=1e-5))
        assert signal.flat is flat
        top = 0.0 if flat else 7 / math.sqrt(8)  # (1 - 1/8) / std of one 1 among eight
        assert signal.advantages[3].item() == pytest.approx(top, rel=0.05)
        assert signal.advantages.sum().item() == pytest.approx(0, abs=1e-6)


def test_relu_ignores_a_gain_below_the_rounding_of_bfloat16():
    l = [[math.log(0.5) + 2e-3], [math.log(0.5) + 2e-2], [math.log(0.2)]]
    signal = Objective(reward="prob", centre="none", scale="none")(
        scores(l, [math.log(0.5)], rounding=5e-3)
    )
    assert signal.advantages[0] == 0
    assert signal.advantages[2] == 0
    assert signal.advantages[1].item() == pytest.approx(0.5 * (math.exp(2e-2) - 1))


def test_product_of_400_probabilities_ranks_traces_under_std():
    torch.manual_seed(1)
    l = -3 * torch.rand(6, 400)  # sums near -600: exp is 0 in float32 and in float64 near 1e-260
    group = scores(l, l.mean(0), rounding=1e-5, dtype=torch.float32)
    signal = Objective(reward="prob", clip="none")(group)
    s = [math.fsum(row) for row in l.double().tolist()]
    top = max(s)
    expected = standardise([math.exp(x - top) for x in s])
    close(signal.advantages, expected, 1e-3)
    assert (signal.rewards == 0).all()  # R itself underflows, A does not


def test_flat_group_keeps_its_answer_term():
    signal = Objective(reward="prob")(of([C[0]] * 4, B))
    assert signal.flat
    assert signal.answer_weights.tolist() == [[1.0] * 3] * 4


# -- Answer weights --------------------------------------------------------------------------------


def test_answer_weight_none_one_probability_exact():
    group = of(C, B)
    assert (Objective(answer_weight="none")(group).answer_weights == 0).all()
    ones = Objective(answer_weight="one", answer_coef=0.25)(group).answer_weights
    assert ones.tolist() == [[0.25] * 3] * 4
    own = Objective(answer_weight="probability", answer_coef=0.5, reward_span="answer")(group)
    close(own.answer_weights, [[x / 2 for x in c] for c in C])  # f's span is not the answer's
    exact = Objective(reward="avg_logp", answer_weight="exact")(group).answer_weights
    close(exact, [[1 / 3] * 3] * 4)


@pytest.mark.parametrize("baseline", ["current", "none"])
@pytest.mark.parametrize("clip", ["none", "relu"])
@pytest.mark.parametrize("name", TOKENS)
def test_answer_gate_trains_the_answer_only_after_traces_that_beat_the_empty_one(
    name, clip, baseline
):
    if clip == "relu" and baseline == "none":
        return  # refused by NRTConfig
    traces = [C[0], B, [x / 2 for x in B], [x**0.5 for x in B]]
    gated = Objective(reward=name, clip=clip, baseline=baseline, answer_gate="relu")
    helped = [f(name, c, B) > f(name, B, B) + 1e-9 for c in traces]
    assert helped[1:] == [False, False, True]
    assert gated(of(traces, B)).answer_weights.tolist() == [[float(h)] * 3 for h in helped]


def test_supervised_objective_has_no_reward_and_the_gate_does_not_silence_it():
    for gate in ("none", "relu"):
        signal = Objective(reward="none", answer_gate=gate, answer_coef=2.0)(of(C, B))
        assert signal.advantages.tolist() == signal.rewards.tolist() == [0.0] * 4
        assert signal.baseline_reward.shape == ()
        assert signal.answer_weights.tolist() == [[2.0] * 3] * 4
    own = Objective(reward="none", answer_weight="probability", answer_coef=2.0)(of(C, B))
    close(own.answer_weights, [[2 * x for x in c] for c in C])


def test_signal_carries_no_gradient_and_neither_does_the_baseline():
    l = torch.log(torch.tensor(C)).requires_grad_()
    b = torch.log(torch.tensor(B)).requires_grad_()
    tag = torch.full((4,), -2.0, requires_grad=True)
    trace = torch.full((4, 1), -1.0, requires_grad=True)
    parts = {"trace": trace, "forced_tag": tag, "closed": torch.zeros(4, dtype=torch.bool)}
    for name in TOKENS:
        group = Scores(answer=l, baseline=b, trace_mask=torch.ones(4, 1, dtype=torch.bool), **parts)
        objective = Objective(reward=name, answer_weight="exact")
        signal = objective(group)
        tensors = (signal.rewards, signal.baseline_reward, signal.advantages)
        assert not any(t.requires_grad for t in (*tensors, signal.answer_weights))
        loss = group_loss(group, signal, objective).total()
        grads = torch.autograd.grad(loss, (b, l, trace, tag), allow_unused=True)
        assert grads[0] is None
        assert all(g is not None and g.abs().sum() > 0 for g in grads[1:])


# -- The loss --------------------------------------------------------------------------------------


def ratio_case():
    """Two traces of three and two tokens; ρ = 1, 1.5, 0.5 | 1.5, 0.5; A = 2, −1."""
    old = torch.log(torch.tensor([[0.2, 0.2, 0.6], [0.2, 0.4, 1.0]], dtype=torch.float64))
    rho = torch.tensor([[1.0, 1.5, 0.5], [1.5, 0.5, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    new = ((old + rho.log()) * mask).requires_grad_()
    group = scores(torch.zeros(2, 1), [0.0], trace=new, trace_mask=mask)
    signal = Signal(
        rewards=torch.zeros(2),
        baseline_reward=torch.zeros(()),
        advantages=torch.tensor([2.0, -1.0], dtype=torch.float64),
        answer_weights=torch.zeros(2, 1, dtype=torch.float64),
    )
    return group, signal, old * mask, new


# dropped: A > 0 with ρ above, A < 0 with ρ below; the other sides are clamped, not dropped
GRADIENTS = {
    "none": [[2.0, 2.0, 2.0], [-1.0, -1.0, 0.0]],
    "cispo": [[2.0, 0.0, 2 * 0.8], [-1.28, 0.0, 0.0]],
    "ppo": [[2.0, 0.0, 2 * 0.5], [-1.5, 0.0, 0.0]],
}


@pytest.mark.parametrize("ratio", RATIOS)
def test_ratio_gradients_per_token_by_hand(ratio):
    group, signal, old, new = ratio_case()
    terms = group_loss(group, signal, Objective(ratio=ratio), rollout_trace=old)
    (gradient,) = torch.autograd.grad(terms.trace, new)
    close(gradient, [[-x for x in row] for row in GRADIENTS[ratio]])


def test_ratio_values_by_hand():
    group, signal, old, new = ratio_case()
    x = new.detach()
    cispo = 2 * x[0, 0] + 2 * 0.8 * x[0, 2] - 1.28 * x[1, 0]
    ppo = 2 * (1 + 1.28 + 0.5) - (1.5 + 0.8)
    plain = 2 * x[0].sum() - x[1].sum()
    for name, expected in (("cispo", cispo), ("ppo", ppo), ("none", plain)):
        terms = group_loss(group, signal, Objective(ratio=name), rollout_trace=old)
        assert terms.trace.item() == pytest.approx(-float(expected), rel=1e-12)


def test_ratio_is_one_where_the_sampling_weights_are_the_current_ones():
    group, signal, _, new = ratio_case()
    for ratio in RATIOS:
        for old in (None, new.detach()):
            terms = group_loss(group, signal, Objective(ratio=ratio), rollout_trace=old)
            (gradient,) = torch.autograd.grad(terms.trace, new)
            close(gradient, [[-2.0] * 3, [1.0, 1.0, 0.0]])


def test_custom_ratio_bounds_are_used():
    group, signal, old, new = ratio_case()
    wide = Objective(ratio_low=0.1, ratio_high=9.0)
    (gradient,) = torch.autograd.grad(group_loss(group, signal, wide, old).trace, new)
    close(gradient, [[-2.0, -3.0, -1.0], [1.5, 0.5, 0.0]])


def test_forced_tag_gets_the_format_term_and_no_policy_gradient():
    tag = torch.tensor([0.0, -1.5], dtype=torch.float64, requires_grad=True)
    group = of(C[:2], B, forced_tag=tag, closed=torch.tensor([True, False]))
    objective = Objective(reward="prob", format_loss_coef=0.3)
    terms = group_loss(group, objective(group), objective)
    assert terms.format.item() == pytest.approx(0.45)
    (gradient,) = torch.autograd.grad(terms.total(), tag)
    close(gradient, [-0.3, -0.3])  # scoring gives a constant 0 for the closed one


def test_answer_term_is_the_weighted_sum_of_log_probabilities():
    group = of(C, B)
    objective = Objective(reward="arithmetic_mean", answer_weight="exact", answer_coef=0.5)
    terms = group_loss(group, objective(group), objective)
    expected = -0.5 * sum(x * math.log(x) / 3 for c in C for x in c)
    close(terms.answer, expected)
    a = objective(group).advantages
    close(terms.trace, (a * math.log(2)).sum())
    close(terms.total(), terms.trace + terms.answer + terms.format)


# -- Presets ---------------------------------------------------------------------------------------


def test_unknown_preset_names_the_nearest():
    assert preset_objective("nrt-ws") == Objective()
    with pytest.raises(ConfigError, match="did you mean 'nrt-gm'"):
        preset_objective("nrt-gmm")


def test_every_preset_says_what_it_is_and_where_it_comes_from():
    assert set(SETTINGS) >= {"reward", "clip", "centre", "scale", "answer_weight"}
    for preset in PRESETS.values():
        assert preset.summary
        assert preset.method.title
        assert preset.method.source
        assert preset.method.formula
