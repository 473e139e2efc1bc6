"""Scores off the sampler's caches against those of a forward of its own."""

from dataclasses import replace

import pytest
import torch

import tiny
from native_reasoning.data.rows import Example, PromptGroup
from native_reasoning.data.template import make_template
from native_reasoning.rollout.engine import NoiseKey, Sampling
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.scoring.rating import Rater
from native_reasoning.scoring.scorer import Scorer, install_scoring

KINDS = ["llama", "gpt2", "mistral", "qwen3"]


def qwen():
    tokenizer = tiny.byte_tokenizer(think=True)
    tokenizer.chat_template = tiny.QWEN3
    return make_template(tokenizer)


TEMPLATES = {
    "tag": make_template(tiny.byte_tokenizer()),
    "gap": qwen(),
    "text": make_template(tiny.byte_tokenizer(), boundary="text"),
}


def rated(kind, template, temperature, seed=0, batch=None, k=6):
    """Traces, their scores off the caches, and those of a forward, in float64."""
    model = tiny.tiny_model(kind).double().eval()
    install_scoring(model)
    end = template.end_ids[0]
    example = Example((("user", "?"),), "!", row_id=0, line=1)
    prompts = (range(50, 73), (90, 91, 92), range(100, 112))  # longer and shorter than windows of 8
    answers = ((40, 41, 42, end), (30, end), (5, 6, 7, 8, 9, 10, 11, 12, 13, end))
    groups = [
        PromptGroup(replace(example, row_id=i), tuple(p), a)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]
    tag = template.boundary.close_ids

    def stop(ids):  # often, and each way
        if ids[-1] in template.end_ids or ids[-1] % 16 == 3:
            return "ended"
        return "closed" if tuple(ids[-len(tag) :]) == tag or ids[-1] % 16 == 5 else None

    raters = []

    def watch(first, after):
        made = Rater(groups[first:after], k, template, temperature, 1e-12)
        raters.append((first, after, made))
        return made

    engine = HFEngine(model, stop, template.vocabulary, batch_size=batch)
    traces = engine.rollout(groups, Sampling(k, 9, temperature), NoiseKey(seed, 0), watch)
    ends = [tuple(e if e is None else end for e in t.ended) for t in traces]
    known = [s for first, after, r in raters for s in r.scores(traces[first:after])]
    with torch.no_grad():
        scorer = Scorer(template, torch.device("cpu"), temperature, ("shared",), 1e-12)
        expected = scorer(
            model, groups, [replace(t, ended=e) for t, e in zip(traces, ends, strict=True)]
        )
    return traces, known, expected


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_score_is_that_of_a_forward(kind, template, temperature):
    kinds = set()
    for seed in range(2):
        traces, known, expected = rated(kind, TEMPLATES[template], temperature, seed)
        for sampled, got, want in zip(traces, known, expected, strict=True):
            kinds |= {
                (c, e is not None) for c, e in zip(sampled.closed, sampled.ended, strict=True)
            }
            for name in ("answer", "baseline", "forced_tag"):
                torch.testing.assert_close(
                    getattr(got, name), getattr(want, name), rtol=1e-9, atol=1e-9
                )
            assert torch.equal(got.trace_mask, want.trace_mask)
            assert torch.equal(got.closed, want.closed)
            assert torch.equal(got.trace_length, want.trace_length)
            ended = torch.tensor([e is not None for e in sampled.ended])
            last = got.trace_mask.cumsum(-1) == got.trace_mask.sum(-1, keepdim=True)
            same = got.trace_mask & ~(ended[:, None] & last)  # "ended" stands for any token here
            torch.testing.assert_close(got.trace[same], want.trace[same], rtol=1e-9, atol=1e-9)
    assert kinds == {(True, False), (False, True), (False, False)}


def test_batches_of_prompts_are_scored_alike():
    _, whole, _ = rated("mistral", TEMPLATES["tag"], 1.0)
    _, parts, _ = rated("mistral", TEMPLATES["tag"], 1.0, batch=2)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.answer, other.answer, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.trace, other.trace, rtol=1e-9, atol=1e-9)
