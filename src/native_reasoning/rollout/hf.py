"""Sampling from a transformers model: prefill once per prompt, then a decode loop of our own.

Each prompt is kept once for its K rows where the architecture allows it (decoders.py), finished
rows leave the batch, and each token is drawn by inverting the cumulative distribution at one
stateless uniform number (noise.py, pick.py).
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.model.forward import inference
from native_reasoning.model.policy import context_of
from native_reasoning.rollout.decoders import (
    Decoder,
    RepeatDecoder,
    SharedDecoder,
    decoding_head,
)
from native_reasoning.rollout.engine import NoiseKey, Sample, Sampling, Stop, traces_of
from native_reasoning.rollout.noise import uniforms
from native_reasoning.rollout.pick import pick


class HFEngine:
    """A rollout engine on a transformers causal language model.

    ``model`` is the unwrapped module. ``stop`` ends a trace: it returns "closed" after the closing
    tag and "ended" after an end-of-turn token. ``vocabulary`` is the template's: ids from there on
    are padding of the embedding table and are never sampled. ``share`` False keeps a cache for each
    row, ``repeat_cache`` False prefills each of the K copies, ``padding`` False decodes prompts of
    one length together: capabilities.py says what the architecture can do. ``batch_size`` prompts
    are decoded at once, None means all. ``autocast`` gives the context to compute in. A sequence
    that reaches the positions that the model was made for ends there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop: Stop,
        vocabulary: int,
        *,
        share: bool = True,
        repeat_cache: bool = True,
        padding: bool = True,
        batch_size: int | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.stop, self.vocabulary = model, stop, vocabulary
        self.repeat_cache, self.batch_size, self.autocast = repeat_cache, batch_size, autocast
        self.share, self.padding = share and repeat_cache and padding, padding
        self.context = context_of(model)

    def ready(self) -> AbstractContextManager[None]:
        """See ``RolloutEngine``: the weights are the policy's own."""
        return nullcontext()

    @contextmanager
    def to_the_limit(self) -> Generator[None]:
        """Inside, no trace ends before ``max_tokens``: the longest rollout that there can be."""
        stop, self.stop = self.stop, lambda ids: None
        try:
            yield
        finally:
            self.stop = stop

    def rollout(
        self, groups: Sequence[PromptGroup], sampling: Sampling, key: NoiseKey
    ) -> list[Traces]:
        """See ``RolloutEngine``: the random numbers of a group depend on its row id alone."""
        prompts = [group.prompt_ids for group in groups]
        rows = [group.example.row_id for group in groups]
        return [*map(traces_of, self.sample(prompts, rows, sampling, key, self.stop))]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        row_ids: Sequence[int],
        sampling: Sampling,
        key: NoiseKey,
        stop: Stop,
        traces: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """See ``RolloutEngine``."""
        first = [0] * len(prompts) if traces is None else traces
        out: list[list[Sample]] = [[] for _ in prompts]
        k = sampling.num_generations
        with inference(self.model), self.autocast():
            head = decoding_head(self.model) if self.share else None
            for batch in self._batches(prompts):
                noise = _noise(key, [(row_ids[i], first[i]) for i in batch], sampling)
                decoder = self._decoder([prompts[i] for i in batch], k, head)
                rooms = [self._room(prompts[i], sampling) for i in batch for _ in range(k)]
                flat = self._decode(decoder, sampling, noise, stop, rooms)
                for j, i in enumerate(batch):
                    out[i] = flat[j * k : (j + 1) * k]
        return out

    def _room(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Most tokens after a prompt."""
        if self.context is None:
            return sampling.max_tokens
        return min(sampling.max_tokens, self.context - len(prompt))

    def _batches(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Which prompts are decoded together."""
        size = self.batch_size or max(len(prompts), 1)
        alike: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            alike.setdefault(0 if self.padding else len(prompt), []).append(i)
        return [some[i : i + size] for some in alike.values() for i in range(0, len(some), size)]

    def _decoder(
        self,
        prompts: Sequence[Sequence[int]],
        copies: int,
        head: Callable[[Tensor], Tensor] | None,
    ) -> Decoder:
        if head is not None:
            return SharedDecoder(self.model, head).start(prompts, copies)
        return RepeatDecoder(self.model, self.repeat_cache).start(prompts, copies)

    def _decode(
        self,
        decoder: Decoder,
        sampling: Sampling,
        noise: np.ndarray,
        stop: Stop,
        rooms: Sequence[int],
    ) -> list[Sample]:
        ids: list[list[int]] = [[] for _ in noise]
        stopped = [None if room > 0 else "limit" for room in rooms]
        active = list(range(len(noise)))  # the batch row at index i holds sequence active[i]
        uniform = torch.from_numpy(noise).to(self.model.device)
        for t in range(max(rooms)):
            drawn = pick(decoder.logits[:, : self.vocabulary], sampling, uniform[active, t])
            open_rows = [i for i, q in enumerate(active) if q >= 0 and stopped[q] is None]
            tokens = drawn.tolist()
            for i in open_rows:
                q = active[i]
                ids[q].append(tokens[i])
                stopped[q] = stop(ids[q]) or ("limit" if t + 1 == rooms[q] else None)
            alive = [i for i in open_rows if stopped[active[i]] is None]
            if not alive:
                break
            if (kept := decoder.keep(alive)) is not None:
                drawn = drawn[torch.tensor(kept, device=drawn.device)]
                seen: set[int] = set()  # rows that come again only fill up the batch
                active = [-1 if r in seen or seen.add(r) else active[r] for r in kept]
            decoder.advance(drawn)
        return [Sample(tuple(i), s or "limit") for i, s in zip(ids, stopped, strict=True)]


def _noise(key: NoiseKey, streams: Sequence[tuple[int, int]], sampling: Sampling) -> np.ndarray:
    """Uniform numbers (prompts·K, max_tokens); a stream is a prompt's row id and first trace."""
    k = sampling.num_generations
    if sampling.temperature == 0:
        return np.zeros((len(streams) * k, sampling.max_tokens))
    draws = [
        uniforms(key.seed, key.domain, key.step, row, trace, sampling.max_tokens)
        for row, first in streams
        for trace in range(first, first + k)
    ]
    return np.stack(draws)
