"""VLLMEngine's contract, with engines that need no vLLM (``make vllm-check`` runs vLLM)."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from native_reasoning.config.errors import ConfigError, RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import make_template
from native_reasoning.objective.types import Scores
from native_reasoning.records.folder import read_metrics
from native_reasoning.records.meter import Meter, means
from native_reasoning.rollout.engine import NoiseKey, Sampling
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.vllm import Completion, VLLMEngine
from native_reasoning.training.trainer import NRTTrainer
from pretended import drawn
from tiny import QA, byte_tokenizer, tiny_model
from watchers import Killed, KillIn

SAMPLING = Sampling(num_generations=3, max_tokens=12)
KEY = NoiseKey(seed=5, step=2)


class Fake(VLLMEngine):
    """Draws from a copy of ``model``, made anew when it is woken; keeps what it was asked.

    ``stale``: it never follows the model. ``lies`` is added to every log-probability.
    """

    def __init__(self, model, template, stale=False, lies=0.0):
        super().__init__(model, None, template, None)
        self.stale, self.lies = stale, lies
        self.copy, self.awake, self.asked, self.woken = None, False, [], []

    def wake(self):
        if self.copy is None or not self.stale:
            self.copy = copy.deepcopy(self.model).eval()
        self.awake = True
        self.woken.append(weights_of(self.copy))

    def sleep(self):
        self.awake = False

    def generate(self, requests):
        assert self.awake
        self.asked += requests
        return [self._one(request) for request in requests]

    def _one(self, request):
        r = request
        said = (r.prompt, r.seed, r.temperature, r.max_tokens, r.stop_ids)
        ids, logps = drawn(self.copy, self.template.vocabulary, *said)
        return Completion(tuple(ids), tuple(logp + self.lies for logp in logps))


class Scripted(VLLMEngine):
    """Replies with what it was given."""

    def __init__(self, template, *replies):
        super().__init__(None, None, template, None)
        self.replies, self.asked = [Completion(ids, (-1.0,) * len(ids)) for ids in replies], []

    def wake(self): ...

    def sleep(self): ...

    def generate(self, requests):
        self.asked += requests
        return self.replies[: len(requests)]


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def template(boundary="auto"):
    return make_template(byte_tokenizer(think=boundary != "text"), boundary=boundary)


def groups_of(*rows):
    return [
        PromptGroup(Example((("user", "?"),), "4", row, row + 1), (40 + row, 41, 42), (52, 2))
        for row in rows
    ]


# -- Requests --------------------------------------------------------------------------------------


def seeds(engine, groups, key=KEY):
    engine.asked.clear()
    with engine.ready():
        engine.rollout(groups, SAMPLING, key)
    asked = engine.asked
    return {(r.prompt, k % 3): r.seed for k, r in enumerate(asked)}, asked


def test_each_trace_is_a_request_with_a_seed_of_its_own():
    made = template()
    engine = Fake(tiny_model(), made)
    found, asked = seeds(engine, groups_of(0, 7, 3))
    assert len(asked) == len({*found.values()}) == 9
    assert [r.prompt for r in asked[::3]] == [g.prompt_ids for g in groups_of(0, 7, 3)]
    assert {(r.temperature, r.top_p, r.max_tokens) for r in asked} == {(1.0, 1.0, 12)}
    assert all(0 <= seed < 2**63 for seed in found.values())
    assert any(seed >= 2**62 for seed in found.values())  # all 63 bits
    alone, _ = seeds(engine, groups_of(7))
    assert alone.items() <= found.items()
    for other in (replace(KEY, step=3), replace(KEY, seed=6), replace(KEY, domain=1)):
        assert not {*seeds(engine, groups_of(0, 7, 3), other)[0].values()} & {*found.values()}


def test_the_traces_of_an_answer_go_on_from_the_trace_they_stand_after():
    made = template()
    engine = Scripted(made, *[(made.end_ids[0],)] * 4)
    one = replace(SAMPLING, num_generations=1)
    engine.sample([[50], [50]], [4, 4], one, KEY, made.stop_answer, [0, 2])
    first, second = (r.seed for r in engine.asked)
    engine.sample([[50]], [4], replace(SAMPLING, num_generations=3), KEY, made.stop_answer)
    assert [r.seed for r in engine.asked[2:]][::2] == [first, second] and first != second


@pytest.mark.parametrize("boundary", ["auto", "text"])
def test_vllm_is_told_the_tokens_that_end_a_sequence_wherever_they_stand(boundary):
    made = template(boundary)
    engine = Scripted(made, (made.end_ids[0],))
    one = replace(SAMPLING, num_generations=1)
    engine.rollout(groups_of(0), one, KEY)
    engine.sample([[50]], [0], one, KEY, made.stop_answer)
    tags = () if boundary == "text" else made.boundary.close_ids
    assert [r.stop_ids for r in engine.asked] == [(*made.end_ids, *tags), made.end_ids]


# -- Replies ---------------------------------------------------------------------------------------


def test_a_trace_is_closed_ended_or_cut_at_the_limit():
    made = template()
    (close,), end = made.boundary.close_ids, made.end_ids[0]
    engine = Scripted(made, (50, 51, close), (50, end), (50,) * 12)
    (traces,) = engine.rollout(groups_of(0), SAMPLING, KEY)
    assert traces == Traces(
        ids=((50, 51, close), (50,), (50,) * 12),
        closed=(True, False, False),
        ended=(None, end, None),
        sampler_logps=((-1.0,) * 3, (-1.0,) * 2, (-1.0,) * 12),
    )
    assert tuple(map(len, traces.sampler_logps)) == traces.lengths


def test_a_tag_that_is_text_is_cut_where_it_closes():
    made = template("text")
    tag = made.boundary.close_ids
    assert len(tag) > 1
    whole = (50, *tag, 60, 61)
    engine = Scripted(made, whole + (60,) * (12 - len(whole)))
    (traces,) = engine.rollout(groups_of(0), replace(SAMPLING, num_generations=1), KEY)
    assert (traces.ids, traces.closed) == (((50, *tag),), (True,))
    assert len(traces.sampler_logps[0]) == 1 + len(tag)


def test_a_sequence_that_ended_for_no_reason_is_an_error():
    with pytest.raises(RunError, match="after 2 of 12 tokens"):
        Scripted(template(), (50, 51)).rollout(
            groups_of(0), replace(SAMPLING, num_generations=1), KEY
        )


def test_a_token_that_is_padding_of_the_embedding_is_an_error():
    made = template()
    with pytest.raises(RunError, match="does not have"):
        Scripted(made, (made.vocabulary,) * 12).rollout(
            groups_of(0), replace(SAMPLING, num_generations=1), KEY
        )


@pytest.mark.parametrize("boundary", ["auto", "text"])
def test_greedy_traces_are_those_of_the_models_own_engine(boundary):
    made, model = template(boundary), tiny_model()
    own = HFEngine(model, made.stop_trace, made.vocabulary)
    engine = Fake(model, made)
    greedy = replace(SAMPLING, temperature=0.0)
    with engine.ready():
        theirs = engine.rollout(groups_of(0, 3, 9), greedy, KEY)
    for one, other in zip(own.rollout(groups_of(0, 3, 9), greedy, KEY), theirs, strict=True):
        assert replace(other, sampler_logps=()) == one


# -- Training --------------------------------------------------------------------------------------


def trained(folder, callbacks=None, resume=None, fake=None, **settings):
    values = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_generations": 2,
        "max_trace_length": 6,
        "max_answer_length": 16,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "max_steps": 3,
        "save_steps": 1,
        "diagnostics_steps": 0,
        "use_cpu": True,
        **settings,
    }
    args = NRTConfig(output_dir=str(folder), **values)
    trainer = NRTTrainer(tiny_model(), args, QA, None, byte_tokenizer(), callbacks=callbacks)
    engine = trainer.collector.engine = Fake(trainer.model, trainer.template, **(fake or {}))
    trainer.train(resume_from_checkpoint=resume)
    return trainer, engine


def steps(folder):
    return [line for line in read_metrics(folder) if "loss" in line]


def test_each_rollout_is_sampled_by_the_weights_of_its_step(tmp_path):
    trainer, engine = trained(tmp_path)
    assert len(engine.woken) == 3 and not engine.awake
    first, second, third = engine.woken
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert not torch.equal(third, weights_of(trainer.model))
    assert len(engine.asked) == 3 * 4 * 2
    for line in steps(tmp_path):
        assert 0 <= line["mismatch_kl"] < 1e-9 and line["mismatch_max"] < 1e-4


def test_weights_that_do_not_arrive_show_as_a_mismatch(tmp_path):
    trained(tmp_path, fake={"stale": True})
    first, second, third = (line["mismatch_kl"] for line in steps(tmp_path))
    assert first < 1e-9 and min(second, third) > 1e-3


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}, {"preset": "rlpr"}], ids=str)
def test_what_the_sampler_says_of_its_tokens_changes_nothing(tmp_path, settings):
    honest, _ = trained(tmp_path / "honest", **settings)
    liar, _ = trained(tmp_path / "liar", fake={"lies": 0.5}, **settings)
    assert torch.equal(weights_of(honest.model), weights_of(liar.model))
    apart = ("mismatch_kl", "mismatch_max")
    for one, other in zip(steps(tmp_path / "honest"), steps(tmp_path / "liar"), strict=True):
        assert {k: v for k, v in one.items() if k not in apart} == {
            k: v for k, v in other.items() if k not in apart
        }
        assert other["mismatch_max"] == pytest.approx(0.5, abs=1e-4)
        assert other["mismatch_kl"] == pytest.approx(math.exp(-0.5) - 0.5, abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"steps_per_generation": 4, "max_steps": 4}], ids=str)
def test_a_resumed_run_wakes_vllm_with_the_weights_of_the_checkpoint(tmp_path, settings):
    whole, engine = trained(tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", [KillIn(1)], **settings)
    resumed, again = trained(tmp_path / "cut", resume=True, **settings)
    assert torch.equal(weights_of(resumed.model), weights_of(whole.model))
    assert [*map(float, again.woken[-1])] == [*map(float, engine.woken[-1])]
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")


def test_the_models_own_sampler_logs_no_mismatch(tmp_path):
    args = NRTConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True, max_trace_length=6)
    NRTTrainer(tiny_model(), args, QA, None, byte_tokenizer()).train()
    assert steps(tmp_path)
    assert not {"mismatch_kl", "mismatch_max"} & {name for s in steps(tmp_path) for name in s}


def test_mismatch_by_hand():
    trace = torch.tensor([[-1.0, -2.0, -3.0], [-1.5, 0.0, 0.0]])
    mask = torch.tensor([[True] * 3, [True, False, False]])
    scores = Scores(trace, mask, torch.zeros(2, 1), torch.zeros(1), torch.zeros(2), mask[:, 0])
    traces = Traces(((5, 6, 9), ()), (True, False), (None, 2), (), ((-1.1, -2.0, -2.8), (-1.5,)))
    meter, other = Meter(), Meter()
    meter.add_mismatch(traces, scores)
    d = torch.tensor([0.1, 0.0, -0.2, 0.0], dtype=torch.float64)
    kl = float((d.exp() - 1 - d).sum())
    found = meter.sums()
    assert means([found]) == pytest.approx({"mismatch_kl": kl / 4, "mismatch_max": 0.2}, abs=1e-6)
    other.add_mismatch(replace(traces, sampler_logps=()), scores)
    assert other.sums() == {}
    parts = [found, {"mismatch_kl": [0.1, 1], "mismatch_max": [0.7, 0]}]
    expected = {"mismatch_kl": (kl + 0.1) / 5, "mismatch_max": 0.7}
    assert means(parts) == pytest.approx(expected, abs=1e-6)


# -- Settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_vllm": True, "vllm_mode": "serve"}, "did you mean 'server'"),
        ({"use_vllm": True, "vllm_gpu_memory_utilization": 1.5}, "it must be from"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        NRTConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_a_missing_package_is_told_before_training(tmp_path):
    pytest.importorskip("trl")
    args = NRTConfig(output_dir=str(tmp_path), use_cpu=True, use_vllm=True, max_trace_length=6)
    with pytest.raises(ConfigError, match="needs the package vllm"):
        NRTTrainer(tiny_model(), args, QA, None, byte_tokenizer())
