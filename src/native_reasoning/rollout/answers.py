"""Sampling an answer after each trace that closed itself."""

from collections.abc import Sequence
from dataclasses import replace

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.rollout.engine import NoiseKey, RolloutEngine, Sampling
from native_reasoning.rollout.noise import ANSWERS


def sample_answers(
    engine: RolloutEngine,
    template: Template,
    groups: Sequence[PromptGroup],
    traces: Sequence[Traces],
    sampling: Sampling,
    key: NoiseKey,
) -> list[Traces]:
    """The traces with ``answers``: one after each closed trace, () after the others.

    ``sampling.max_tokens`` bounds the answer, its end-of-turn token included.
    """
    prompts, rows, which = [], [], []
    for group, sampled in zip(groups, traces, strict=True):
        for k, (ids, closed) in enumerate(zip(sampled.ids, sampled.closed, strict=True)):
            if closed:
                prompts.append(template.answer_prompt(group.prompt_ids, ids, closed))
                rows.append(group.example.row_id)
                which.append(k)
    one = replace(sampling, num_generations=1)
    key = replace(key, domain=ANSWERS)
    samples = iter(engine.sample(prompts, rows, one, key, template.stop_answer, which))
    return [
        replace(t, answers=tuple(next(samples)[0].ids if closed else () for closed in t.closed))
        for t in traces
    ]
