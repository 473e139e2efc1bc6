"""Sampling an answer after each trace, for training, evaluation and conversations alike."""

from collections.abc import Sequence
from dataclasses import replace

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.rollout.engine import NoiseKey, RolloutEngine, Sample, Sampling, Stop


def sample_answers(
    engine: RolloutEngine,
    template: Template,
    groups: Sequence[PromptGroup],
    traces: Sequence[Traces],
    sampling: Sampling,
    key: NoiseKey,
    *,
    stop: Stop | None = None,
    only_closed: bool = False,
) -> list[tuple[Sample, ...]]:
    """An answer after each trace of each group; no tokens after open traces if ``only_closed``.

    ``sampling.max_tokens`` bounds the answer, its end-of-turn token included; ``stop`` is the
    template's ``stop_answer`` unless it is given. The random numbers of an answer are those of its
    trace's number k in the row of its group.
    """
    prompts, rows, numbers = [], [], []
    for group, sampled in zip(groups, traces, strict=True):
        for k, (ids, closed) in enumerate(zip(sampled.ids, sampled.closed, strict=True)):
            if closed or not only_closed:
                prompts.append(template.answer_prompt(group.prompt_ids, ids, closed))
                rows.append(group.example.row_id)
                numbers.append(k)
    one = replace(sampling, num_generations=1)
    samples = engine.sample(prompts, rows, one, key, stop or template.stop_answer, numbers)
    found, none = iter(samples), Sample((), "limit")
    return [
        tuple(next(found)[0] if closed or not only_closed else none for closed in t.closed)
        for t in traces
    ]
