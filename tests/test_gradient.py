"""The expected update equals the enumerated gradient, on a world with three possible traces.

First token: ``a`` or the closing tag; after ``a``: ``a`` or the closing tag; then the limit. So a
trace is empty, ``a`` and closed, or ``a a`` with the tag forced in. An answer has two tokens, each
of a vocabulary of four; where a method samples one, it follows the closed traces alone. Every group
of K sampled traces is enumerated with its probability, and the package's loss is differentiated for
each.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from native_reasoning.config.settings import TOKEN_REWARDS
from native_reasoning.objective.credit import Objective, preset_objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.types import Judgement, Scores, Verdict

PARTS = {"first": (2,), "second": (2,), "tag": (2,), "answer": (3, 2, 4)}
EMPTY, CLOSED, FORCED = range(3)
REFERENCE = (2, 0)  # y*, two tokens of a vocabulary of four
#: Rewards of a trace alone; jepo's is the group's, and has a test of its own.
ALONE = [name for name in TOKEN_REWARDS if name != "jepo"]


@pytest.fixture
def world():
    """Random tables; the closed trace helps the reference answer and the forced one hurts it."""
    torch.manual_seed(3)
    tables = {name: torch.randn(shape, dtype=torch.float64) for name, shape in PARTS.items()}
    for trace, logit in ((EMPTY, 0.3), (CLOSED, 1.5), (FORCED, -1.0)):
        for i, token in enumerate(REFERENCE):
            tables["answer"][trace, i, token] = logit + 0.2 * i
    return {name: table.requires_grad_() for name, table in tables.items()}


def trace_logps(world):
    """log π of the sampled tokens of each of the three traces (3, 2), and which were sampled."""
    first, second = world["first"].log_softmax(-1), world["second"].log_softmax(-1)
    zero = first.new_zeros(())
    logps = [[first[1], zero], [first[0], second[1]], [first[0], second[0]]]
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    return torch.stack([torch.stack(row) for row in logps]), mask


def answer_logps(world):
    l = world["answer"].log_softmax(-1)
    return torch.stack([l[:, 0, REFERENCE[0]], l[:, 1, REFERENCE[1]]], dim=-1)


def scores(world, chosen, first=None):
    logps, mask = trace_logps(world)
    l = answer_logps(world)
    tag = world["tag"].log_softmax(-1)[1]
    index = torch.tensor(chosen)
    forced = torch.stack([tag if z == FORCED else tag.new_zeros(()) for z in chosen])
    return Scores(
        trace=logps[index],
        trace_mask=mask[index],
        answer=l[index],
        baseline=l[EMPTY],
        forced_tag=forced,
        closed=index != FORCED,
        trace_length=torch.tensor([0, 1, 2])[index],
        frozen=None if first is None else Judgement(l[EMPTY], trace=trace_logps(first)[0][index]),
        rounding=1e-14,
    )


def flat(world, value):
    gradients = torch.autograd.grad(value, list(world.values()), allow_unused=True)
    pairs = zip(gradients, world.values(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def expected_update(world, objective, k, first=None):
    """E over groups of k traces of minus the gradient of each loss term, divided by k."""
    probabilities = trace_logps(world)[0].sum(-1).exp().detach()
    totals = dict.fromkeys(("trace", "answer", "format"), 0.0)
    for chosen in itertools.product(range(3), repeat=k):
        weight = probabilities[list(chosen)].prod()
        group = scores(world, chosen, first)
        terms = group_loss(group, objective(group), objective)
        for name in totals:
            term = getattr(terms, name)
            if term.requires_grad:
                totals[name] = totals[name] - weight * flat(world, term) / k
    return totals


def rewards(world, name):
    """R(z) of the three traces with gradients through c, and with b a constant."""
    l = answer_logps(world)
    c, b = l.exp(), l[EMPTY].detach()
    return {
        "logp": lambda: l.sum(-1),
        "avg_logp": lambda: l.mean(-1),
        "prob": lambda: c.prod(-1),
        "geometric_mean": lambda: c.prod(-1).sqrt(),
        "arithmetic_mean": lambda: c.mean(-1),
        "weighted_inverse": lambda: (c / b.exp()).mean(-1),
        "weighted_neglog": lambda: (c * -b).mean(-1),
        "weighted_units": lambda: c.prod(-1) * -b.sum(),
    }[name]()


def policy(world):
    return trace_logps(world)[0].sum(-1).exp()


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert other.abs().max() > 1e-3


EXACT = Objective(
    clip="none", scale="none", answer_weight="exact", format_loss_coef=0.0, ratio="none"
)


def variant(name, **changes):
    return Objective(**{**EXACT.__dict__, "reward": name, **changes})


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", ALONE)
def test_leave_one_out_is_exactly_the_gradient_of_the_expected_reward(world, name, k):
    for baseline in ("current", "none"):
        update = expected_update(world, variant(name, centre="leave_one_out", baseline=baseline), k)
        exact = flat(world, (policy(world) * rewards(world, name)).sum())
        close(update["trace"] + update["answer"], exact)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", ALONE)
def test_mean_centring_gives_k_minus_one_kths_of_the_trace_term(world, name, k):
    update = expected_update(world, variant(name, centre="mean"), k)
    r = rewards(world, name)
    close(update["trace"], (k - 1) / k * flat(world, (policy(world) * r.detach()).sum()))
    close(update["answer"], flat(world, (policy(world).detach() * r).sum()))


@pytest.mark.parametrize("name", ALONE)
def test_no_centring_is_the_plain_score_function_estimator(world, name):
    update = expected_update(world, variant(name, centre="none", baseline="none"), 2)
    exact = flat(world, (policy(world) * rewards(world, name)).sum())
    close(update["trace"] + update["answer"], exact)


@pytest.mark.parametrize("name", ALONE)
def test_relu_with_gate_is_the_gradient_of_the_expected_clipped_improvement(world, name):
    objective = variant(name, clip="relu", centre="leave_one_out", answer_gate="relu")
    r = rewards(world, name)
    improvement = (r - r[EMPTY].detach()).relu()
    assert improvement[CLOSED] > 0
    assert improvement[FORCED] == 0
    update = expected_update(world, objective, 2)
    # at R = R_base torch's relu has slope 0, as the gate has
    exact = flat(world, (policy(world) * improvement).sum())
    close(update["trace"] + update["answer"], exact)
    paper = {"ws": "weighted_neglog", "gm": "geometric_mean", "am": "arithmetic_mean"}
    paper |= {"ws-inverse": "weighted_inverse", "logp": "logp", "p": "prob"}
    for form in (key for key, reward in paper.items() if reward == name):
        plain = {"scale": "none", "centre": "leave_one_out", "format_loss_coef": 0.0}
        update = expected_update(world, replace(preset_objective(f"nrt-{form}-paper"), **plain), 2)
        close(update["trace"] + update["answer"], exact)


@pytest.mark.parametrize("name", ALONE)
def test_relu_without_gate_is_a_field_of_two_parts(world, name):
    update = expected_update(world, variant(name, clip="relu", centre="leave_one_out"), 2)
    r = rewards(world, name)
    improvement = (r - r[EMPTY]).relu().detach()
    close(update["trace"], flat(world, (policy(world) * improvement).sum()))
    close(update["answer"], flat(world, (policy(world).detach() * r).sum()))


@pytest.mark.parametrize("name", ALONE)
def test_weight_one_ascends_the_log_likelihood_of_the_answer(world, name):
    update = expected_update(world, variant(name, answer_weight="one", answer_coef=0.7), 2)
    l = answer_logps(world)
    close(update["answer"], 0.7 * flat(world, (policy(world).detach() * l.sum(-1)).sum()))


def test_weight_probability_ascends_the_sum_of_the_tokens_probabilities(world):
    for name in ("weighted_neglog", "weighted_units"):
        changes = {"answer_weight": "probability", "answer_coef": 0.7}
        update = expected_update(world, variant(name, **changes), 2)
        c = answer_logps(world).exp()
        close(update["answer"], 0.7 * flat(world, (policy(world).detach() * c.sum(-1)).sum()))


def test_forced_tag_learns_from_the_format_term_alone(world):
    objective = variant("logp", format_loss_coef=0.3)
    update = expected_update(world, objective, 2)
    tag = world["tag"].log_softmax(-1)[1]
    close(update["format"], 0.3 * policy(world)[FORCED].detach() * flat(world, tag))
    sizes = [p.numel() for p in world.values()]
    assert (update["trace"].split(sizes)[2] == 0).all()


def test_baseline_trains_the_no_think_answer_only_as_often_as_no_thinking_is_sampled(world):
    # if R_base carried a gradient, the answer after an empty trace would be pushed down
    close_to_one = variant("logp", answer_weight="one", centre="leave_one_out")
    update = expected_update(world, close_to_one, 2)
    sizes = [p.numel() for p in world.values()]
    block = update["answer"].split(sizes)[3].reshape(PARTS["answer"])
    l = answer_logps(world)[EMPTY].sum()
    alone = torch.autograd.grad(l, world["answer"])[0]
    close(block[EMPTY], policy(world)[EMPTY].detach() * alone[EMPTY])


# -- The rivals' exact forms -----------------------------------------------------------------------


def unscaled(preset, **changes):
    """A preset with std, clip, KL and its policy for bad formats switched off."""
    off = {"scale": "none", "adv_clip": None, "beta": 0.0, "bad_format": "splice", "clip": "none"}
    return replace(preset_objective(preset), **{**off, **changes})


@pytest.mark.parametrize("k", [2, 3])
def test_avg_logp_is_exact(world, k):
    update = expected_update(world, preset_objective("avg-logp"), k)
    exact = flat(world, (policy(world) * rewards(world, "avg_logp")).sum())
    close(update["trace"] + update["answer"], exact)


@pytest.mark.parametrize("k", [2, 3])
def test_verifree_is_exact_with_nothing_for_a_trace_without_a_tag(world, k):
    # as it is: the end token is not part of the answer, and an open trace is worth 0
    update = expected_update(world, preset_objective("verifree"), k)
    worth = answer_logps(world)[:, 0].exp() * torch.tensor([1.0, 1.0, 0.0])
    close(update["trace"] + update["answer"], flat(world, (policy(world) * worth).sum()))
    whole = expected_update(world, unscaled("verifree", reward_span="answer_end"), k)
    exact = flat(world, (policy(world) * rewards(world, "prob")).sum())
    close(whole["trace"] + whole["answer"], exact)


@pytest.mark.parametrize("k", [2, 3])
def test_latro_is_exact_with_its_divergence_in_the_reward(world, k):
    first = first_policy()
    update = expected_update(world, unscaled("latro", policy_tokens="trace_tag"), k, first)
    pi, reference = policy(world), policy(first).detach()
    worth = rewards(world, "logp") - 0.05 * (pi / reference).log()
    close(update["trace"] + update["answer"], flat(world, (pi * worth).sum()))


def test_latro_as_released_leaves_out_the_stop_decision(world):
    update = expected_update(world, unscaled("latro"), 2, first_policy())
    _, mask = trace_logps(world)
    mask = mask & torch.tensor([[False, False], [True, False], [True, True]])
    logps = trace_logps(world)[0] * mask
    ratio = (logps - trace_logps(first_policy())[0] * mask).sum(-1).detach()
    worth = rewards(world, "logp").detach() - 0.05 * ratio
    mean = (policy(world).detach() * worth).sum()
    exact = (policy(world).detach() * (worth - mean) * logps.sum(-1)).sum()
    close(update["trace"], flat(world, exact))


@pytest.mark.parametrize("n", [2, 3])
def test_jepo_is_the_gradient_of_the_expected_log_mean_probability(world, n):
    update = expected_update(world, unscaled("jepo"), n)
    pi, s = policy(world), rewards(world, "logp")
    bound = sum(
        pi[list(z)].prod() * (s[list(z)].logsumexp(0) - math.log(n))
        for z in itertools.product(range(3), repeat=n)
    )
    close(update["trace"] + update["answer"], flat(world, bound))


def test_jepo_of_one_sample_is_the_gradient_of_the_expected_log_probability(world):
    update = expected_update(world, unscaled("jepo-1"), 3)
    exact = flat(world, (policy(world) * rewards(world, "logp")).sum())
    close(update["trace"] + update["answer"], exact)


# -- With the standard deviation: against the formula, enumerated apart ----------------------------


def plain_std(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def plain_advantages(values, eps=0.0):
    """(R − mean)/(std + eps) in plain Python; nothing where all are equal."""
    mean, std = sum(values) / len(values), plain_std(values)
    return [(v - mean) / (std + eps) if std > 1e-13 else 0.0 for v in values]


def enumerated(world, advantages_of, k):
    """E over groups of Σ_k A_k ∇log π(z_k)/k for advantages that depend on the traces alone."""
    logps = trace_logps(world)[0].sum(-1)
    pi, total = logps.exp().detach(), 0.0
    for z in itertools.product(range(3), repeat=k):
        a = torch.tensor(advantages_of(z), dtype=torch.float64)
        total = total + pi[list(z)].prod() * (a * logps[list(z)]).sum() / k
    return flat(world, total)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", ALONE)
def test_nrt_with_std_is_its_formula_enumerated(world, name, k):
    update = expected_update(world, variant(name, clip="relu", scale="std"), k)
    r = rewards(world, name).tolist()

    def advantages_of(z):
        gains = [max(0.0, r[i] - r[EMPTY]) for i in z]
        size = max(abs(r[i]) for i in (*z, EMPTY))
        return plain_advantages(gains, 1e-6 * size)

    close(update["trace"], enumerated(world, advantages_of, k))


def rlpr_worth(world, z):
    """Each trace's reward: the first token alone is the answer's own; b⁰ is the first policy's."""
    c = answer_logps(world)[:, 0].exp().tolist()
    base = answer_logps(first_policy())[EMPTY, 0].exp().item()
    return [0.0 if i == FORCED else 0.9 * max(0.0, c[i] - base) + 0.1 for i in z]


def nover_worth(world, z):
    """Rank, efficiency and format of each trace; the lengths without tag are 0, 1 and 2."""
    s = answer_logps(lagging_policy()).mean(-1).tolist()  # 1 + log10 of 0 or 1 token is at most 1
    good = sorted((i for i in range(len(z)) if z[i] != FORCED), key=lambda i: -s[z[i]])
    worth = [0.0] * len(z)
    for rank, i in enumerate(good):
        others = [j for j in good if j != i]
        beaten = sum(z[j] > z[i] and s[z[j]] < s[z[i]] for j in others)
        worth[i] = (len(good) - rank) / len(good) + beaten / max(len(others), 1) + 1.0
    return worth


def dro_worth(world, z):
    """Σ_i ω_i l_i with ω from the standard deviation of each token over the group."""
    l = answer_logps(world).tolist()
    sigma = [plain_std([l[i][t] for i in z]) for t in range(2)]
    if sum(sigma) < 1e-13:
        return [0.0] * len(z)
    omega = [x / sum(sigma) for x in sigma]
    return [sum(o * x for o, x in zip(omega, l[i], strict=True)) for i in z]


@pytest.mark.parametrize(
    ("preset", "worth", "eps"),
    [("rlpr", rlpr_worth, 1e-6), ("nover", nover_worth, 1e-4), ("dro", dro_worth, None)],
)
def test_rewards_of_the_trace_alone_train_no_sampled_answer(world, preset, worth, eps):
    """σ and ranks are the whole group's; tokens of the sampled answer get no expected gradient."""
    objective = replace(preset_objective(preset), length_norm="token_sum", beta=0.0, filter="none")
    update = expected_sampled_update(world, objective)

    def advantages_of(z):
        masked = 0.0 if preset == "dro" else 1.0
        r = worth(world, z)  # dro's own eps is unknown: ours is relative to the rewards
        a = plain_advantages(r, 1e-6 * max(map(abs, r)) if eps is None else eps)
        return [x * (masked if i == FORCED else 1.0) for x, i in zip(a, z, strict=True)]

    sizes = [p.numel() for p in world.values()]
    assert update.split(sizes)[3].abs().max() < 1e-12
    torch.testing.assert_close(update, enumerated(world, advantages_of, 2), rtol=1e-10, atol=1e-12)
    assert update.abs().max() > 1e-3


def test_verified_rewards_are_verifree_on_average(world):
    """Fact 8: with leave-one-out and no std, exact match of a sampled answer is Π c on average."""
    rlvr = replace(preset_objective("rlvr"), centre="leave_one_out", scale="none")
    verifree = replace(preset_objective("verifree"), reward_span="answer_end")
    terms = expected_update(world, verifree, 2)
    close(expected_sampled_update(world, rlvr), terms["trace"] + terms["answer"])


# -- Groups with sampled answers -------------------------------------------------------------------


def first_policy():
    torch.manual_seed(8)
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in PARTS.items()}


def lagging_policy():
    torch.manual_seed(9)
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in PARTS.items()}


def sampled_scores(world, chosen):
    """The scores of a group whose traces are pairs (trace, sampled answer or None)."""
    z = [trace for trace, _ in chosen]
    group = scores(world, z)
    l = world["answer"].log_softmax(-1)
    zero = l.new_zeros(())
    rows, masks = [], []
    for i, (trace, answer) in enumerate(chosen):
        behind = [zero, zero] if answer is None else [l[trace, t, y] for t, y in enumerate(answer)]
        rows.append(torch.cat([group.trace[i], torch.stack(behind)]))
        masks.append([*group.trace_mask[i].tolist(), answer is not None, answer is not None])
    complete = torch.tensor([answer is not None for _, answer in chosen])
    b0, late = answer_logps(first_policy()), answer_logps(lagging_policy())
    return replace(
        group,
        trace=torch.stack(rows),
        trace_mask=torch.tensor(masks),
        trace_length=torch.tensor([{EMPTY: 0, CLOSED: 1, FORCED: 2}[i] for i in z]),
        answer_length=torch.tensor([0 if answer is None else 2 for _, answer in chosen]),
        verdict=Verdict(
            complete=complete,
            correct=torch.tensor([answer == REFERENCE for _, answer in chosen]),
            repetitive=torch.zeros(len(chosen), dtype=torch.bool),
        ),
        frozen=Judgement(b0[EMPTY]),
        ema=Judgement(late[EMPTY], answer=late[torch.tensor(z)]),
    )


def expected_sampled_update(world, objective):
    """E over groups of two traces, each with its sampled answer, of minus the loss's gradient."""
    answers = list(itertools.product(range(4), repeat=2))
    outcomes = [(z, y) for z in (EMPTY, CLOSED) for y in answers] + [(FORCED, None)]
    pi, c = policy(world).detach(), world["answer"].softmax(-1).detach()
    chance = [pi[z] * (1.0 if y is None else c[z, 0, y[0]] * c[z, 1, y[1]]) for z, y in outcomes]
    total = 0.0
    for pair in itertools.product(range(len(outcomes)), repeat=2):
        group = sampled_scores(world, [outcomes[i] for i in pair])
        loss = group_loss(group, objective(group), objective).total()
        total = total - chance[pair[0]] * chance[pair[1]] * loss / 2
    return flat(world, total)
