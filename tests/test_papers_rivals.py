"""Each rival is a literal transcription of its formula, in plain Python, on fixed numbers.

The formulas are those of the papers, as ``nrt presets NAME`` has them too. Every
method is written out on its own: what it returns are its advantages (K,), its answer weights (K, T)
and its terms of the loss, which is minus the objective, summed over the group. ``std`` is the
unbiased one.
"""

import itertools
import math
from dataclasses import replace
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
import torch

from native_reasoning.objective.credit import preset_objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.types import Judgement, Scores, Verdict

# Seven traces of one prompt: their tokens' log-probabilities, in three parts.
Z = [  # the trace itself
    [-1.0, -0.5, -0.2],
    [-0.3, -1.2, -0.7, -0.1, -0.9, -2.1, -0.4, -0.6, -0.2, -1.3, -0.8, -0.5, -1.1],
    [-2.0],
    [-0.6, -0.2, -1.5, -0.3, -0.9, -0.1, -0.4, -2.2, -0.7, -0.5, -0.3],
    [-0.1, -0.8, -1.9, -0.2, -0.6, -0.4, -1.0],
    [-1.4, -0.3],
    [-0.5, -0.7, -0.2, -1.6],
]
STOP = [  # its stop decision: the closing tag's two tokens, the end-of-turn token, or the limit
    [-0.4, -0.01],
    [],
    [-1.1, -0.02],
    [-0.7, -0.03],
    [-0.2, -0.01],
    [-0.9, -0.05],
    [-1.8],
]
SAMPLED = [  # the answer sampled after it; the third ran into a limit
    [-0.2, -0.1],
    [],
    [-1.3, -0.4, -0.6],
    [-0.5, -0.2],
    [-0.3],
    [-0.8, -0.1],
    [],
]
K, T = 7, 4
CLOSED = [True, False, True, True, True, True, False]
COMPLETE = [True, False, False, True, True, True, False]
CORRECT = [True, False, True, True, False, False, False]
REPETITIVE = [False, False, True, False, False, True, False]
FORCED = [0.0, -4.0, 0.0, 0.0, 0.0, 0.0, -2.5]  # the closing tag, where it was spliced in
# The reference answer after each trace and after none; its last token is the end-of-turn token.
L = [
    [-0.6, -0.2, -1.9, -0.05],
    [-1.4, -0.5, -1.2, -0.4],
    [-2.3, -0.15, -2.9, -0.7],
    [-0.4, -1.6, -0.5, -0.02],
    [-0.9, -0.3, -0.8, -1.1],
    [-2.0, -1.1, -2.5, -0.1],
    [-1.2, -0.6, -1.7, -0.9],
]
B = [-1.6, -0.4, -2.0, -0.3]
FIRST_B = [-1.7, -0.5, -2.2, -0.6]  # the first policy, after none
EMA_L = [  # the lagging copy
    [-0.9, -0.4, -1.6, -0.10],
    [-1.3, -0.6, -1.4, -0.3],
    [-2.0, -0.2, -2.6, -0.8],
    [-0.7, -2.6, -1.5, -0.05],
    [-1.1, -0.5, -1.3, -1.4],
    [-1.2, -0.8, -1.9, -0.2],
    [-1.0, -0.7, -1.9, -0.6],
]
EMA_B = [-1.8, -0.6, -2.1, -0.5]
MEAN_TOKENS = 7.5  # of the optimiser step: only what is "per token" may look at it


def moved(rows, factors):
    """The same tokens under another policy: log-probabilities times fixed factors in turn."""
    factor = itertools.cycle(factors)
    return [[x * next(factor) for x in row] for row in rows]


# the first policy, and the policy that sampled when this is not the first update of the rollout
FIRST_Z = moved(Z, [0.9, 1.4, 1.05, 0.6, 1.2])
FIRST_STOP = moved(STOP, [1.5, 0.8, 1.3])
FIRST_SAMPLED = moved(SAMPLED, [1.4, 0.7, 1.9, 1.1])
OLD_Z = moved(Z, [1.6, 0.95, 0.6, 1.2, 1.0, 1.3, 0.85])
OLD_STOP = moved(STOP, [1.7, 1.1, 0.6, 0.9])
OLD_SAMPLED = moved(SAMPLED, [0.5, 1.8, 1.02, 1.4, 0.7])

ANSWERS_TOO = {"rlpr", "nover", "dro", "rlvr"}  # these sample an answer and train it
ASK_FIRST = {"rlpr", "latro", "latro@shared", "jepo", "jepo-1", "nover", "dro"}


def joined(*parts):
    """(K, L): the parts of each trace in order, padded with 0 on the right."""
    rows = [[x for part in parts for x in part[k]] for k in range(len(parts[0]))]
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0.0] * (longest - len(row)) for row in rows], dtype=torch.float64)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def group(name):
    """The group as the package sees it under one preset."""
    answers = name in ANSWERS_TOO
    trace = joined(Z, STOP, SAMPLED) if answers else joined(Z, STOP)
    first = joined(FIRST_Z, FIRST_STOP, *([FIRST_SAMPLED] if answers else []))
    lengths = [len(Z[k]) + len(STOP[k]) + (len(SAMPLED[k]) if answers else 0) for k in range(K)]
    verdict = Verdict(torch.tensor(COMPLETE), torch.tensor(CORRECT), torch.tensor(REPETITIVE))
    return Scores(
        trace=trace,
        trace_mask=torch.arange(trace.shape[1]) < torch.tensor(lengths)[:, None],
        answer=float64(L),
        baseline=float64(B),
        forced_tag=float64(FORCED),
        closed=torch.tensor(CLOSED),
        rounding=1e-12,
        trace_length=torch.tensor([len(z) for z in Z]),
        answer_length=torch.tensor([len(y) for y in SAMPLED]) if answers else None,
        verdict=verdict if answers else None,
        frozen=Judgement(float64(FIRST_B), trace=first) if name in ASK_FIRST else None,
        ema=Judgement(float64(EMA_B), answer=float64(EMA_L)) if name == "nover" else None,
    )


def rollout(name):
    """The sampling policy's log-probabilities of the group's tokens."""
    return joined(OLD_Z, OLD_STOP, *([OLD_SAMPLED] if name in ANSWERS_TOO else []))


def outcome(advantages, weights, trace, kl=0.0, tag=0.0):
    return SimpleNamespace(advantages=advantages, weights=weights, trace=trace, kl=kl, format=tag)


# The methods in their own recipes.


def avg_logp():
    """LBR: mean log-probability against the other traces' mean; the exact weight is 1/T."""
    r = [sum(L[k]) / T for k in range(K)]
    a = [r[k] - mean(r[:k] + r[k + 1 :]) for k in range(K)]
    w = [[1 / T] * T for k in range(K)]
    return outcome(a, w, -sum(a[k] * sum(Z[k] + STOP[k]) for k in range(K)))


def verifree():
    """Probability of the answer without its end token, 0 without a tag; it is also the weight."""
    r = [math.prod(math.exp(l) for l in L[k][:-1]) if CLOSED[k] else 0.0 for k in range(K)]
    a = [r[k] - mean(r[:k] + r[k + 1 :]) for k in range(K)]
    w = [[r[k], r[k], r[k], 0.0] for k in range(K)]
    return outcome(a, w, -sum(a[k] * sum(Z[k] + STOP[k]) for k in range(K)))


def jepo():
    """What a trace adds to the log of the group's mean probability; a penalty of its own."""
    s = [sum(L[k]) for k in range(K)]
    both = math.log(mean(math.exp(x) for x in s))
    gain = [K * (both - math.log(mean(math.exp(x) for x in s[:k] + s[k + 1 :]))) for k in range(K)]
    gain_std = stdev(gain) + 1e-6 * max(abs(x) for x in s)
    p = [0.0 if CLOSED[k] else -10.0 for k in range(K)]
    penalty = [p[k] - mean(p[:k] + p[k + 1 :]) for k in range(K)]
    penalty_std = stdev(penalty) + 1e-6 * 10
    a = [
        min(1.0, max(-1.0, gain[k] / gain_std)) + min(1.0, max(-1.0, penalty[k] / penalty_std))
        for k in range(K)
    ]
    softmax = [math.exp(s[k]) / sum(math.exp(x) for x in s) for k in range(K)]
    w = [[K * softmax[k] if CLOSED[k] else 0.0] * T for k in range(K)]
    trace = -sum(a[k] * sum(Z[k] + STOP[k]) for k in range(K))
    kl = 0.0
    for k in range(K):
        for new, first in zip(Z[k] + STOP[k], FIRST_Z[k] + FIRST_STOP[k], strict=True):
            kl += math.exp(first - new) - 1 - (first - new)
    return outcome(a, w, trace, 1e-3 * kl)


def jepo_1():
    """The bound of one sample: log-probability of the answer, leave-one-out, std, clip at 1."""
    s = [sum(L[k]) for k in range(K)]
    gain = [s[k] - mean(s[:k] + s[k + 1 :]) for k in range(K)]
    gain_std = stdev(gain) + 1e-6 * max(abs(x) for x in s)
    p = [0.0 if CLOSED[k] else -10.0 for k in range(K)]
    penalty = [p[k] - mean(p[:k] + p[k + 1 :]) for k in range(K)]
    penalty_std = stdev(penalty) + 1e-6 * 10
    a = [
        min(1.0, max(-1.0, gain[k] / gain_std)) + min(1.0, max(-1.0, penalty[k] / penalty_std))
        for k in range(K)
    ]
    w = [[1.0 if CLOSED[k] else 0.0] * T for k in range(K)]
    trace = -sum(a[k] * sum(Z[k] + STOP[k]) for k in range(K))
    kl = 0.0
    for k in range(K):
        for new, first in zip(Z[k] + STOP[k], FIRST_Z[k] + FIRST_STOP[k], strict=True):
            kl += math.exp(first - new) - 1 - (first - new)
    return outcome(a, w, trace, 1e-3 * kl)


def latro():
    """Log-probability of the answer, twice the group's mean if open, minus the KL of z alone."""
    s = [sum(L[k]) for k in range(K)]
    s = [s[k] if CLOSED[k] else 2 * mean(s) for k in range(K)]
    r = [s[k] - 0.05 * (sum(Z[k]) - sum(FIRST_Z[k])) for k in range(K)]
    a = [r[k] - mean(r[:k] + r[k + 1 :]) for k in range(K)]
    w = [[1.0] * T for k in range(K)]
    return outcome(a, w, -sum(a[k] * sum(Z[k]) for k in range(K)))


def rlpr():
    """Mean probability without the end token above the first policy's, and a format reward."""
    base = mean(math.exp(b) for b in FIRST_B[:-1])
    r = [0.9 * max(0.0, mean(math.exp(l) for l in L[k][:-1]) - base) + 0.1 for k in range(K)]
    r = [r[k] if COMPLETE[k] else 0.0 for k in range(K)]
    r = [r[k] - 1.0 if REPETITIVE[k] and r[k] != 0 else r[k] for k in range(K)]
    a = [(r[k] - mean(r)) / (stdev(r) + 1e-6) for k in range(K)]
    w = [[0.0] * T for k in range(K)]
    trace = -sum(a[k] * sum(Z[k] + STOP[k] + SAMPLED[k]) for k in range(K)) / MEAN_TOKENS
    return outcome(a, w, trace)


def nover():
    """Rank of the lagging copy's perplexity, efficiency and format, among well-formed texts."""
    good = [k for k in range(K) if COMPLETE[k]]
    n = len(good)
    ppl = {k: math.exp(-sum(EMA_L[k]) / (T * max(1.0, 1.0 + math.log10(len(Z[k]))))) for k in good}
    r = [0.0] * K
    for rank, k in enumerate(sorted(good, key=lambda k: ppl[k])):
        beaten = sum(len(Z[j]) > len(Z[k]) and ppl[j] > ppl[k] for j in good)
        r[k] = (n - rank) / n + beaten / (n - 1) + 1.0
    a = [(r[k] - mean(r)) / (stdev(r) + 1e-4) for k in range(K)]
    w = [[0.0] * T for k in range(K)]
    trace, kl = 0.0, 0.0
    for k in range(K):
        tokens = Z[k] + STOP[k] + SAMPLED[k]
        trace -= a[k] * sum(tokens)
        for new, first in zip(tokens, FIRST_Z[k] + FIRST_STOP[k] + FIRST_SAMPLED[k], strict=True):
            kl += math.exp(first - new) - 1 - (first - new)
    return outcome(a, w, trace / MEAN_TOKENS, 0.1 * kl / MEAN_TOKENS)


def dro():
    """R3: log-probability above the masked trace's, weighted by the spread over the group.

    A truncated completion is masked: it counts in the group and is in no part of the loss."""
    sigma = [stdev(L[k][i] for k in range(K)) for i in range(T)]
    omega = [sigma[i] / sum(sigma) for i in range(T)]
    r = [sum(omega[i] * L[k][i] for i in range(T)) for k in range(K)]  # the masked trace's cancels
    eps = 1e-6 * max(abs(x) for x in r)
    a = [(r[k] - mean(r)) / (stdev(r) + eps) if COMPLETE[k] else 0.0 for k in range(K)]
    w = [[0.0] * T for k in range(K)]
    trace, kl = 0.0, 0.0
    for k in range(K):
        if not COMPLETE[k]:
            continue
        tokens = Z[k] + STOP[k] + SAMPLED[k]
        trace -= a[k] * sum(tokens)
        for new, first in zip(tokens, FIRST_Z[k] + FIRST_STOP[k] + FIRST_SAMPLED[k], strict=True):
            kl += math.exp(first - new) - 1 - (first - new)
    return outcome(a, w, trace, 1e-3 * kl)


def rlvr():
    """1 where the sampled answer is the reference and in the right format, else 0."""
    r = [1.0 if CORRECT[k] and COMPLETE[k] else 0.0 for k in range(K)]
    a = [(r[k] - mean(r)) / (stdev(r) + 1e-6 * max(r)) for k in range(K)]
    w = [[0.0] * T for k in range(K)]
    return outcome(a, w, -sum(a[k] * sum(Z[k] + STOP[k] + SAMPLED[k]) for k in range(K)))


# The same under the shared recipe: only f and its answer weight are the method's.


def shared(r, base, w):
    """The recipe of nrt-ws: relu above the empty trace, mean, std, 0.3 CE on a spliced tag."""
    size = max([abs(base)] + [abs(x) for x in r])
    r = [max(0.0, x - base) for x in r]
    a = [(x - mean(r)) / (stdev(r) + 1e-6 * size) for x in r]
    return shared_loss(a, w)


def shared_loss(a, w):
    trace = -sum(a[k] * sum(Z[k] + STOP[k]) for k in range(K))
    return outcome(a, w, trace, tag=0.3 * (4.0 + 2.5))


def avg_logp_shared():
    return shared([sum(L[k]) / T for k in range(K)], sum(B) / T, [[1 / T] * T for k in range(K)])


def verifree_shared():
    r = [math.prod(math.exp(l) for l in L[k]) for k in range(K)]
    return shared(r, math.prod(math.exp(b) for b in B), [[r[k]] * T for k in range(K)])


def jepo_shared():
    """The relu acts on S; its log-mean-exp is then centred by itself, and not again."""
    s, base = [sum(L[k]) for k in range(K)], sum(B)
    up = [max(0.0, x - base) for x in s]
    both = math.log(mean(math.exp(x) for x in up))
    a = [K * (both - math.log(mean(math.exp(x) for x in up[:k] + up[k + 1 :]))) for k in range(K)]
    size = max([abs(base)] + [abs(x) for x in s])
    a = [x / (stdev(a) + 1e-6 * size) for x in a]
    w = [[K * math.exp(s[k]) / sum(math.exp(x) for x in s)] * T for k in range(K)]
    return shared_loss(a, w)


def jepo_1_shared():
    return shared([sum(L[k]) for k in range(K)], sum(B), [[1.0] * T for k in range(K)])


def latro_shared():
    """The KL in the reward is that of all policy tokens: the trace and its stop decision."""
    r = [
        sum(L[k]) - 0.05 * (sum(Z[k] + STOP[k]) - sum(FIRST_Z[k] + FIRST_STOP[k])) for k in range(K)
    ]
    return shared(r, sum(B), [[1.0] * T for k in range(K)])


def rlpr_shared():
    r = [mean(math.exp(l) for l in L[k]) for k in range(K)]
    return shared(r, mean(math.exp(b) for b in B), [[0.0] * T for k in range(K)])


def nover_shared():
    """Ranks of the current policy's length-normalised probability after the relu; ties share."""
    norm = [max(1.0, 1.0 + math.log10(len(Z[k]))) for k in range(K)]
    r = [math.exp(sum(L[k]) / (T * norm[k])) for k in range(K)]
    base = math.exp(sum(B) / T)
    up = [max(0.0, x - base) for x in r]
    better = [sum(y > x for y in up) for x in up]
    same = [sum(y == x for y in up) for x in up]
    rank = [better[k] + (same[k] - 1) / 2 for k in range(K)]
    v = [(K - rank[k]) / K for k in range(K)]
    size = max([base, *r])
    a = [(v[k] - mean(v)) / (stdev(v) + 1e-6 * size) for k in range(K)]
    return shared_loss(a, [[0.0] * T for k in range(K)])


def dro_shared():
    sigma = [stdev(L[k][i] for k in range(K)) for i in range(T)]
    omega = [sigma[i] / sum(sigma) for i in range(T)]
    r = [sum(omega[i] * L[k][i] for i in range(T)) for k in range(K)]
    return shared(r, sum(omega[i] * B[i] for i in range(T)), [[0.0] * T for k in range(K)])


METHODS = {
    "avg-logp": avg_logp,
    "verifree": verifree,
    "jepo": jepo,
    "jepo-1": jepo_1,
    "latro": latro,
    "rlpr": rlpr,
    "nover": nover,
    "dro": dro,
    "rlvr": rlvr,
    "avg-logp@shared": avg_logp_shared,
    "verifree@shared": verifree_shared,
    "jepo@shared": jepo_shared,
    "jepo-1@shared": jepo_1_shared,
    "latro@shared": latro_shared,
    "rlpr@shared": rlpr_shared,
    "nover@shared": nover_shared,
    "dro@shared": dro_shared,
}
# The s of std + 1e-6·s is the size of the rewards; what that is for ranks is not settled.
RTOL = {"nover@shared": 1e-6}
CISPO = ["rlvr", *(name for name in METHODS if name.endswith("@shared"))]


def same(actual, expected, name=""):
    rtol = RTOL.get(name, 1e-9)
    torch.testing.assert_close(actual, float64(expected), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_advantages_and_answer_weights_are_the_formulas(name):
    expected = METHODS[name]()
    signal = preset_objective(name)(group(name))
    same(signal.advantages, expected.advantages, name)
    same(signal.answer_weights, expected.weights, name)
    assert signal.kept
    assert not signal.flat


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_the_formula(name):
    expected, objective, scores = METHODS[name](), preset_objective(name), group(name)
    terms = group_loss(scores, objective(scores), objective, None, MEAN_TOKENS)
    same(terms.trace, expected.trace, name)
    same(terms.answer, -sum(expected.weights[k][i] * L[k][i] for k in range(K) for i in range(T)))
    same(terms.format, expected.format)
    same(terms.kl, expected.kl)


@pytest.mark.parametrize("name", METHODS)
def test_policy_gradient_falls_on_the_methods_own_tokens(name):
    """On-policy every trained token pulls with its trace's advantage, and nothing else does."""
    expected, objective, scores = METHODS[name](), preset_objective(name), group(name)
    scores = replace(scores, trace=scores.trace.requires_grad_())
    terms = group_loss(scores, objective(scores), objective, None, MEAN_TOKENS)
    (gradient,) = torch.autograd.grad(terms.trace, scores.trace)
    divisor = MEAN_TOKENS if name in {"rlpr", "nover"} else 1.0
    pulls = []
    for k in range(K):
        trained = Z[k] if name == "latro" else Z[k] + STOP[k]
        trained = trained + SAMPLED[k] if name in ANSWERS_TOO else trained
        width = gradient.shape[1] - len(trained)
        pulls.append([-expected.advantages[k] / divisor] * len(trained) + [0.0] * width)
    same(gradient, pulls, name)


# Later updates of one rollout.


@pytest.mark.parametrize(("name", "low", "high"), [("rlpr", 0.8, 1.27), ("nover", 0.9, 1.2)])
def test_later_updates_are_clipped_as_in_ppo(name, low, high):
    """Per token the smaller of the plain and the clipped objective, over the step's mean length."""
    objective, scores = preset_objective(name), group(name)
    expected, clipped = METHODS[name](), 0
    trace = 0.0
    for k in range(K):
        a = expected.advantages[k]
        news = Z[k] + STOP[k] + SAMPLED[k]
        for new, old in zip(news, OLD_Z[k] + OLD_STOP[k] + OLD_SAMPLED[k], strict=True):
            rho = math.exp(new - old)
            bounded = min(max(rho, low), high)
            clipped += bounded * a < rho * a
            trace -= min(rho * a, bounded * a)
    assert clipped > 3
    terms = group_loss(scores, objective(scores), objective, rollout(name), MEAN_TOKENS)
    same(terms.trace, trace / MEAN_TOKENS)
    same(terms.kl, expected.kl)


@pytest.mark.parametrize(("name", "low", "high"), [("rlpr", 0.8, 1.27), ("nover", 0.9, 1.2)])
def test_a_clipped_token_has_no_policy_gradient(name, low, high):
    objective, scores = preset_objective(name), group(name)
    scores = replace(scores, trace=scores.trace.requires_grad_())
    terms = group_loss(scores, objective(scores), objective, rollout(name), MEAN_TOKENS)
    (gradient,) = torch.autograd.grad(terms.trace, scores.trace)
    advantages = METHODS[name]().advantages
    for k in range(K):
        a, pulls = advantages[k], []
        news = Z[k] + STOP[k] + SAMPLED[k]
        for new, old in zip(news, OLD_Z[k] + OLD_STOP[k] + OLD_SAMPLED[k], strict=True):
            rho = math.exp(new - old)
            out = (a > 0 and rho > high) or (a < 0 and rho < low)
            pulls.append(0.0 if out else -a * rho / MEAN_TOKENS)
        same(gradient[k], pulls + [0.0] * (gradient.shape[1] - len(pulls)))


@pytest.mark.parametrize("name", CISPO)
def test_later_updates_of_the_shared_recipe_are_those_of_the_released_code(name):
    objective, scores = preset_objective(name), group(name)
    advantages, trace = METHODS[name]().advantages, 0.0
    for k in range(K):
        a = advantages[k]
        news, olds = Z[k] + STOP[k], OLD_Z[k] + OLD_STOP[k]
        if name == "rlvr":
            news, olds = news + SAMPLED[k], olds + OLD_SAMPLED[k]
        for new, old in zip(news, olds, strict=True):
            rho = math.exp(new - old)
            if (a > 0 and rho > 1.28) or (a < 0 and rho < 0.8):
                continue
            trace -= min(max(rho, 0.8), 1.28) * a * new
    terms = group_loss(scores, objective(scores), objective, rollout(name), MEAN_TOKENS)
    same(terms.trace, trace, name)


# The KL divergence from the first policy.


@pytest.mark.parametrize(
    ("name", "beta"),
    [("jepo", 1e-3), ("jepo-1", 1e-3), ("dro", 1e-3), ("nover", 0.1 / MEAN_TOKENS)],
)
def test_kl_pulls_every_policy_token_towards_the_first_policy(name, beta):
    """k3 is e^d − 1 − d with d = log π_0 − log π, and its derivative by log π is 1 − e^d."""
    objective, scores = preset_objective(name), group(name)
    scores = replace(scores, trace=scores.trace.requires_grad_())
    terms = group_loss(scores, objective(scores), objective, None, MEAN_TOKENS)
    (gradient,) = torch.autograd.grad(terms.kl, scores.trace)
    for k in range(K):
        news, firsts = Z[k] + STOP[k], FIRST_Z[k] + FIRST_STOP[k]
        if name in ANSWERS_TOO:
            news, firsts = news + SAMPLED[k], firsts + FIRST_SAMPLED[k]
        pulls = [beta * (1 - math.exp(f - n)) for n, f in zip(news, firsts, strict=True)]
        if name == "dro" and not COMPLETE[k]:  # masked
            pulls = []
        same(gradient[k], pulls + [0.0] * (gradient.shape[1] - len(pulls)))


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"jepo", "jepo-1", "dro", "nover"}))
def test_other_rivals_have_no_kl_term(name):
    objective, scores = preset_objective(name), group(name)
    assert group_loss(scores, objective(scores), objective).kl.item() == 0


# NOVER: ties.


def equal_traces(answers, lengths=(5, 5, 5, 5)):
    """Well-formed traces of given lengths; the reference answer is judged as ``answers`` say."""
    n, z = len(answers), [[-0.5] * length for length in lengths]
    trace = joined(z, [[-0.1]] * n, [[-0.2]] * n)
    yes, no = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    lengths = torch.tensor(lengths)
    return Scores(
        trace=trace,
        trace_mask=torch.arange(trace.shape[1]) < (lengths + 2)[:, None],
        answer=float64(answers),
        baseline=float64([-3.0] * T),
        forced_tag=float64([0.0] * n),
        closed=yes,
        rounding=1e-12,
        trace_length=lengths,
        answer_length=torch.ones(n, dtype=torch.long),
        verdict=Verdict(complete=yes, correct=no, repetitive=no),
        frozen=Judgement(float64([-3.0] * T), trace=trace.clone()),
        ema=Judgement(float64([-3.0] * T), answer=float64(answers)),
    )


def test_nover_ranks_equal_traces_in_the_order_of_sampling():
    """Four equal traces get ranks 1, 3/4, 2/4, 1/4: the rank reward never goes quiet."""
    signal = preset_objective("nover")(equal_traces([[-1.0] * T] * 4))
    std = math.sqrt((0.375**2 + 0.125**2) * 2 / 3)
    same(signal.advantages, [x / (std + 1e-4) for x in (0.375, 0.125, -0.125, -0.375)])


def test_nover_ranks_two_equal_traces_among_others_in_the_order_of_sampling():
    answers = [[-2.0] * T, [-1.0] * T, [-0.5] * T, [-1.0] * T]
    signal = preset_objective("nover")(equal_traces(answers))
    std = math.sqrt((0.375**2 + 0.125**2) * 2 / 3)
    same(signal.advantages, [x / (std + 1e-4) for x in (-0.375, 0.125, 0.375, -0.125)])


def test_nover_shared_gives_equal_traces_nothing():
    scores = replace(equal_traces([[-1.0] * T] * 4), verdict=None, answer_length=None)
    signal = preset_objective("nover@shared")(scores)
    assert signal.advantages.tolist() == [0.0] * 4
    assert signal.flat


def test_nover_shared_gives_two_equal_traces_the_mean_of_their_ranks():
    """Best, two that share ranks 1 and 2 of 0..3, and the worst: 4/4, 2.5/4, 2.5/4, 1/4."""
    answers = [[-2.0] * T, [-1.0] * T, [-0.5] * T, [-1.0] * T]
    scores = replace(equal_traces(answers), verdict=None, answer_length=None)
    signal = preset_objective("nover@shared")(scores)
    assert signal.advantages[1] == signal.advantages[3]
    std = math.sqrt(0.375**2 * 2 / 3)
    expected = [-0.375 / std, 0.0, 0.375 / std, 0.0]
    torch.testing.assert_close(signal.advantages.tolist(), expected, rtol=1e-5, atol=1e-9)


def test_nover_efficiency_counts_only_strictly_longer_and_strictly_worse():
    """Only the third is longer and worse than another: than the first two, a third of the others.

    The second is worse than the first but as long; the fourth is longer than both but better.
    """
    answers = [[-0.5] * T, [-0.6] * T, [-2.0] * T, [-0.8] * T]
    signal = preset_objective("nover")(equal_traces(answers, (1, 1, 10, 10)))
    # log perplexities 0.5, 0.6, 2.0 / 2, 0.8 / 2: N is 1 for one token and 2 for ten
    r = [3 / 4 + 1 / 3 + 1, 2 / 4 + 1 / 3 + 1, 1 / 4 + 1, 4 / 4 + 1]
    same(signal.advantages, [(x - mean(r)) / (stdev(r) + 1e-4) for x in r])


def test_nover_norm_of_an_empty_trace_is_one():
    """Log perplexities 0.8, 1.2 / 2 and 0.7 for traces of no, ten and one token."""
    answers = [[-0.8] * T, [-1.2] * T, [-0.7] * T]
    signal = preset_objective("nover")(equal_traces(answers, (0, 10, 1)))
    r = [1 / 3 + 1, 3 / 3 + 1, 2 / 3 + 1]
    same(signal.advantages, [(x - mean(r)) / (stdev(r) + 1e-4) for x in r])


def test_nover_with_one_well_formed_text_gives_it_rank_and_format():
    complete = torch.tensor([k == 3 for k in range(K)])
    scores = group("nover")
    scores = replace(scores, verdict=replace(scores.verdict, complete=complete))
    r = [2.0 if k == 3 else 0.0 for k in range(K)]
    same(
        preset_objective("nover")(scores).advantages, [(x - mean(r)) / (stdev(r) + 1e-4) for x in r]
    )


# RLPR: the penalty of repetition.


def rlpr_rewards(repetitive, complete):
    base = mean(math.exp(b) for b in FIRST_B[:-1])
    rewards = []
    for k in range(K):
        r = 0.9 * max(0.0, mean(math.exp(l) for l in L[k][:-1]) - base) + 0.1
        r = r if complete[k] else 0.0
        rewards.append(r - 1.0 if repetitive[k] and r != 0.0 else r)
    return rewards


@pytest.mark.parametrize(
    "repetitive",
    [[False] * K, [True] * K, [k in (0, 5) for k in range(K)], [k in (1, 2, 6) for k in range(K)]],
)
def test_rlpr_takes_one_off_a_repetitive_text_unless_its_reward_is_zero(repetitive):
    """A text in a wrong format has reward 0 and so escapes the penalty, as in the source."""
    scores = group("rlpr")
    scores = replace(scores, verdict=replace(scores.verdict, repetitive=torch.tensor(repetitive)))
    r = rlpr_rewards(repetitive, COMPLETE)
    assert [k for k in range(K) if r[k] == 0] == [1, 2, 6]
    signal = preset_objective("rlpr")(scores)
    same(signal.advantages, [(x - mean(r)) / (stdev(r) + 1e-6) for x in r])


@pytest.mark.parametrize("name", sorted(ANSWERS_TOO - {"rlpr"}))
def test_others_do_not_look_at_repetition(name):
    scores = group(name)
    again = replace(scores, verdict=replace(scores.verdict, repetitive=~scores.verdict.repetitive))
    objective = preset_objective(name)
    assert torch.equal(objective(scores).advantages, objective(again).advantages)


# LaTRO: what belongs to z.


def test_latro_leaves_the_stop_decision_out_of_kl_and_gradient():
    """Neither the closing tag nor the end-of-turn token that ended a trace is part of z."""
    objective, scores = preset_objective("latro"), group("latro")
    signal = objective(scores)
    other = [[x - 3.0 for x in row] for row in FIRST_STOP]
    moved_stop = replace(scores, frozen=replace(scores.frozen, trace=joined(FIRST_Z, other)))
    same(objective(moved_stop).advantages, signal.advantages.tolist())
    assert objective(moved_stop).trace_weights is None or torch.equal(
        objective(moved_stop).trace_weights, signal.trace_weights
    )

    scores = replace(scores, trace=scores.trace.requires_grad_())
    terms = group_loss(scores, objective(scores), objective, None, MEAN_TOKENS)
    (gradient,) = torch.autograd.grad(terms.trace, scores.trace)
    for k in range(K):
        assert (gradient[k, : len(Z[k])] == -signal.advantages[k]).all()
        assert (gradient[k, len(Z[k]) :] == 0).all()


def test_latro_shared_trains_the_stop_decision_and_counts_it_in_the_kl():
    objective, scores = preset_objective("latro@shared"), group("latro@shared")
    signal = objective(scores)
    other = [[x - 3.0 for x in row] for row in FIRST_STOP]
    moved_stop = replace(scores, frozen=replace(scores.frozen, trace=joined(FIRST_Z, other)))
    assert not torch.allclose(objective(moved_stop).advantages, signal.advantages, atol=1e-3)
    scores = replace(scores, trace=scores.trace.requires_grad_())
    terms = group_loss(scores, objective(scores), objective, None, MEAN_TOKENS)
    (gradient,) = torch.autograd.grad(terms.trace, scores.trace)
    for k in range(K):
        n = len(Z[k]) + len(STOP[k])
        assert (gradient[k, :n] == -signal.advantages[k]).all()
        assert (gradient[k, n:] == 0).all()


# JEPO: two samples, far apart.


def two_traces(low, base=-200.0):
    """Two closed traces of one token and a tag; S is -3 after the first and ``low`` otherwise."""
    trace = float64([[-1.0, -0.5], [-0.7, -0.3]])
    return Scores(
        trace=trace,
        trace_mask=torch.ones(2, 2, dtype=torch.bool),
        answer=float64([[-0.75] * T, [low / T] * T]),
        baseline=float64([base / T] * T),
        forced_tag=float64([0.0, 0.0]),
        closed=torch.tensor([True, True]),
        rounding=1e-12,
        trace_length=torch.tensor([1, 1]),
        frozen=Judgement(float64([base / T] * T), trace=trace - 0.1),
    )


@pytest.mark.parametrize("low", [-300.0, -3000.0])
def test_jepo_of_two_samples_far_apart(low):
    """LME(both) = -3 - log 2, so A = 2 (-3 - log 2 - low) and -2 log 2; the first has all weight.

    Its e^-3000 is 0 in float64: without logsumexp the gain would be infinite.
    """
    objective, scores = preset_objective("jepo"), two_traces(low)
    signal = objective(scores)
    gain = [2 * (-3 - math.log(2) - low), -2 * math.log(2)]
    std = stdev(gain) + 1e-6 * -low
    same(signal.advantages, [1.0, gain[1] / std])  # the first is clipped: it is about sqrt 2
    torch.testing.assert_close(
        signal.answer_weights, float64([[2.0] * T, [2 * math.exp(low + 3)] * T]), rtol=1e-9, atol=0
    )
    scores = replace(
        scores, trace=scores.trace.requires_grad_(), answer=scores.answer.requires_grad_()
    )
    terms = group_loss(scores, signal, objective)
    same(terms.answer.detach(), 2 * 3.0)
    same(terms.trace.detach(), 1.5 + gain[1] / std)
    same(terms.kl.detach(), 1e-3 * 4 * (math.exp(-0.1) - 1 + 0.1))
    for gradient in torch.autograd.grad(terms.total(), (scores.trace, scores.answer)):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("low", [-300.0, -3000.0])
def test_jepo_shared_of_two_samples_far_apart(low):
    """Above S_base = -200 they are worth 197 and 0: A is 2 (197 - log 2) and -2 log 2, by std."""
    signal = preset_objective("jepo@shared")(two_traces(low))
    gain = [2 * (197 - math.log(2)), -2 * math.log(2)]
    std = stdev(gain) + 1e-6 * -low
    same(signal.advantages, [x / std for x in gain])
    torch.testing.assert_close(
        signal.answer_weights, float64([[2.0] * T, [2 * math.exp(low + 3)] * T]), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("name", ["jepo", "jepo@shared"])
def test_jepo_of_two_equal_samples_weights_both_alike_and_prefers_none(name):
    signal = preset_objective(name)(two_traces(-3.0))
    assert signal.advantages.tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    same(signal.answer_weights, [[1.0] * T] * 2)
