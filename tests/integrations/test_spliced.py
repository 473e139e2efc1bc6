"""Rows of whole sequences give the signal and the gradient that our own scores give."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from native_reasoning.config.errors import ConfigError
from native_reasoning.config.papers import PRESETS
from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.integrations.demands import (
    ACTOR,
    LOSS_KEY,
    NAME,
    ROLLOUT,
    check_config,
    check_objective,
    loss_mode,
    missing,
    objective_name,
    supported,
)
from native_reasoning.integrations.spliced import (
    Layout,
    SplicedRows,
    credit,
    cut,
    gather,
    splice,
    splice_nothing,
    spliced_loss,
)
from native_reasoning.objective.credit import Objective, preset_objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.types import Judgement, Scores, Signal
from spliced_rows import GAP, ROUNDING, TEXT, batch, model, own_scores, spliced

(TAG,), (TURN, EOS) = GAP.boundary.close_ids, GAP.end_ids
TEMPLATES = pytest.mark.parametrize("template", [GAP, TEXT], ids=["token", "text"])


def gradients(of):
    return torch.cat([p.grad.flatten() for p in of.parameters() if p.grad is not None])


def assert_same_gradient(found, expected):
    """Up to the rounding of layers that go through float32 whatever the weights are."""
    ours = gradients(expected)
    assert torch.isfinite(ours).all() and ours.norm() > 1e-6
    assert (gradients(found) - ours).norm() <= 3e-6 * ours.norm()


# -- One row ---------------------------------------------------------------------------------------


def test_a_trace_ends_where_it_stopped_whatever_the_server_adds():
    assert cut(GAP, [61, 62, TAG, 90]) == ((61, 62, TAG), "closed")
    assert cut(GAP, [61, TURN, TAG]) == ((61,), "ended")
    assert cut(GAP, [61, EOS]) == ((61,), "ended")
    assert cut(GAP, [61, 62]) == ((61, 62), "limit")
    assert cut(GAP, []) == ((), "limit")
    close = TEXT.boundary.close_ids
    assert cut(TEXT, [61, *close, 80, 81]) == ((61, *close), "closed")


@TEMPLATES
def test_rows_hold_the_trace_the_tag_and_the_answer(template):
    (group, _), _ = batch(template)
    tag, gap, answer = template.boundary.close_ids, template.gap_ids, group.answer_ids
    n, t = len(tag), len(answer)
    closed = splice(template, group, (61, 62, *tag), closed=True)
    assert closed.ids == (61, 62, *tag, *gap, *answer)
    assert closed.layout == Layout(2 + n, 0, 2 + n + len(gap), t, 2, closed=True)
    assert closed.sampled == [1] * (2 + n) + [0] * (len(gap) + t)
    opened = splice(template, group, (61, 62), closed=False)
    assert opened.ids == closed.ids
    assert opened.layout == Layout(2, n, 2 + n + len(gap), t, 2, closed=False)
    assert opened.sampled == [1, 1] + [0] * (n + len(gap) + t)
    empty = splice_nothing(template, group)
    assert empty.ids == (*tag, *gap, *answer)
    assert empty.layout == Layout(0, n, n + len(gap), t, 0, closed=True, empty=True)
    assert not any(empty.sampled)


# -- Scores, signal and gradient -------------------------------------------------------------------


def assert_same_scores(found: Scores, own: Scores):
    for name in ("trace", "answer", "baseline", "forced_tag", "trace_length"):
        torch.testing.assert_close(getattr(found, name), getattr(own, name).detach(), msg=name)
    assert torch.equal(found.trace_mask, own.trace_mask)
    assert torch.equal(found.closed, own.closed)


@TEMPLATES
def test_scores_read_off_rows_are_those_of_our_own_forward(template):
    groups, traces = batch(template)
    rows, vocabulary = spliced(template, groups, traces), template.vocabulary
    with torch.no_grad():
        found = gather(rows.rows(rows.logps(model(), vocabulary)), ROUNDING)
        own = own_scores(model(), template, groups, traces)
    assert [one.empty for one in found] == [0, 4]
    assert [tuple(one.traces) for one in found] == [(1, 2, 3), (5, 6, 7)]
    for one, scores in zip(found, own, strict=True):
        assert_same_scores(one.scores, scores)


def test_the_decision_to_end_the_turn_is_all_that_rows_lack():
    groups, traces = batch(GAP)
    ended = (replace(traces[0], ended=(None, TURN, EOS)), traces[1])
    rows = spliced(GAP, groups, ended)
    with torch.no_grad():
        (one, _) = gather(rows.rows(rows.logps(model(), GAP.vocabulary)), ROUNDING)
        (own, _) = own_scores(model(), GAP, groups, ended)
    assert own.trace_mask.sum(-1).tolist() == [4, 3, 1]
    assert one.scores.trace_mask.sum(-1).tolist() == [4, 2, 0]
    assert_same_scores(
        one.scores,
        replace(own, trace=own.trace * one.scores.trace_mask, trace_mask=one.scores.trace_mask),
    )


def both_losses(objective: Objective, template=GAP, drift: float = 0.0):
    """(ours, theirs): a model with the gradient of each loss, and its signals and weights.

    With ``drift``, weights are made from log-probabilities of a policy that was ``drift`` away.
    """
    groups, traces = batch(template)
    rows, n = spliced(template, groups, traces), 6
    mine, yours, first, sampler = model(), model(), model(1), model()
    with torch.no_grad():
        for p in sampler.parameters():
            p.add_(drift * torch.randn(p.shape, dtype=p.dtype, generator=torch.manual_seed(3)))
        reference = rows.logps(first, template.vocabulary)
        trace_0 = [one.trace for one in own_scores(first, template, groups, traces)]
        old = rows.logps(sampler, template.vocabulary)
        earlier = [
            replace(scores, frozen=Judgement(scores.baseline, trace=trace))
            for scores, trace in zip(
                own_scores(sampler, template, groups, traces), trace_0, strict=True
            )
        ]
    given = credit(rows.rows(old, reference), objective, ROUNDING)
    new = rows.logps(yours, template.vocabulary)
    (spliced_loss(new, old, given.weights, rows.sampled, objective).sum() / n).backward()
    signals = objective.of_groups(earlier)
    total = torch.zeros((), dtype=torch.float64)
    now = own_scores(mine, template, groups, traces)
    for scores, before, signal in zip(now, earlier, signals, strict=True):
        scores = replace(scores, frozen=before.frozen)
        old_trace = before.trace if drift else None
        total = total + group_loss(scores, signal, replace(objective, beta=0), old_trace).total()
    (total / n).backward()
    return mine, yours, signals, given


@pytest.mark.parametrize("name", supported())
def test_signal_and_gradient_are_those_of_our_own_trainer(name):
    objective = preset_objective(name)
    mine, yours, signals, given = both_losses(objective)
    assert_same_gradient(yours, mine)
    places = [(1, 2, 3), (5, 6, 7)]
    for signal, empty, rows in zip(signals, (0, 4), places, strict=True):
        torch.testing.assert_close(given.rewards[list(rows)], signal.rewards)
        torch.testing.assert_close(given.rewards[empty], signal.baseline_reward)
        assert not given.weights[empty].any()
    rewards = torch.cat([s.rewards for s in signals]).mean()
    assert given.metrics["reward"] == pytest.approx(float(rewards), abs=1e-12)
    assert given.metrics["closed"] == 0.5 and given.metrics["dropped_prompts"] == 0


@pytest.mark.parametrize("ratio", ["none", "cispo", "ppo"])
@pytest.mark.parametrize("length_norm", ["token_sum", "sequence_mean"])
def test_a_later_update_has_the_ratio_on_sampled_tokens_alone(ratio, length_norm):
    objective = Objective(ratio=ratio, length_norm=length_norm, ratio_low=0.99, ratio_high=1.01)
    mine, yours, *_ = both_losses(objective, drift=0.02)
    assert_same_gradient(yours, mine)


@TEMPLATES
def test_the_boundary_may_be_text(template):
    mine, yours, *_ = both_losses(preset_objective("nrt-ws-paper"), template)
    assert_same_gradient(yours, mine)


class Weighted(Objective):
    """Weights of its own for tokens, and a second prompt that is left out."""

    def of_groups(self, scores):
        signals = super().of_groups(scores)
        own = scores[0].trace_mask * torch.arange(1.0, 1 + scores[0].trace.shape[1])
        return [replace(signals[0], trace_weights=own), replace(signals[1], kept=False)]


def test_weights_of_single_tokens_and_groups_that_are_left_out_count():
    mine, yours, signals, given = both_losses(Weighted())
    assert given.weights[1, :4].tolist() == [1, 2, 3, 4]
    assert not given.weights[4:].any()
    assert_same_gradient(yours, mine)
    assert isinstance(signals[1], Signal) and not signals[1].kept


# -- A batch ---------------------------------------------------------------------------------------


def random_rows():
    rows = spliced(GAP, *batch(GAP))
    with torch.no_grad():
        return rows.rows(rows.logps(model(), GAP.vocabulary))


def test_the_order_of_rows_and_rows_that_fill_up_change_nothing():
    rows, objective = random_rows(), preset_objective("nrt-ws")
    expected = credit(rows, objective, ROUNDING)
    order = [6, 2, 0, 7, 5, 3, 4, 1]
    logps = torch.cat([rows.logps[order], torch.full((2, rows.logps.shape[1]), -3.0).double()])
    mixed = SplicedRows(
        logps,
        [*(rows.layouts[i] for i in order), None, None],
        [*(rows.groups[i] for i in order), "pad", "pad"],
    )
    found = credit(mixed, objective, ROUNDING)
    assert torch.equal(found.weights[:8], expected.weights[order])
    assert torch.equal(found.rewards[:8], expected.rewards[order])
    assert not found.weights[8:].any() and not found.rewards[8:].any()
    assert found.metrics == pytest.approx(dict(expected.metrics))


@pytest.mark.parametrize("lost", [(0,), (1, 2, 3)], ids=["empty trace", "traces"])
def test_a_prompt_that_lost_its_rows_is_left_out_and_counted(lost):
    rows, objective = random_rows(), preset_objective("nrt-ws")
    left = [i for i in range(8) if i not in lost]
    found = credit(
        SplicedRows(
            rows.logps[left], [rows.layouts[i] for i in left], [rows.groups[i] for i in left]
        ),
        objective,
        ROUNDING,
    )
    first = [place for place, i in enumerate(left) if i < 4]
    assert first and not found.weights[first].any()
    assert found.weights[len(first) :].any()
    assert found.metrics["dropped_prompts"] == 1


# -- What is refused -------------------------------------------------------------------------------


def test_what_verl_cannot_give_is_refused_by_name():
    refused = {"rlpr", "nover", "dro", "rlvr", "sft", "permuted"}
    assert set(supported()) == set(PRESETS) - refused
    for name in refused:
        with pytest.raises(ConfigError, match=f"objective '{name}' cannot be trained inside verl"):
            check_objective(name, PRESETS[name].settings)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"scored_by": "ema"}, "lagging copy"),
        ({"baseline": "ema"}, "lagging copy"),
        ({"repetition_penalty": 1.0}, "text of the traces"),
        ({"advantages": "permuted"}, "seed"),
        ({"filter": "ema_std"}, "running mean"),
        ({"length_norm": "token_mean"}, "mean length"),
        ({"traces": "empty"}, "no trace"),
        ({"reward": "exact_match"}, "sampled after the trace"),
        ({"beta": 0.1, "bad_format": "mask"}, "KL"),
        ({"beta": 0.1, "policy_tokens": "trace"}, "KL"),
    ],
)
def test_each_thing_that_is_missing_has_its_reason(settings, why):
    assert why in str(missing(ObjectiveSettings(**settings)))


GOOD = {
    LOSS_KEY: loss_mode("nrt-ws"),
    f"{ROLLOUT}.n": 9,
    f"{ROLLOUT}.temperature": 1.0,
    f"{ROLLOUT}.agent.default_agent_loop": NAME,
    "algorithm.adv_estimator": "grpo",
    f"{ACTOR}.use_kl_loss": False,
}
WITH_KL = {
    f"{ACTOR}.use_kl_loss": True,
    f"{ACTOR}.kl_loss_type": "low_var_kl",
    f"{ACTOR}.loss_agg_mode": "seq-mean-token-sum",
    f"{ACTOR}.kl_loss_coef": 0.001125,
}


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        (f"{ROLLOUT}.n", 1, "n=9"),
        (f"{ROLLOUT}.temperature", 0.7, "temperature=1.0"),
        (f"{ROLLOUT}.agent.default_agent_loop", "single_turn_agent", f"default_agent_loop={NAME}"),
        ("algorithm.rollout_correction.bypass_mode", True, "bypass_mode=False"),
        ("algorithm.rollout_correction.rollout_is", "token", "rollout_is=None"),
        ("algorithm.filter_groups.enable", True, "enable=False"),
        ("critic.enable", True, "critic.enable=False"),
        ("algorithm.adv_estimator", "gae", "critic.enable=False"),
    ],
)
def test_a_configuration_that_would_train_something_else_is_refused(key, value, fix):
    settings = PRESETS["nrt-ws"].settings
    check_config(GOOD.get, settings)
    with pytest.raises(ConfigError) as caught:
        check_config({**GOOD, key: value}.get, settings)
    assert str(caught.value).endswith(fix)


@pytest.mark.parametrize("key", WITH_KL)
def test_the_first_policy_is_asked_of_verl_where_it_is_needed(key):
    settings = PRESETS["jepo"].settings
    check_config({**GOOD, **WITH_KL}.get, settings)
    with pytest.raises(ConfigError, match=key):
        check_config({**GOOD, **WITH_KL, key: None}.get, settings)


def test_the_loss_of_another_trainer_is_refused():
    assert objective_name(GOOD.get) == "nrt-ws"
    with pytest.raises(ConfigError, match=r"fix: .*loss_mode=native_reasoning/nrt-ws"):
        objective_name({LOSS_KEY: "vanilla"}.get)


@pytest.mark.skipif(importlib.util.find_spec("verl") is not None, reason="verl is installed")
def test_without_verl_the_plugin_says_what_to_do():
    with pytest.raises(ConfigError, match="verl cannot be imported") as caught:
        importlib.import_module("native_reasoning.integrations.verl")
    assert "docs/verl.md" in caught.value.fix
