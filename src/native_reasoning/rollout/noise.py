"""One uniform number per token, a pure function of where the token stands, and the token it picks.

Token t of trace k of row p in step s uses ``uniforms(seed, domain, s, p, k, n)[t]``: Philox, a
counter-based generator (Salmon et al. 2011), with key (seed, domain) and counter (t, k, p, s). No
state is kept, so the same traces come out whatever the batch, the number of processes or the number
of restarts. Traces, answers, evaluation, the order of the data, benchmarks, conversations, the
choice of a reference and the control that deals out advantages draw from different domains.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from native_reasoning.rollout.engine import NoiseKey, Sampling

TRAINING, EVALUATION, ORDER, ANSWERS, BENCHMARKS, CONVERSATION, REFERENCES, DEALT = range(8)
#: In place of a uniform number: the most likely token.
GREEDY = -1.0
_MASK = (1 << 64) - 1
#: Tokens whose probabilities are summed before the search for the number's place begins.
_BLOCK = 256


def uniforms(seed: int, domain: int, step: int, row: int, trace: int, count: int) -> np.ndarray:
    """``count`` float64 numbers in [0, 1), 53 random bits each. All arguments are ≥ 0."""
    raw = _philox(seed, domain, step, row, trace).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniforms_of(
    key: NoiseKey, streams: Sequence[tuple[int, int | None]], sampling: Sampling
) -> np.ndarray:
    """Those of a rollout (prompts·K, max_tokens); a stream is a prompt's row id and first trace, or
    None for the most likely tokens."""
    k, count = sampling.num_generations, sampling.max_tokens
    if sampling.temperature == 0:
        return np.full((len(streams) * k, count), GREEDY)
    draws = [
        np.full(count, GREEDY)
        if first is None
        else uniforms(key.seed, key.domain, key.step, row, first + j, count)
        for row, first in streams
        for j in range(k)
    ]
    return np.stack(draws)


def seed_of(seed: int, domain: int, step: int, row: int, trace: int) -> int:
    """63 bits from the same place, for samplers that draw from a generator of their own."""
    return int(_philox(seed, domain, step, row, trace).random_raw()) >> 1


def _philox(seed: int, domain: int, step: int, row: int, trace: int) -> np.random.Philox:
    key = np.array([seed & _MASK, domain], dtype=np.uint64)
    counter = np.array([0, trace, row, step], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor, *, mixed: bool = False) -> Tensor:
    """The token (rows,) of each row at which the cumulative distribution passes ``uniform``.

    ``logits`` (rows, V), ``uniform`` (rows,) in [0, 1). The distribution is summed in blocks, the
    block found where the number falls, then the token in it. Sums are float64; the last one is not
    exactly 1, so the number is scaled by it. A token of probability 0 is never chosen. ``mixed``:
    a number may be ``GREEDY``, which picks the most likely token.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if not mixed:
        return _draw(logits, sampling, uniform)
    drawn = _draw(logits, sampling, uniform.clamp(min=0))
    return torch.where(uniform < 0, logits.argmax(-1), drawn)


def _draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """``pick`` where all tokens are drawn."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = logits - logits.amax(-1, keepdim=True)
    if sampling.temperature != 1:
        weights.div_(sampling.temperature)
    weights.exp_()
    if sampling.top_p < 1:
        weights = nucleus(weights / weights.sum(-1, keepdim=True), sampling.top_p)
    return _invert(weights, uniform)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Where the running sum of each row passes ``uniform`` times its end."""
    rows, size = weights.shape
    if size % _BLOCK:
        weights = functional.pad(weights, (0, _BLOCK - size % _BLOCK))
    blocks = weights.view(rows, -1, _BLOCK)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    goal = uniform[:, None] * ends[:, -1:]
    block = _passed(ends, goal)
    inside = blocks[torch.arange(rows, device=weights.device), block[:, 0]].double()
    before = ends.gather(-1, block) - inside.sum(-1, keepdim=True)
    found = block * _BLOCK + _passed(inside.cumsum(-1), (goal - before).clamp(min=0))
    return found[:, 0].clamp(max=size - 1)


def _passed(sums: Tensor, goal: Tensor) -> Tensor:
    """(rows, 1): where the running ``sums`` (rows, n) first exceed ``goal`` (rows, 1), or, where
    rounding lets none exceed it, where they last grow. Either way the weight there is not 0; sums
    that are not numbers have no such place, and the end stands for it."""
    last = torch.searchsorted(sums, sums[:, -1:].contiguous())
    found = torch.minimum(torch.searchsorted(sums, goal, right=True), last)
    return found.clamp(max=sums.shape[-1] - 1)


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Zero outside the smallest set of likeliest tokens whose probability reaches ``top_p``."""
    ordered, order = probs.sort(-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return probs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0)
