"""What a rollout engine promises, whatever runs the model, and answers sampled by any engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template


@dataclass(frozen=True)
class Sampling:
    """How traces are drawn. ``temperature`` 0 is greedy decoding."""

    num_generations: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class NoiseKey:
    """Where in the stream of random numbers a rollout stands (noise.py)."""

    seed: int
    step: int
    domain: int = 0


@dataclass(frozen=True)
class Sample:
    """One sampled sequence: its ids, the name of what stopped it ("limit" if nothing did), and the
    sampler's log-probability of each id where it has weights of its own, else ()."""

    ids: tuple[int, ...]
    stopped: str
    logps: tuple[float, ...] = ()


def traces_of(samples: Sequence[Sample]) -> Traces:
    """The end-of-turn token that stopped a trace stands apart: the tag is spliced in its place."""
    said = tuple(s.logps for s in samples)
    return Traces(
        ids=tuple(s.ids[:-1] if s.stopped == "ended" else s.ids for s in samples),
        closed=tuple(s.stopped == "closed" for s in samples),
        ended=tuple(s.ids[-1] if s.stopped == "ended" else None for s in samples),
        sampler_logps=said if any(said) else (),
    )


#: Says after each token whether the sequence ends there: its reason, or None.
Stop = Callable[[list[int]], str | None]


class RolloutEngine(ABC):
    """Samples traces for prompts. Equal arguments and weights give equal traces.

    ``stop`` ends a trace: it returns "closed" after the closing tag and "ended" after an
    end-of-turn token.
    """

    stop: Stop

    def ready(self) -> AbstractContextManager[None]:
        """Inside, what is sampled comes from the policy's weights as they are on entry."""
        return nullcontext()

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        row_ids: Sequence[int],
        sampling: Sampling,
        key: NoiseKey,
        stop: Stop,
        traces: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """``num_generations`` sequences per prompt, in order. The random numbers of the j-th one of
        prompt i are those of trace ``traces[i]`` + j of row ``row_ids[i]``; None means 0."""

    def rollout(
        self, groups: Sequence[PromptGroup], sampling: Sampling, key: NoiseKey
    ) -> list[Traces]:
        """K traces per group, in order; each stops at the closing tag, at an end-of-turn token
        (``Traces.ended``) or at ``sampling.max_tokens``."""
        prompts = [group.prompt_ids for group in groups]
        rows = [group.example.row_id for group in groups]
        return [*map(traces_of, self.sample(prompts, rows, sampling, key, self.stop))]


def sample_answers(
    engine: RolloutEngine,
    template: Template,
    groups: Sequence[PromptGroup],
    traces: Sequence[Traces],
    sampling: Sampling,
    key: NoiseKey,
    *,
    only_closed: bool = False,
) -> list[tuple[Sample, ...]]:
    """An answer after each trace of each group; no tokens after open traces if ``only_closed``.

    ``sampling.max_tokens`` bounds the answer, its end-of-turn token included. The random numbers of
    an answer are those of its trace's number k in the row of its group.
    """
    prompts, rows, numbers = [], [], []
    for group, sampled in zip(groups, traces, strict=True):
        for k, (ids, closed) in enumerate(zip(sampled.ids, sampled.closed, strict=True)):
            if closed or not only_closed:
                prompts.append(template.answer_prompt(group.prompt_ids, ids, closed))
                rows.append(group.example.row_id)
                numbers.append(k)
    one = replace(sampling, num_generations=1)
    found = iter(engine.sample(prompts, rows, one, key, template.stop_answer, numbers))
    return [
        tuple(
            next(found)[0] if closed or not only_closed else Sample((), "limit")
            for closed in sampled.closed
        )
        for sampled in traces
    ]
