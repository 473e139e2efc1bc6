"""Copies of the policy: what they say, how one follows, and that the other stays."""

import contextlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import tiny
from lab_run import lab_trainer
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import make_template
from native_reasoning.demo import base_path
from native_reasoning.model.policy import fingerprint
from native_reasoning.objective.credit import preset_objective
from native_reasoning.scoring.judges import EMA, Judges
from native_reasoning.scoring.scorer import Scorer, install_scoring

TEMPLATE = make_template(tiny.byte_tokenizer())
TAG, END = TEMPLATE.boundary.close_ids[0], TEMPLATE.end_ids[0]
EXAMPLE = Example((("user", "?"),), "!", row_id=0, line=1)
GROUPS = [PromptGroup(EXAMPLE, (50, 51, 52), (60, 61, END)), PromptGroup(EXAMPLE, (53,), (62, END))]
TRACES = [Traces(((70, 71, TAG), (72,)), (True, False)), Traces(((TAG,), (73, TAG)), (True, True))]


def scorer():
    return Scorer(TEMPLATE, torch.device("cpu"), 1.0, ("shared",), 1e-5)


def judges(preset, model=None, **changes):
    model = model or tiny.tiny_model(seed=1)
    install_scoring(model)
    settings = replace(preset_objective(preset), **changes)
    return Judges(model, settings, scorer(), contextlib.nullcontext), model


def logps(model, row, count):
    """log π of the last ``count`` tokens of a row, from a plain forward."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0, :, : TEMPLATE.vocabulary]
    found = logits[:-1].log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0]
    return found[-count:]


@pytest.mark.parametrize(
    ("preset", "frozen", "ema"),
    [
        ("rlpr", (True, False), None),
        ("jepo", (True, True), None),
        ("latro", (True, True), None),
        ("nover", (True, True), (True, True)),
        ("nrt-ws", None, None),
    ],
)
def test_copies_say_what_a_plain_forward_of_them_says(preset, frozen, ema):
    made, model = judges(preset)
    policy = tiny.tiny_model(seed=0)
    install_scoring(policy)
    scores = made.attach(scorer()(policy, GROUPS, TRACES), GROUPS, TRACES)
    for s, group, traces in zip(scores, GROUPS, TRACES, strict=True):
        for judgement, asked in ((s.frozen, frozen), (s.ema, ema)):
            assert (judgement is not None) == (asked is not None)
            if judgement is None:
                continue
            row = [*group.prompt_ids, TAG, *group.answer_ids]
            expected = logps(model, row, len(group.answer_ids))
            torch.testing.assert_close(judgement.baseline, expected, rtol=1e-5, atol=2e-5)
            assert not judgement.baseline.requires_grad
            assert not torch.allclose(judgement.baseline, s.baseline)  # the policy is another
        if s.frozen is not None:
            assert (s.frozen.trace is not None) == frozen[1]
            assert s.frozen.answer is None
        if s.frozen is not None and s.frozen.trace is not None:
            row = [*group.prompt_ids, *traces.ids[1]]
            n = len(traces.ids[1])
            torch.testing.assert_close(
                s.frozen.trace[1, :n], logps(model, row, n), rtol=1e-5, atol=2e-5
            )
        if s.ema is not None:
            closing = () if traces.closed[0] else (TAG,)
            row = [*group.prompt_ids, *traces.ids[0], *closing, *group.answer_ids]
            expected = logps(model, row, len(group.answer_ids))
            torch.testing.assert_close(s.ema.answer[0], expected, rtol=1e-5, atol=2e-5)
            assert s.ema.trace is None


def test_a_lagging_baseline_alone_needs_no_answers():
    made, _ = judges("nrt-ws", baseline="ema")
    policy = tiny.tiny_model(seed=0)
    install_scoring(policy)
    for s in made.attach(scorer()(policy, GROUPS, TRACES), GROUPS, TRACES):
        assert s.frozen is None
        assert s.ema.answer is None
        assert s.ema.baseline.shape == s.baseline.shape


def test_the_lagging_copy_follows_and_the_first_policy_stays():
    made, model = judges("nover", ema_decay=0.9, ema_steps=2)
    first = {n: p.clone() for n, p in model.named_parameters()}
    policy = tiny.tiny_model(seed=2)
    second = dict(policy.named_parameters())
    made.follow(policy, 1)
    assert all(torch.equal(p, first[n]) for n, p in made.ema.named_parameters())
    made.follow(policy, 2)
    for n, p in made.ema.named_parameters():
        torch.testing.assert_close(p, 0.9 * first[n] + 0.1 * second[n].detach())
    assert all(torch.equal(p, first[n]) for n, p in made.frozen.named_parameters())
    assert not any(p.requires_grad for p in (*made.ema.parameters(), *made.frozen.parameters()))


@pytest.mark.parametrize("tied", [False, True])
def test_the_lagging_copy_is_saved_and_comes_back(tied, tmp_path):
    made, model = judges("nover", tiny.tiny_model(seed=3, tie_word_embeddings=tied))
    made.save(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / EMA)) != tied  # once, whatever is tied
    other, _ = judges("nover", tiny.tiny_model(seed=4, tie_word_embeddings=tied))
    other.load(tmp_path)
    pairs = zip(other.ema.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_nothing_is_saved_or_followed_without_a_lagging_copy(tmp_path):
    made, model = judges("jepo")
    made.follow(model, 100)
    made.save(tmp_path)
    made.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_first_policy_stays_when_the_policy_moves():
    one, model = judges("jepo")
    mark = fingerprint(one.frozen)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert fingerprint(one.frozen) == mark != fingerprint(model)
    assert judges("nrt-ws")[0].frozen is None


def test_the_mixture_of_four_steps_by_hand():
    """Every two steps nine tenths stay: 0.9·(0.9·w₀ + 0.1·w₂) + 0.1·w₄."""
    made, model = judges("nover", ema_decay=0.9, ema_steps=2)
    frozen = fingerprint(made.frozen)
    policy = tiny.tiny_model(seed=2)
    for step in range(1, 6):
        with torch.no_grad():
            for p in policy.parameters():
                p.fill_(float(step))
        made.follow(policy, step)
    first = dict(model.named_parameters())
    for n, p in made.ema.named_parameters():
        expected = 0.9 * (0.9 * first[n].detach() + 0.1 * 2) + 0.1 * 4
        torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-6)
    assert fingerprint(made.frozen) == frozen
    assert all(torch.equal(p, first[n]) for n, p in made.frozen.named_parameters())


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_the_ends_of_the_decay(decay):
    made, model = judges("nover", ema_decay=decay, ema_steps=1)
    policy = tiny.tiny_model(seed=2)
    made.follow(policy, 1)
    source = dict((model if decay else policy).named_parameters())
    for n, p in made.ema.named_parameters():
        torch.testing.assert_close(p, source[n].detach(), rtol=1e-6, atol=1e-7)


def test_a_tied_copy_that_moved_comes_back_and_goes_on_alike(tmp_path):
    made, _ = judges("nover", tiny.tiny_model(seed=3, tie_word_embeddings=True), ema_steps=1)
    policy = tiny.tiny_model(seed=5, tie_word_embeddings=True)
    made.follow(policy, 1)
    made.save(tmp_path)
    other, _ = judges("nover", tiny.tiny_model(seed=4, tie_word_embeddings=True), ema_steps=1)
    other.load(tmp_path)
    for one in (made, other):
        one.follow(policy, 2)
    one, two = (dict(j.ema.named_parameters()) for j in (made, other))
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert other.ema.lm_head.weight is other.ema.model.embed_tokens.weight


def test_copies_do_not_train_and_leave_the_models_mode_alone():
    made, model = judges("nover")
    policy = tiny.tiny_model(seed=0).train()
    install_scoring(policy)
    scores = scorer()(policy, GROUPS, TRACES)
    attached = made.attach(scores, GROUPS, TRACES)
    assert policy.training
    assert not made.frozen.training
    assert not made.ema.training
    assert all(p.requires_grad for p in model.parameters())
    sum(s.answer.sum() + s.frozen.baseline.sum() + s.ema.answer.sum() for s in attached).backward()
    assert all(p.grad is None for p in (*made.frozen.parameters(), *made.ema.parameters()))
    assert any(p.grad is not None for p in policy.parameters())
    for one, before in zip(attached, scores, strict=True):
        assert one.answer is before.answer  # the policy's own numbers are as they were


def test_training_moves_the_policy_and_never_the_first_policy(tmp_path):
    trainer = lab_trainer(tmp_path / "run", preset="jepo")
    made = trainer.objective.judges
    base = load_file(base_path() / "model.safetensors")
    mark = fingerprint(made.frozen)
    trainer.train()
    assert fingerprint(made.frozen) == mark
    named = dict(made.frozen.named_parameters())
    found = {n for n in named if n in base and base[n].shape == named[n].shape}
    assert len(found) > 10
    assert all(torch.equal(named[n], base[n]) for n in found)
    policy = dict(trainer.model.named_parameters())
    assert any(not torch.equal(policy[n], base[n]) for n in found)


def test_a_run_mixes_the_lagging_copy_from_its_own_checkpoints(tmp_path):
    """E_t = 0.9·E_{t−1} + 0.1·W_t after every second step, W_t the checkpoint's model."""
    folder = tmp_path / "run"
    lab_trainer(
        folder,
        preset="nover",
        ema_steps=2,
        max_steps=4,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=None,
    ).train()
    steps = [folder / f"checkpoint-{i}" for i in (1, 2, 3, 4)]
    copies = [load_file(step / EMA) for step in steps]
    models = [load_file(step / "model.safetensors") for step in steps]
    for n in copies[0]:
        assert torch.equal(copies[1][n], copies[2][n])  # nothing happens in an odd step
        for i in (1, 3):
            expected = 0.9 * copies[i - 1][n] + 0.1 * models[i][n]
            torch.testing.assert_close(copies[i][n], expected, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(copies[0][n], copies[1][n]) for n in copies[0])
