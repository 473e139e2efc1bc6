"""Sampling from a transformers model: prefill once per prompt, then a decode loop of our own.

The prompt's cache is repeated K times, finished rows leave the batch, and each token is drawn by
inverting the cumulative distribution at one stateless uniform number (noise.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from native_reasoning.errors import PolicyError
from native_reasoning.rollout.engine import NoiseKey, Sample, Sampling, Stop
from native_reasoning.rollout.noise import uniforms
from native_reasoning.types import PromptGroup, Traces

#: Finished rows are dropped once they are this share of the batch: each drop copies the cache.
DROP_SHARE = 0.25


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients, restored afterwards: in train mode, activation checkpointing
    would drop the cache."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def left_pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (rows, longest), both int64, padded on the left with id 0."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def positions(mask: Tensor) -> Tensor:
    """Position ids of a padded batch: 0 at the first real token of each row."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """The token of each row at which the cumulative distribution passes ``uniform``.

    ``logits`` (rows, V), ``uniform`` (rows,) in [0, 1). The sum is float64 and is not exactly 1, so
    the number is scaled by its end and a token of probability 0 is never chosen.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        probs = nucleus(probs, sampling.top_p)
    cdf = probs.double().cumsum(-1)
    chosen = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(chosen, last)


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Zero outside the smallest set of likeliest tokens whose probability reaches ``top_p``."""
    ordered, order = probs.sort(-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return probs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0)


def check_decoding(model: PreTrainedModel, vocabulary: int) -> None:
    """Raises PolicyError unless a step on the cache gives the logits of the whole sequence.

    State-space models, for one, take another kind of cache and would sample without memory.
    """
    ids = (torch.arange(7, 19, device=model.device) % vocabulary)[None]
    mask = torch.ones_like(ids)
    options = {"past_key_values": DynamicCache(config=model.config), "use_cache": True}
    at = positions(mask)
    with inference(model):
        try:
            whole = model(input_ids=ids, attention_mask=mask, position_ids=at).logits[0, -1]
            model(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=at[:, :-1],
                **options,
            )
            step = model(
                input_ids=ids[:, -1:], attention_mask=mask, position_ids=at[:, -1:], **options
            ).logits[0, -1]
            right = bool((step - whole).abs().mean() <= 0.02 * whole.abs().mean())
        except (AttributeError, NotImplementedError, TypeError, ValueError):
            right = False
    if not right:
        raise PolicyError(
            f"{type(model).__name__} does not continue from a key-value cache",
            why="sampled traces would not come from the model's own probabilities",
            fix="use an attention model; state-space models are not supported yet",
        )


class HFEngine:
    """A rollout engine on a transformers causal language model.

    ``model`` is the unwrapped module. ``stop`` ends a trace: it returns "closed" after the closing
    tag and "ended" after an end-of-turn token. ``vocabulary`` is the template's: ids from there on
    are padding of the embedding table and are never sampled. ``repeat_cache`` False prefills each
    of the K copies, for caches that cannot be repeated.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop: Stop,
        vocabulary: int,
        *,
        repeat_cache: bool = True,
        batch_size: int | None = None,
    ) -> None:
        self.model, self.stop, self.vocabulary = model, stop, vocabulary
        self.repeat_cache, self.batch_size = repeat_cache, batch_size

    def rollout(
        self, groups: Sequence[PromptGroup], sampling: Sampling, key: NoiseKey
    ) -> list[Traces]:
        """See ``RolloutEngine``: the random numbers of a group depend on its row id alone."""
        prompts = [group.prompt_ids for group in groups]
        rows = [group.example.row_id for group in groups]
        samples = self.sample(prompts, rows, sampling, key, self.stop)
        return [_traces(group_samples) for group_samples in samples]

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
        size = self.batch_size or max(len(prompts), 1)
        out: list[list[Sample]] = []
        with inference(self.model):
            for i in range(0, len(prompts), size):
                streams = list(zip(row_ids[i : i + size], first[i : i + size], strict=True))
                noise = _noise(key, streams, sampling)
                flat = self._decode(prompts[i : i + size], sampling, noise, stop)
                k = sampling.num_generations
                out += [flat[j : j + k] for j in range(0, len(flat), k)]
        return out

    def _decode(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, noise: np.ndarray, stop: Stop
    ) -> list[Sample]:
        device, k = self.model.device, sampling.num_generations
        logits, cache, mask = self._prefill(prompts, k, device)
        ids: list[list[int]] = [[] for _ in noise]
        stopped: list[str | None] = [None] * len(noise)
        active = list(range(len(noise)))  # the batch row at index i holds sequence active[i]
        for t in range(sampling.max_tokens):
            uniform = torch.from_numpy(noise[active, t]).to(device)
            tokens = pick(logits[:, : self.vocabulary], sampling, uniform)
            for row, token in zip(active, tokens.tolist(), strict=True):
                if stopped[row] is None:
                    ids[row].append(token)
                    stopped[row] = stop(ids[row])
            alive = [i for i, row in enumerate(active) if stopped[row] is None]
            if not alive or t + 1 == sampling.max_tokens:
                break
            if self.repeat_cache and len(alive) <= (1 - DROP_SHARE) * len(active):
                kept = torch.tensor(alive, device=device)
                cache.batch_select_indices(kept)
                tokens, mask, active = tokens[kept], mask[kept], [active[i] for i in alive]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=mask.sum(-1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return [Sample(tuple(i), s or "limit") for i, s in zip(ids, stopped, strict=True)]

    def _prefill(
        self, prompts: Sequence[Sequence[int]], k: int, device: torch.device
    ) -> tuple[Tensor, DynamicCache, Tensor]:
        """Next-token logits (prompts·K, V), cache and mask, each prompt's K copies side by side."""
        copies = 1 if self.repeat_cache else k
        ids, mask = left_pad([p for p in prompts for _ in range(copies)], device)
        cache = DynamicCache(config=self.model.config)
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if self.repeat_cache and k > 1:
            cache.batch_repeat_interleave(k)
            logits, mask = logits.repeat_interleave(k, 0), mask.repeat_interleave(k, 0)
        return logits, cache, mask


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


def _traces(samples: Sequence[Sample]) -> Traces:
    """The end-of-turn token that stopped a trace stands apart: the tag is spliced in its place."""
    return Traces(
        ids=tuple(s.ids[:-1] if s.stopped == "ended" else s.ids for s in samples),
        closed=tuple(s.stopped == "closed" for s in samples),
        ended=tuple(s.ids[-1] if s.stopped == "ended" else None for s in samples),
    )
