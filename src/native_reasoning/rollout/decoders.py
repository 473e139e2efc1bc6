"""What holds the rows of a rollout and forwards their next tokens.

A decoder starts from K rows for each of G prompts, side by side, and shows the logits of every
row's next token. ``SharedDecoder`` keeps each prompt once (shared.py); ``RepeatDecoder`` is for
models whose layers cannot, with an ordinary cache that is repeated K times, or prefilled K times.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from native_reasoning.model.adapters import linear_parts
from native_reasoning.model.forward import left_pad, positions
from native_reasoning.rollout.shared import SharedCache, attending

#: Finished rows are dropped once they are this share of the batch: each drop copies the cache.
DROP_SHARE = 0.25


class Decoder(Protocol):
    """``logits`` (rows, V) of each row's next token."""

    logits: Tensor

    def advance(self, tokens: Tensor) -> None:
        """Appends a token (rows,) to each row."""
        ...

    def keep(self, alive: Sequence[int]) -> list[int] | None:
        """Drops all rows but these, if that is worth it: the rows of the new batch by their old
        place, where a place that comes a second time only fills up; else None."""
        ...


class SharedDecoder:
    """Rows in a grid over a ``SharedCache``: ``copies`` for each prompt, whose lengths are
    ``lengths`` (G, 1)."""

    def __init__(self, model: PreTrainedModel, head: Callable[[Tensor], Tensor]) -> None:
        self.model, self.head = model, head

    def start(self, prompts: Sequence[Sequence[int]], copies: int) -> "SharedDecoder":
        """Forwards the prompts, each once."""
        ids, mask = left_pad(prompts, self.model.device)
        cache = DynamicCache()  # whole layers everywhere: windows are masked, not cut off
        hidden = self.model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            past_key_values=cache,
            use_cache=True,
        )[0][:, -1]
        self.cache, self.copies, self.lengths = SharedCache(cache, mask), copies, mask.sum(1, True)
        self.logits = self.head(hidden).repeat_interleave(copies, 0)
        return self

    def advance(self, tokens: Tensor) -> None:
        """See ``Decoder``."""
        at = (self.lengths + self.cache.length).repeat_interleave(self.copies, 0)
        with attending(self.model, self.cache):
            hidden = self.model.base_model(
                input_ids=tokens[:, None],
                attention_mask=tokens.new_zeros(1, 1, 1, 1),  # ready-made: none is built
                position_ids=at,
                past_key_values=self.cache,
                use_cache=True,
            )[0]
        self.logits = self.head(hidden[:, -1])

    def keep(self, alive: Sequence[int]) -> list[int] | None:
        """See ``Decoder``. The rows stay a grid: prompts with fewer rows than another one are
        filled up with their first."""
        by_prompt: dict[int, list[int]] = {}
        for row in alive:
            by_prompt.setdefault(row // self.copies, []).append(row)
        widest = max(map(len, by_prompt.values()))
        grid = [r for rows in by_prompt.values() for r in rows + rows[:1] * (widest - len(rows))]
        if len(grid) > (1 - DROP_SHARE) * len(self.lengths) * self.copies:
            return None
        prompts = list(by_prompt)
        self.cache, self.copies = self.cache.select(prompts, grid), widest
        self.lengths = self.lengths[torch.tensor(prompts, device=self.lengths.device)]
        return grid


class RepeatDecoder:
    """Rows on an ordinary cache; ``repeat`` False prefills each of the K copies, and no row is ever
    dropped, for caches that cannot be repeated."""

    def __init__(self, model: PreTrainedModel, repeat: bool) -> None:
        self.model, self.repeat = model, repeat

    def start(self, prompts: Sequence[Sequence[int]], copies: int) -> "RepeatDecoder":
        """Forwards the prompts."""
        apart = 1 if self.repeat else copies
        ids, self.mask = left_pad([p for p in prompts for _ in range(apart)], self.model.device)
        self.cache = DynamicCache(config=self.model.config)
        self.logits = self._next(ids, positions(self.mask))
        if self.repeat and copies > 1:
            self.cache.batch_repeat_interleave(copies)
            self.logits = self.logits.repeat_interleave(copies, 0)
            self.mask = self.mask.repeat_interleave(copies, 0)
        return self

    def advance(self, tokens: Tensor) -> None:
        """See ``Decoder``."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.logits = self._next(tokens[:, None], self.mask.sum(-1, keepdim=True) - 1)

    def keep(self, alive: Sequence[int]) -> list[int] | None:
        """See ``Decoder``."""
        if not self.repeat or len(alive) > (1 - DROP_SHARE) * len(self.mask):
            return None
        kept = torch.tensor(alive, device=self.mask.device)
        self.cache.batch_select_indices(kept)
        self.mask = self.mask[kept]
        return list(alive)

    def _next(self, ids: Tensor, at: Tensor) -> Tensor:
        return self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=at,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


# -- The head, one token per row ------------------------------------------------------------------


def decoding_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The head as a function of hidden states (rows, H). On a CPU in float32 its weights, laid out
    once as oneDNN multiplies them fastest: a few rows against a large vocabulary take a third of
    the time."""
    head = model.get_output_embeddings()
    parts = linear_parts(head)
    assert head is not None
    assert parts is not None
    weight, bias = parts.weight.detach(), None if parts.bias is None else parts.bias.detach()
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return head
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
        multiply: Any = torch.ops.mkldnn._linear_pointwise
        multiply(weight.new_zeros(1, weight.shape[1]), packed, bias, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError):
        return head
    return lambda hidden: multiply(hidden.contiguous(), packed, bias, "none", [], "")
