"""The expected update equals the enumerated gradient, on a world with three possible traces.

First token: ``a`` or the closing tag; after ``a``: ``a`` or the closing tag; then the limit. So a
trace is empty, ``a`` and closed, or ``a a`` with the tag forced in. Every group of K sampled traces
is enumerated with its probability, and the package's loss is differentiated for each.
"""

import itertools

import pytest
import torch

from native_reasoning.objective import REWARDS, Objective, group_loss
from native_reasoning.types import Scores

PARTS = {"first": (2,), "second": (2,), "tag": (2,), "answer": (3, 2, 4)}
EMPTY, CLOSED, FORCED = range(3)
REFERENCE = (2, 0)  # y*, two tokens of a vocabulary of four


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


def scores(world, chosen):
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
        rounding=1e-14,
    )


def flat(world, value):
    gradients = torch.autograd.grad(value, list(world.values()), allow_unused=True)
    pairs = zip(gradients, world.values(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def expected_update(world, objective, k):
    """E over groups of k traces of minus the gradient of each loss term, divided by k."""
    probabilities = trace_logps(world)[0].sum(-1).exp().detach()
    totals = dict.fromkeys(("trace", "answer", "format"), 0.0)
    for chosen in itertools.product(range(3), repeat=k):
        weight = probabilities[list(chosen)].prod()
        group = scores(world, chosen)
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
@pytest.mark.parametrize("name", REWARDS)
def test_leave_one_out_is_exactly_the_gradient_of_the_expected_reward(world, name, k):
    for baseline in ("current", "none"):
        update = expected_update(world, variant(name, centre="leave_one_out", baseline=baseline), k)
        exact = flat(world, (policy(world) * rewards(world, name)).sum())
        close(update["trace"] + update["answer"], exact)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", REWARDS)
def test_mean_centring_gives_k_minus_one_kths_of_the_trace_term(world, name, k):
    update = expected_update(world, variant(name, centre="mean"), k)
    r = rewards(world, name)
    close(update["trace"], (k - 1) / k * flat(world, (policy(world) * r.detach()).sum()))
    close(update["answer"], flat(world, (policy(world).detach() * r).sum()))


@pytest.mark.parametrize("name", REWARDS)
def test_no_centring_is_the_plain_score_function_estimator(world, name):
    update = expected_update(world, variant(name, centre="none", baseline="none"), 2)
    exact = flat(world, (policy(world) * rewards(world, name)).sum())
    close(update["trace"] + update["answer"], exact)


@pytest.mark.parametrize("name", REWARDS)
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


@pytest.mark.parametrize("name", REWARDS)
def test_relu_without_gate_is_a_field_of_two_parts(world, name):
    update = expected_update(world, variant(name, clip="relu", centre="leave_one_out"), 2)
    r = rewards(world, name)
    improvement = (r - r[EMPTY]).relu().detach()
    close(update["trace"], flat(world, (policy(world) * improvement).sum()))
    close(update["answer"], flat(world, (policy(world).detach() * r).sum()))


@pytest.mark.parametrize("name", REWARDS)
def test_weight_one_ascends_the_log_likelihood_of_the_answer(world, name):
    update = expected_update(world, variant(name, answer_weight="one", answer_coef=0.7), 2)
    l = answer_logps(world)
    close(update["answer"], 0.7 * flat(world, (policy(world).detach() * l.sum(-1)).sum()))


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
