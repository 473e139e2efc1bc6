"""Each preset is a literal transcription of its paper's formula, in plain Python."""

import math

import pytest
import torch

from native_reasoning.config.papers import PRESETS
from native_reasoning.objective.credit import preset_objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.types import Scores

#: log-probabilities of three answer tokens after four traces, and after none
L = [[-0.7, -0.1, -3.9], [-1.4, -0.5, -1.2], [-2.3, -0.05, -4.9], [-0.4, -4.6, -0.5]]
B = [-1.6, -0.2, -2.0]
TRACE = [[-1.0, -0.5], [-2.0, -0.3], [-0.7, 0.0], [-1.1, -0.9]]
LENGTHS = [2, 2, 1, 2]
FORCED = [0.0, -4.0, 0.0, 0.0]  # the second trace did not close itself
FAMILY = {
    "nrt-ws": "ws",
    "nrt-ws-inverse": "inverse",
    "nrt-gm": "gm",
    "nrt-am": "am",
    "nrt-logp": "logp",
    "nrt-p": "p",
}


def group(**gradients):
    def tensor(values):
        return torch.tensor(values, dtype=torch.float64, **gradients)

    return Scores(
        trace=tensor(TRACE),
        trace_mask=torch.tensor([[n > i for i in range(2)] for n in LENGTHS]),
        answer=tensor(L),
        baseline=tensor(B),
        forced_tag=tensor(FORCED),
        closed=torch.tensor([t == 0 for t in FORCED]),
        rounding=1e-12,
    )


def reward(kind, l, b):
    t = len(l)
    c, p = [math.exp(x) for x in l], [math.exp(x) for x in b]
    if kind == "logp":
        return math.log(math.prod(c))
    if kind == "p":
        return math.prod(c)
    if kind == "gm":
        return math.prod(c) ** (1 / t)
    if kind == "am":
        return sum(c) / t
    if kind == "inverse":
        return sum(x / y for x, y in zip(c, p, strict=True)) / t
    return sum(x * -y for x, y in zip(c, b, strict=True)) / t


def exact_weights(kind, l, b):
    t = len(l)
    c = [math.exp(x) for x in l]
    if kind == "logp":
        return [1.0] * t
    if kind == "p":
        return [math.prod(c)] * t
    if kind == "gm":
        return [math.prod(c) ** (1 / t) / t] * t
    if kind == "am":
        return [x / t for x in c]
    if kind == "inverse":
        return [x / math.exp(y) / t for x, y in zip(c, b, strict=True)]
    return [x * -y / t for x, y in zip(c, b, strict=True)]


def standardise(r, size):
    mean = sum(r) / len(r)
    std = math.sqrt(sum((x - mean) ** 2 for x in r) / (len(r) - 1))
    return [(x - mean) / (std + 1e-6 * size) for x in r]


def transcription(kind, variant):
    """A (K,) and w (K, T) of one NRT preset; "" is ours, "-paper" and "-released" the others."""
    r, base = [reward(kind, l, B) for l in L], reward(kind, B, B)
    helps = [x > base for x in r]
    size = max(abs(x) for x in r)
    if variant != "-released":  # the relu on R - R_base, and its size counts
        size = max(size, abs(base))
        r = [max(0.0, x - base) for x in r]
    exact = [exact_weights(kind, l, B) if h else [0.0] * 3 for l, h in zip(L, helps, strict=True)]
    weights = exact if variant == "-paper" else [[1.0] * 3] * 4
    return standardise(r, size), weights


@pytest.mark.parametrize("variant", ["", "-paper", "-released"])
@pytest.mark.parametrize("name", FAMILY)
def test_nrt_preset_is_its_row(name, variant):
    objective = preset_objective(name + variant)
    advantages, weights = transcription(FAMILY[name], variant)
    signal = objective(group())
    torch.testing.assert_close(signal.advantages.tolist(), advantages, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(signal.answer_weights.tolist(), weights, rtol=1e-9, atol=1e-9)
    assert not signal.flat
    assert signal.clamped == 0

    loss = group_loss(group(), signal, objective)
    trace = -sum(a * sum(row[:n]) for a, row, n in zip(advantages, TRACE, LENGTHS, strict=True))
    answer = -sum(
        w * l for ws, ls in zip(weights, L, strict=True) for w, l in zip(ws, ls, strict=True)
    )
    assert loss.trace.item() == pytest.approx(trace, rel=1e-9)
    assert loss.answer.item() == pytest.approx(answer, rel=1e-9)
    assert loss.format.item() == pytest.approx(0.3 * 4.0, rel=1e-12)


@pytest.mark.parametrize("variant", ["", "-paper", "-released"])
@pytest.mark.parametrize("name", FAMILY)
def test_nrt_presets_correct_later_updates_as_the_released_code_does(name, variant):
    objective = preset_objective(name + variant)
    assert (objective.ratio, objective.ratio_low, objective.ratio_high) == ("cispo", 0.8, 1.28)
    assert objective.traces == "sampled"
    assert objective.baseline == ("none" if variant == "-released" else "current")
    advantages, _ = transcription(FAMILY[name], variant)
    old = torch.tensor([[-1.5, -0.5], [-1.0, -0.3], [-1.0, 0.0], [-1.1, -0.5]]).double()
    expected = 0.0
    for a, row, before, n in zip(advantages, TRACE, old.tolist(), LENGTHS, strict=True):
        for new, was in zip(row[:n], before[:n], strict=True):
            rho = math.exp(new - was)
            if (a > 0 and rho > 1.28) or (a < 0 and rho < 0.8):
                continue
            expected -= min(max(rho, 0.8), 1.28) * a * new
    loss = group_loss(group(), objective(group()), objective, old)
    assert loss.trace.item() == pytest.approx(expected, rel=1e-9)


def test_sft_trains_the_answer_after_an_empty_trace_and_nothing_else():
    objective = preset_objective("sft")
    assert objective.traces == "empty"
    signal = objective(group())
    terms = group_loss(group(), signal, objective)
    assert terms.trace.item() == 0
    assert terms.format.item() == 0
    assert terms.answer.item() == pytest.approx(-sum(map(sum, L)))


def test_sft_think_trains_the_answer_after_sampled_traces_and_nothing_else():
    objective = preset_objective("sft-think")
    assert objective.traces == "sampled"
    scores = group(requires_grad=True)
    terms = group_loss(scores, objective(scores), objective)
    assert terms.trace.item() == 0
    assert terms.answer.item() == pytest.approx(-sum(map(sum, L)))
    assert terms.format.item() == 0
    gradients = torch.autograd.grad(terms.total(), (scores.trace, scores.answer))
    assert (gradients[0] == 0).all()
    assert (gradients[1] == -1).all()


def test_the_default_is_the_papers_best_reward_with_weight_one():
    default, paper = preset_objective("nrt-ws"), preset_objective("nrt-ws-paper")
    assert (default.reward, default.answer_weight) == ("weighted_neglog", "one")
    assert (paper.reward, paper.answer_weight, paper.answer_gate) == (
        "weighted_neglog",
        "exact",
        "relu",
    )
    rivals = {"avg-logp", "verifree", "jepo", "jepo-1", "latro", "rlpr", "nover", "dro"}
    assert {name + form for name in FAMILY for form in ("", "-paper", "-released")} <= set(PRESETS)
    assert rivals | {f"{name}@shared" for name in rivals} <= set(PRESETS)
    controls = {"rlvr", "sft", "sft-think", "format-only", "permuted"}
    assert controls <= set(PRESETS)
    assert len(PRESETS) == 3 * len(FAMILY) + 2 * len(rivals) + len(controls)
