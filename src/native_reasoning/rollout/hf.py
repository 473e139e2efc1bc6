"""Sampling from a transformers model: prefill once per prompt, then a decode loop of our own.

Each prompt is kept once for its K rows where the architecture allows it (decoders.py), finished
rows leave the batch, and each token is drawn by inverting the cumulative distribution at one
stateless uniform number (noise.py, pick.py).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from native_reasoning.errors import PolicyError
from native_reasoning.inputs import inference, positions, tried
from native_reasoning.rollout.decoders import (
    Decoder,
    RepeatDecoder,
    SharedDecoder,
    decoding_head,
    shares_prompts,
)
from native_reasoning.rollout.engine import NoiseKey, Sample, Sampling, Stop, traces_of
from native_reasoning.rollout.noise import uniforms
from native_reasoning.rollout.pick import pick
from native_reasoning.types import PromptGroup, Traces


def check_decoding(model: PreTrainedModel, vocabulary: int) -> None:
    """Raises PolicyError unless a step on the cache gives the logits of the whole sequence.

    State-space models, for one, take another kind of cache and would sample without memory.
    """
    ids = (torch.arange(7, 19, device=model.device) % vocabulary)[None]
    mask = torch.ones_like(ids)
    options = {"past_key_values": DynamicCache(config=model.config), "use_cache": True}
    at = positions(mask)

    def trial() -> bool:
        whole = model(input_ids=ids, attention_mask=mask, position_ids=at).logits[0, -1]
        model(
            input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=at[:, :-1], **options
        )
        step = model(
            input_ids=ids[:, -1:], attention_mask=mask, position_ids=at[:, -1:], **options
        ).logits[0, -1]
        return bool((step - whole).abs().mean() <= 0.02 * whole.abs().mean())

    if not tried(model, trial):
        raise PolicyError(
            f"{type(model).__name__} does not continue from a key-value cache",
            why="sampled traces would not come from the model's own probabilities",
            fix="use an attention model; state-space models are not supported yet",
        )


class Watcher(Protocol):
    """Looks on while rows are decoded by a ``SharedDecoder``. ``rows`` are places in the decoder's
    batch, ``which`` the numbers of the sequences there."""

    def begins(self, decoder: SharedDecoder) -> None:
        """The prompts are in the cache, and nothing else."""
        ...

    def drew(self, which: Sequence[int], logps: Tensor) -> None:
        """A token was drawn for each sequence, with these log-probabilities."""
        ...

    def finished(
        self,
        decoder: SharedDecoder,
        rows: Sequence[int],
        which: Sequence[int],
        samples: Sequence[Sample],
    ) -> None:
        """These sequences are whole. Their last token is not in the cache, and ``decoder.logits``
        are those that it was drawn from."""
        ...


class HFEngine:
    """A rollout engine on a transformers causal language model.

    ``model`` is the unwrapped module. ``stop`` ends a trace: it returns "closed" after the closing
    tag and "ended" after an end-of-turn token. ``vocabulary`` is the template's: ids from there on
    are padding of the embedding table and are never sampled. ``share`` False keeps a cache for each
    row (None: tried out on this architecture), ``repeat_cache`` False prefills each of the K
    copies, for caches that cannot be repeated. ``autocast`` gives the context to compute in.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop: Stop,
        vocabulary: int,
        *,
        repeat_cache: bool = True,
        batch_size: int | None = None,
        share: bool | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.stop, self.vocabulary = model, stop, vocabulary
        self.repeat_cache, self.batch_size, self.autocast = repeat_cache, batch_size, autocast
        unknown = repeat_cache and share is None
        self.share = shares_prompts(model, vocabulary) if unknown else bool(share)

    def ready(self) -> AbstractContextManager[None]:
        """See ``RolloutEngine``: the weights are the policy's own."""
        return nullcontext()

    def rollout(
        self,
        groups: Sequence[PromptGroup],
        sampling: Sampling,
        key: NoiseKey,
        watch: Callable[[int, int], Watcher] | None = None,
    ) -> list[Traces]:
        """See ``RolloutEngine``: the random numbers of a group depend on its row id alone.
        ``watch`` makes a watcher for the groups from one number to another that are decoded
        together."""
        prompts = [group.prompt_ids for group in groups]
        rows = [(group.example.row_id, 0) for group in groups]
        samples = self._sample(prompts, rows, sampling, key, self.stop, watch)
        return [traces_of(group_samples) for group_samples in samples]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        row_ids: Sequence[int],
        sampling: Sampling,
        key: NoiseKey,
        stop: Stop,
        traces: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """See ``RolloutEngine``; ``batch_size`` prompts at once."""
        first = [0] * len(prompts) if traces is None else traces
        streams = list(zip(row_ids, first, strict=True))
        return self._sample(prompts, streams, sampling, key, stop)

    def _sample(
        self,
        prompts: Sequence[Sequence[int]],
        streams: Sequence[tuple[int, int]],
        sampling: Sampling,
        key: NoiseKey,
        stop: Stop,
        watch: Callable[[int, int], Watcher] | None = None,
    ) -> list[list[Sample]]:
        size = self.batch_size or max(len(prompts), 1)
        out: list[list[Sample]] = []
        with inference(self.model), self.autocast():
            head = decoding_head(self.model) if self.share else None
            for i in range(0, len(prompts), size):
                noise = _noise(key, streams[i : i + size], sampling)
                watcher = watch(i, i + size) if watch is not None else None
                decoder = self._decoder(prompts[i : i + size], sampling.num_generations, head)
                flat = self._decode(decoder, sampling, noise, stop, watcher)
                k = sampling.num_generations
                out += [flat[j : j + k] for j in range(0, len(flat), k)]
        return out

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
        watcher: Watcher | None,
    ) -> list[Sample]:
        ids: list[list[int]] = [[] for _ in noise]
        stopped: list[str | None] = [None] * len(noise)
        active = list(range(len(noise)))  # the batch row at index i holds sequence active[i]
        uniform = torch.from_numpy(noise).to(self.model.device)
        if watcher is not None:
            assert isinstance(decoder, SharedDecoder)
            watcher.begins(decoder)
        for t in range(sampling.max_tokens):
            drawn, logps = pick(decoder.logits[:, : self.vocabulary], sampling, uniform[active, t])
            open_rows = [i for i, q in enumerate(active) if q >= 0 and stopped[q] is None]
            tokens = drawn.tolist()
            for i in open_rows:
                ids[active[i]].append(tokens[i])
                stopped[active[i]] = stop(ids[active[i]])
            alive = [i for i in open_rows if stopped[active[i]] is None]
            last = t + 1 == sampling.max_tokens
            if watcher is not None:
                assert isinstance(decoder, SharedDecoder)
                which = [active[i] for i in open_rows]
                watcher.drew(which, logps[open_rows])
                done = [i for i in open_rows if last or stopped[active[i]] is not None]
                if done:
                    samples = [_as_sample(ids[active[i]], stopped[active[i]]) for i in done]
                    watcher.finished(decoder, done, [active[i] for i in done], samples)
            if last or not alive:
                break
            if (kept := decoder.keep(alive)) is not None:
                drawn = drawn[torch.tensor(kept, device=drawn.device)]
                seen: set[int] = set()  # rows that come again only fill up the batch
                active = [-1 if r in seen or seen.add(r) else active[r] for r in kept]
            decoder.advance(drawn)
        return [_as_sample(*pair) for pair in zip(ids, stopped, strict=True)]


def _as_sample(ids: Sequence[int], stopped: str | None) -> Sample:
    return Sample(tuple(ids), stopped or "limit")


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
