"""What a rollout engine promises, whatever runs the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from native_reasoning.types import PromptGroup, Traces


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


class RolloutEngine(Protocol):
    """Samples traces for prompts. Equal arguments and weights give equal traces."""

    def rollout(
        self, groups: Sequence[PromptGroup], sampling: Sampling, key: NoiseKey
    ) -> list[Traces]:
        """K traces per group, in order; each stops at the closing tag, at an end-of-turn token
        (``Traces.ended``) or at ``sampling.max_tokens``."""
        ...
