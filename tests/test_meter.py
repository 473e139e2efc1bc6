"""Means of a step: by hand, and the same however the groups are dealt out."""

import math
import random
from dataclasses import replace

import pytest
import torch

import tiny
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import make_template
from native_reasoning.objective.losses import LossTerms
from native_reasoning.objective.types import Scores, Signal
from native_reasoning.records.meter import Meter, means, trace_rows
from native_reasoning.records.metrics import one_kind

TEMPLATE = make_template(tiny.byte_tokenizer())
TAG = TEMPLATE.boundary.close_ids[0]


def case(traces, answer, baseline, rewards, base, flat=False, clamped=0.0):
    answer = torch.tensor(answer, requires_grad=True)
    k = len(answer)
    scores = Scores(
        trace=-torch.arange(1.0, k + 1)[:, None],
        trace_mask=torch.ones(k, 1, dtype=torch.bool),
        answer=answer,
        baseline=torch.tensor(baseline),
        forced_tag=torch.zeros(k),
        closed=torch.tensor(traces.closed),
    )
    zero = torch.zeros(k)
    signal = Signal(
        torch.tensor(rewards), torch.tensor(base), zero, zero, flat=flat, clamped=clamped
    )
    example = Example((("user", "?"),), "", row_id=0, line=1)
    group = PromptGroup(example, (1,), (*range(11, 10 + answer.shape[1]), TEMPLATE.end_ids[0]))
    return group, traces, scores, signal


ONE = case(
    Traces(((11, 12, TAG), (11, 12, TAG), (TAG,), ()), (True, True, True, False)),
    [[-1.0, -3.0], [-1.0, -1.0], [-2.0, -2.0], [-2.0, -2.0]],
    [-2.0, -2.0],
    [0.4, 0.6, 0.2, 0.2],
    0.2,
)
TWO = case(
    Traces(((11,) * 6, (12,)), (False, False)),
    [[-4.0], [-2.0]],
    [-1.0],
    [0.1, 0.1],
    0.5,
    flat=True,
    clamped=1.0,
)
EXPECTED = {
    "reward": (0.4 + 0.6 + 0.2 + 0.2 + 0.1 + 0.1) / 6,
    "reward_baseline": (0.2 + 0.5) / 2,
    "helped": 2 / 6,
    "answer_logp": (-2 - 1 - 2 - 2 - 4 - 2) / 6,
    "uplift": (0 + 1 + 0 + 0 - 3 - 1) / 6,
    "trace_length": (3 + 3 + 1 + 0 + 6 + 1) / 6,
    "closed": 3 / 6,
    "short": 1.0,
    "trace_entropy": (1 + 2 + 3 + 4 + 1 + 2) / 6,  # one token of each trace
    "empty": 2 / 6,  # closed at once or ended at once; one open token is a trace
    "ended": 0.0,
    "distinct": (3 + 2) / 6,
    "flat_groups": 1 / 2,
    "narrow_groups": 1 / 2,
    "clamped_baseline": 1 / 2,
    "underflow": 0.0,
    "kept_groups": 1.0,
    "answer_weight": 0.0,
}


def test_means_of_two_groups_by_hand():
    meter = Meter()
    for parts in (ONE, TWO):
        meter.add_group(*parts, TEMPLATE)
    got = means([meter.sums()])
    assert got == pytest.approx(EXPECTED, abs=1e-6)
    assert meter.sums() == {}  # a fresh start


@pytest.mark.parametrize(
    ("rewards", "spread", "narrow"),
    [
        ([0.52, 0.5, 0.5], 0.012, True),
        ([0.6, 0.4, 0.5], 0.1, False),
        ([-5.0, -5.1, -5.0], 0.06, True),  # logarithms
        ([0.6, 0.4, 0.5], 0.0, False),  # an objective of the user's own need not say
    ],
)
def test_rewards_that_hardly_differ(rewards, spread, narrow):
    group, traces, scores, signal = ONE
    meter = Meter()
    changed = replace(signal, rewards=torch.tensor(rewards), spread=spread, flat=False)
    meter.add_group(group, traces, scores, changed, TEMPLATE)
    assert means([meter.sums()])["narrow_groups"] == narrow


def test_means_over_ranks_equal_means_over_all_groups():
    first, second = Meter(), Meter()
    first.add_group(*ONE, TEMPLATE)
    second.add_group(*TWO, TEMPLATE)
    assert means([first.sums(), second.sums()]) == pytest.approx(EXPECTED, abs=1e-6)


def test_rank_without_a_group_changes_no_mean():
    meter = Meter()
    meter.add_group(*ONE, TEMPLATE)
    meter.add_group(*TWO, TEMPLATE)
    parts = [meter.sums(), {}]
    assert means(parts) == pytest.approx(EXPECTED, abs=1e-6)
    assert means(parts[::-1]) == pytest.approx(EXPECTED, abs=1e-6)


def test_grouping_into_micro_batches_does_not_matter():
    random.seed(0)
    values = [(random.random(), random.randint(1, 5)) for _ in range(20)]
    whole = Meter()
    for total, count in values:
        whole.add("x", total, count)
    parts = []
    for i in range(0, 20, 7):
        meter = Meter()
        for total, count in values[i : i + 7]:
            meter.add("x", torch.tensor(total, dtype=torch.float64), count)
        parts.append(meter.sums())
    expected = math.fsum(t for t, _ in values) / sum(c for _, c in values)
    assert means(parts)["x"] == pytest.approx(expected)
    assert means([whole.sums()])["x"] == pytest.approx(expected)


def test_loss_terms_are_added_up_with_their_weights():
    meter = Meter()
    first = torch.tensor(2.0, requires_grad=True)
    terms = LossTerms(first, torch.tensor(3.0), torch.tensor(-1.0), torch.tensor(0.5))
    meter.add_loss(terms, 0.25)
    meter.add_loss(terms, 0.5)
    got = means([meter.sums()])
    assert got == {"loss_trace": 1.5, "loss_answer": 2.25, "loss_format": -0.75, "loss_kl": 0.375}


def test_trace_rows_hold_what_the_group_has():
    _, traces, scores, signal = ONE
    example = Example((("user", "What?"),), "it", row_id=7, line=3)
    answer = (*TEMPLATE.tokenizer("it", add_special_tokens=False)["input_ids"], 2)
    group = PromptGroup(example, (5, 6), answer)
    rows = trace_rows(4, group, traces, scores, signal, TEMPLATE)
    assert [row.k for row in rows] == [0, 1, 2, 3]
    assert {(r.step, r.row_id, r.prompt, r.answer) for r in rows} == {(4, 7, "What?", "it")}
    assert [row.closed for row in rows] == [True, True, True, False]
    assert [row.length for row in rows] == [3, 3, 1, 0]
    text = TEMPLATE.tokenizer.decode([11, 12])
    assert [row.trace for row in rows] == [text, text, "", ""]
    assert [row.reward for row in rows] == pytest.approx([0.4, 0.6, 0.2, 0.2])
    assert [list(row.answer_logps) for row in rows] == scores.answer.tolist()
    assert all(list(row.baseline_logps) == [-2.0, -2.0] for row in rows)
    assert rows[0].baseline_reward == pytest.approx(0.2)
    assert rows[0].advantage == 0
    assert rows[0].answer_tokens == TEMPLATE.token_texts(answer)
    assert rows[0].answer_tokens[-1] == "<|im_end|>"


def test_shares_of_kinds_of_tokens_by_hand():
    """Three traces; the answer is a digit, a space and the end of the turn."""
    ids = TEMPLATE.tokenizer("4 ", add_special_tokens=False)["input_ids"]
    assert TEMPLATE.token_texts(ids) == ("4", " ")
    traces = Traces(((11, TAG), (12, TAG), (TAG,)), (True,) * 3)
    group, _, scores, signal = case(traces, [[-1.0] * 3] * 3, [-2.0] * 3, [0.0] * 3, 0.0)
    group = replace(group, answer_ids=(*ids, TEMPLATE.end_ids[0]))
    rewards = torch.tensor([[0.1, 0.0, 0.9], [0.2, 0.1, 0.1], [0.0, 0.2, 0.0]])
    apart = [x - 1.6 / 3 for x in (1.0, 0.4, 0.2)]
    variance = sum(x * x for x in apart)
    meter = Meter()
    meter.add_group(group, traces, scores, replace(signal, token_rewards=rewards), TEMPLATE)
    got = means([meter.sums()])
    for kind, part in (("end", [0.9, 0.1, 0.0]), ("space", [0.0, 0.1, 0.2])):
        spread = sum(p * x for p, x in zip(part, apart, strict=True)) / variance
        assert got[f"reward_share_{kind}"] == pytest.approx(sum(part) / 1.6)
        assert got[f"spread_share_{kind}"] == pytest.approx(spread)
    flat = replace(signal, token_rewards=rewards, flat=True)
    meter.add_group(group, traces, scores, flat, TEMPLATE)
    assert not any("share" in name for name in meter.sums())


def test_more_than_half_is_said_with_what_to_set():
    assert one_kind({"reward_share_end": 0.4, "spread_share_end": 0.5}) == {}
    (told,) = one_kind({"reward_share_end": 0.96, "spread_share_end": 1.07}).values()
    assert told.startswith("the end-of-turn token has 96 % of the reward and 107 % of its spread")
    assert "--objective.reward-span answer" in told
    both = {"reward_share_end": 0.7, "reward_share_space": 0.1, "spread_share_space": 0.51}
    end, told = one_kind(both).values()
    assert end.startswith("the end-of-turn token has 70 % of the reward: ")
    assert told.startswith("white space has 10 % of the reward and 51 % of its spread")
    assert "--format-warmup-steps" in told
