"""What a rollout engine promises, whatever runs the model."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from native_reasoning.data.rows import PromptGroup, Traces


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


class RolloutEngine(Protocol):
    """Samples traces for prompts. Equal arguments and weights give equal traces."""

    def ready(self) -> AbstractContextManager[None]:
        """Inside, what is sampled comes from the policy's weights as they are on entry."""
        ...

    def rollout(
        self, groups: Sequence[PromptGroup], sampling: Sampling, key: NoiseKey
    ) -> list[Traces]:
        """K traces per group, in order; each stops at the closing tag, at an end-of-turn token
        (``Traces.ended``) or at ``sampling.max_tokens``."""
        ...

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
        ...
