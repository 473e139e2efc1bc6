"""The controls: advantages that are dealt out at random, and the format alone."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from scipy.stats import chisquare

from native_reasoning.config.errors import RunError
from native_reasoning.objective.credit import preset_objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.types import Signal
from native_reasoning.records.folder import read_metrics, read_traces
from test_papers import FORCED, group
from test_trainer import make


def advantages(folder, **settings) -> dict[tuple, list[float]]:
    """Of each group of the first step, with what its traces are worth."""
    make(folder, max_steps=1, **settings).train()
    found = defaultdict(list)
    for row in read_traces(folder).to_pylist():
        found[row["row_id"], row["baseline_reward"]].append((row["reward"], row["advantage"]))
    return found


@pytest.mark.parametrize("preset", ["nrt-ws", "avg-logp"])
def test_permuted_advantages_are_the_groups_own_on_other_traces(preset, tmp_path):
    plain = advantages(tmp_path / "plain", preset=preset)
    dealt = advantages(tmp_path / "dealt", preset=preset, advantages="permuted")
    assert plain.keys() == dealt.keys()
    moved = 0
    for about, pairs in plain.items():
        rewards, own = zip(*pairs, strict=True)
        same, others = zip(*dealt[about], strict=True)
        assert rewards == same
        assert sorted(own) == sorted(others)
        moved += own != others
    assert moved > 0
    again = advantages(tmp_path / "again", preset=preset, advantages="permuted")
    assert again == dealt
    other = advantages(tmp_path / "other", preset=preset, advantages="permuted", seed=1)
    assert other != dealt


def test_every_order_is_equally_likely_and_depends_on_seed_step_and_row(tmp_path):
    objective = make(tmp_path, preset="permuted").objective
    signal = replace(Signal.nothing(group()), advantages=torch.tensor([0.0, 1.0, 2.0]))
    places = [(row, step) for row in range(60) for step in range(60)]
    dealt = {place: tuple(objective._dealt(signal, *place).advantages.tolist()) for place in places}
    counts = Counter(dealt.values())
    assert set(counts) == set(permutations([0.0, 1.0, 2.0]))
    assert chisquare([*counts.values()]).pvalue > 0.001
    assert dealt[3, 4] == tuple(objective._dealt(signal, 3, 4).advantages.tolist())
    assert len({dealt[3, step] for step in range(60)}) == 6
    assert len({dealt[row, 3] for row in range(60)}) == 6


def test_weights_of_tokens_cannot_be_dealt_out(tmp_path):
    objective = make(tmp_path, preset="permuted").objective
    signal = replace(Signal.nothing(group()), trace_weights=torch.zeros(4, 2))
    with pytest.raises(RunError, match="permuted with trace_weights"):
        objective._dealt(signal, 0, 0)


def test_format_only_trains_closing_tags_that_were_spliced_in_and_nothing_else(tmp_path):
    objective = preset_objective("format-only")
    scores = group(requires_grad=True)
    terms = group_loss(scores, objective(scores), objective)
    assert terms.trace.item() == terms.answer.item() == 0
    assert terms.format.item() == pytest.approx(-0.3 * sum(FORCED))
    gradients = torch.autograd.grad(terms.total(), (scores.trace, scores.answer, scores.forced_tag))
    assert not gradients[0].any()
    assert not gradients[1].any()
    assert (gradients[2] == -0.3).all()

    make(tmp_path, preset="format-only").train()  # and it trains
    first = read_metrics(tmp_path)[0]
    assert first["loss_format"] > 0
    assert first["loss_trace"] == first["loss_answer"] == 0
