"""Sampling by vLLM: a request of its own for each trace, with a seed of its own.

The seed is a pure function of (run's seed, domain, step, row, trace), as the random numbers of
HFEngine are (noise.py), so what else is sampled at the same time plays no role but for rounding.
Prompts go out and traces come back as token ids. What vLLM says of the probability of its tokens is
kept as a diagnostic (meter.py): rewards and gradients come from the trainer's weights alone.

Nothing here imports vLLM: a ``Generator`` (generators.py) runs it, in this process or elsewhere.
"""

from collections.abc import Generator as Yielding
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from native_reasoning.config.errors import RunError
from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.rollout.engine import NoiseKey, Sample, Sampling, Stop, traces_of
from native_reasoning.rollout.noise import seed_of


@dataclass(frozen=True)
class Request:
    """One sequence to be sampled. It ends after a token of ``stop_ids``, which is part of it, or
    after ``max_tokens``, and at no other token."""

    prompt: tuple[int, ...]
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """The sampled ids, and the log-probability that each was drawn with."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]


class Generator(Protocol):
    """Runs vLLM."""

    def wake(self) -> None:
        """Makes it ready, with the policy's weights as they are now."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """A reply to each request, in order. Equal requests and weights give equal replies."""
        ...

    def sleep(self) -> None:
        """It is not asked until ``wake`` comes again, and may give its memory back."""
        ...


class VLLMEngine:
    """A rollout engine on vLLM."""

    def __init__(self, generator: Generator, template: Template) -> None:
        self.generator, self.template = generator, template

    @contextmanager
    def ready(self) -> Yielding[None]:
        """See ``RolloutEngine``: weights are sent on entry, always."""
        self.generator.wake()
        yield
        self.generator.sleep()

    def rollout(
        self, groups: Sequence[PromptGroup], sampling: Sampling, key: NoiseKey
    ) -> list[Traces]:
        """See ``RolloutEngine``."""
        prompts = [group.prompt_ids for group in groups]
        rows = [group.example.row_id for group in groups]
        found = self.sample(prompts, rows, sampling, key, self.template.stop_trace)
        return [traces_of(samples) for samples in found]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        row_ids: Sequence[int],
        sampling: Sampling,
        key: NoiseKey,
        stop: Stop,
        traces: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """See ``RolloutEngine``. vLLM stops at the end-of-turn tokens and the closing tag that
        ``stop`` names; what else ``stop`` says, such as a tag that is text, is cut afterwards, with
        the same ids as if sampling had stopped there."""
        first = [0] * len(prompts) if traces is None else traces
        k, stop_ids = sampling.num_generations, self._stop_ids(stop)
        requests = [
            Request(
                prompt=tuple(prompt),
                seed=seed_of(key.seed, key.domain, key.step, row, trace),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                stop_ids=stop_ids,
            )
            for prompt, row, start in zip(prompts, row_ids, first, strict=True)
            for trace in range(start, start + k)
        ]
        replies = self.generator.generate(requests)
        pairs = zip(requests, replies, strict=True)
        flat = [self._cut(request, reply, stop) for request, reply in pairs]
        return [flat[i : i + k] for i in range(0, len(flat), k)]

    def _stop_ids(self, stop: Stop) -> tuple[int, ...]:
        """The tokens that end a sequence wherever they stand."""
        template = self.template
        known = dict.fromkeys((*template.end_ids, *template.boundary.close_ids))
        return tuple(token for token in known if stop([token]) is not None)

    def _cut(self, request: Request, reply: Completion, stop: Stop) -> Sample:
        ids: list[int] = []
        for token in reply.ids:
            if token >= self.template.vocabulary:
                raise RunError(
                    f"vLLM sampled token {token}, which the tokenizer does not have",
                    why="its embedding is padding, and the trainer never scores such a token",
                    fix="serve a model whose vocab_size is that of its tokenizer",
                )
            ids.append(token)
            if (reason := stop(ids)) is not None:
                return Sample(tuple(ids), reason, reply.logps[: len(ids)])
        if len(ids) < request.max_tokens:
            raise RunError(
                f"vLLM ended a sequence after {len(ids)} of {request.max_tokens} tokens",
                why=f"with a prompt of {len(request.prompt)} its context was full",
                fix="a smaller max_trace_length (a server: or a larger --max-model-len)",
            )
        return Sample(tuple(ids), "limit", reply.logps)
