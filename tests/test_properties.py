"""What must not change a loss or its gradient: padding, order, batching, sharing, scoring first."""

import contextlib
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from groups_of_scores import full_scores
from native_reasoning.config.papers import PRESETS
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import make_template
from native_reasoning.objective.credit import preset_objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.verdicts import read
from native_reasoning.scoring.judges import Judges
from native_reasoning.scoring.packing import LAYOUTS
from native_reasoning.scoring.scorer import Scorer, install_scoring

TEMPLATE = make_template(tiny.byte_tokenizer())
TAG, END = TEMPLATE.boundary.close_ids[0], TEMPLATE.end_ids[0]
#: One preset of every kind of reward, baseline, token set and copy.
PRESETS_OF_ALL_KINDS = [
    "nrt-ws",
    "nrt-p-paper",
    "verifree",
    "jepo",
    "latro",
    "rlpr",
    "nover",
    "dro",
]

seeds = st.integers(0, 10_000)


def of_group(scores, objective):
    """The loss and its gradient by the trace and answer log-probabilities."""
    trace = scores.trace.detach().clone().requires_grad_()
    answer = scores.answer.detach().clone().requires_grad_()
    tag = scores.forced_tag.detach().clone().requires_grad_()
    scores = replace(scores, trace=trace, answer=answer, forced_tag=tag)
    loss = group_loss(scores, objective(scores), objective, mean_tokens=3.0).total()
    grads = torch.autograd.grad(loss, (trace, answer, tag), allow_unused=True)
    zeros = (torch.zeros_like(x) for x in (trace, answer, tag))
    return loss.item(), [z if g is None else g for g, z in zip(grads, zeros, strict=True)]


def padded(tensor, width, value=0.0):
    extra = torch.full((len(tensor), width), value, dtype=tensor.dtype)
    return torch.cat([tensor, extra], dim=1)


@settings(max_examples=25, deadline=None)
@given(preset=st.sampled_from(sorted(PRESETS)), seed=seeds, width=st.integers(1, 5))
def test_padding_changes_nothing(preset, seed, width):
    objective = preset_objective(preset)
    one = full_scores(dtype=torch.float64, seed=seed)
    frozen = replace(one.frozen, trace=padded(one.frozen.trace, width))
    wide = replace(
        one,
        trace=padded(one.trace, width),
        trace_mask=padded(one.trace_mask, width, False),
        frozen=frozen,
    )
    loss, gradients = of_group(one, objective)
    other, wider = of_group(wide, objective)
    assert other == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(wider[0][:, :-width], gradients[0], rtol=1e-12, atol=1e-15)
    assert wider[0][:, -width:].abs().max() == 0
    torch.testing.assert_close(wider[1], gradients[1], rtol=1e-12, atol=1e-15)


@settings(max_examples=25, deadline=None)
@given(preset=st.sampled_from(sorted(PRESETS)), seed=seeds, data=st.data())
def test_the_order_of_traces_changes_nothing(preset, seed, data):
    objective = preset_objective(preset)
    one = full_scores(dtype=torch.float64, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(len(one.answer)))))
    moved = replace(
        one,
        **{
            name: getattr(one, name)[order]
            for name in ("trace", "trace_mask", "answer", "forced_tag", "closed")
        },
        trace_length=one.trace_length[order],
        answer_length=one.answer_length[order],
        verdict=type(one.verdict)(*(t[order] for t in vars(one.verdict).values())),
        frozen=replace(one.frozen, trace=one.frozen.trace[order]),
        ema=replace(one.ema, answer=one.ema.answer[order]),
    )
    loss, gradients = of_group(one, objective)
    other, permuted = of_group(moved, objective)
    assert other == pytest.approx(loss, rel=1e-9, abs=1e-12)
    for a, b in zip(permuted, gradients, strict=True):
        torch.testing.assert_close(a, b[order], rtol=1e-8, atol=1e-11)


# -- Through a model -------------------------------------------------------------------------------


@cache
def models():
    """A policy in float64, and another model as its first policy and its lagging copy."""
    policy, other = tiny.tiny_model(seed=0).double(), tiny.tiny_model(seed=1).double()
    for model in (policy, other):
        install_scoring(model)
        model.eval()
    return policy, other


def scorer(layout="shared"):
    return Scorer(TEMPLATE, torch.device("cpu"), 1.0, (layout,), 1e-12)


def scored(groups, traces, objective, layout="shared"):
    """Scores with all that the objective asks."""
    policy, other = models()
    score = scorer(layout)
    found = score(policy, groups, traces)
    if objective.needs_frozen or objective.needs_ema:
        found = Judges(other, objective, score, contextlib.nullcontext).attach(
            found, groups, traces
        )
    if objective.reads_text:
        verdicts = [read(g, t, TEMPLATE) for g, t in zip(groups, traces, strict=True)]
        found = [replace(s, verdict=v) for s, v in zip(found, verdicts, strict=True)]
    return found


def gradient(total):
    policy, _ = models()
    found = torch.autograd.grad(total, list(policy.parameters()), allow_unused=True)
    pairs = zip(found, policy.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def fused(groups, traces, objective, layout="shared"):
    """Rewards and loss out of one forward pass."""
    found = scored(groups, traces, objective, layout)
    return gradient(
        sum(group_loss(s, objective(s), objective, mean_tokens=4.0).total() for s in found)
    )


def score_first(groups, traces, objective):
    """Scores without gradients, then a loss with what was remembered of them."""
    with torch.no_grad():
        before = scored(groups, traces, objective)
    signals = [objective(s) for s in before]
    found = scored(groups, traces, objective)
    return gradient(
        sum(
            group_loss(s, signal, objective, old.trace, 4.0).total()
            for s, signal, old in zip(found, signals, before, strict=True)
        )
    )


@st.composite
def batches(draw):
    """Two or three prompts, each with three traces: closed and answered, closed at once, open."""
    token = st.integers(50, 80)

    def ids(least, most):
        return tuple(draw(st.lists(token, min_size=least, max_size=most)))

    groups, traces = [], []
    for row in range(draw(st.integers(2, 3))):
        example = Example((("user", "?"),), "!", row_id=row, line=row)
        groups.append(PromptGroup(example, ids(2, 9), (*ids(1, 4), END)))
        ended = draw(st.sampled_from([None, END]))
        traces.append(
            Traces(
                ids=((*ids(0, 5), TAG), (TAG,), ids(1, 6)),
                closed=(True, True, False),
                ended=(None, None, ended),
                answers=((*ids(1, 3), END), ids(1, 3), ()),
            )
        )
    return groups, traces


def agree(one, other, tolerance=1e-9):
    assert (one - other).norm() <= tolerance * max(one.norm(), 1e-12)


@settings(max_examples=15, deadline=None)
@given(preset=st.sampled_from(PRESETS_OF_ALL_KINDS), batch=batches())
def test_packed_rows_are_plain_rows(preset, batch):
    objective = preset_objective(preset)
    *others, plain = (fused(*batch, objective, layout=layout) for layout in LAYOUTS)
    for other in others:
        agree(other, plain, 1e-6)  # the model's norms compute in float32, whatever its weights are


@settings(max_examples=15, deadline=None)
@given(preset=st.sampled_from(PRESETS_OF_ALL_KINDS), batch=batches())
def test_micro_batches_add_up(preset, batch):
    objective = preset_objective(preset)
    groups, traces = batch
    alone = sum(fused([g], [t], objective) for g, t in zip(groups, traces, strict=True))
    agree(fused(groups, traces, objective), alone)


@settings(max_examples=15, deadline=None)
@given(preset=st.sampled_from(PRESETS_OF_ALL_KINDS), batch=batches())
def test_scoring_first_is_the_fused_pass(preset, batch):
    objective = preset_objective(preset)
    one = fused(*batch, objective)
    assert one.norm() > 0
    agree(one, score_first(*batch, objective))
