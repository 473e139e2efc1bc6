"""Many rows behind one prompt: a cache that holds the prompt once, and attention that reads it so.

The K rows of a prompt look at the same keys. Repeating them K times, as an ordinary cache has to,
copies and reads K times as much; here the queries of all K rows meet the prompt's keys in one
product, and their own tokens' keys in another, under one softmax (Hydragen, 2402.05099, computes
the same sums)::

    softmax([q · prompt keys, q · own keys]) · [prompt values, own values]

Rows stand in a grid: ``copies`` rows for each of the cache's prompts, one prompt after the other.
It goes through transformers' attention interface, so any model whose layers use that interface
works; capabilities.py tries it out.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

_NAME = "shared_prompt"
_FIRST = 64


class OwnLayer(CacheLayerMixin):
    """Keys and values of the rows' own tokens, in buffers that double when they are full: adding a
    token copies nothing."""

    is_sliding = False

    def __init__(self, length: int = 0) -> None:
        super().__init__()
        self.length = length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for the first tokens."""
        rows, heads = key_states.shape[:2]
        self.keys = key_states.new_empty(rows, heads, _FIRST, key_states.shape[-1])
        self.values = value_states.new_empty(rows, heads, _FIRST, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends (rows, heads, tokens, width) and returns views of all there is."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys = _with_room(self.keys, start, self.length)
        self.values = _with_room(self.values, start, self.length)
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def select(self, rows: Tensor) -> "OwnLayer":
        """A copy with these rows."""
        made = OwnLayer(self.length)
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            made.keys, made.values = self.keys[rows], self.values[rows]
            made.is_initialized = True
        return made

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of masks that transformers would make; none is made here."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


def _with_room(buffer: Tensor | None, used: int, needed: int) -> Tensor:
    assert buffer is not None
    rows, heads, room, width = buffer.shape
    if needed <= room:
        return buffer
    grown = buffer.new_empty(rows, heads, max(2 * room, needed), width)
    grown[:, :, :used] = buffer[:, :, :used]
    return grown


class SharedCache(Cache):
    """The prompts' keys once (``prompt``, G rows, ``mask`` (G, P) says which are real), and those
    of the rows' own tokens."""

    def __init__(self, prompt: DynamicCache, mask: Tensor, own: Sequence[OwnLayer] = ()) -> None:
        self.prompt = prompt
        #: (G, 1, 1, P): where the prompt's padding is; None where there is none
        self.padding = None if bool(mask.all()) else (mask == 0)[:, None, None, :]
        self._mask = mask
        super().__init__(layers=list(own) or [OwnLayer() for _ in prompt.layers])

    def of_prompt(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (G, key heads, P, width) of the prompts in one layer."""
        found = self.prompt.layers[layer]
        assert isinstance(found, DynamicLayer)
        assert found.keys is not None and found.values is not None
        return found.keys, found.values

    @property
    def length(self) -> int:
        """Tokens of each row so far, without its prompt."""
        first = self.layers[0]
        assert isinstance(first, OwnLayer)
        return first.length

    def select(self, prompts: Sequence[int], rows: Sequence[int]) -> "SharedCache":
        """A copy with these prompts and these rows, which again form a grid."""
        device = self._mask.device
        kept = torch.tensor(prompts, device=device)
        prompt = self.prompt
        if list(prompts) != [*range(len(self._mask))]:
            prompt = DynamicCache()
            for i in range(len(self.prompt.layers)):
                keys, values = self.of_prompt(i)
                prompt.update(keys[kept], values[kept], i)
        index = torch.tensor(rows, device=device)
        own = [layer.select(index) for layer in self.layers if isinstance(layer, OwnLayer)]
        return SharedCache(prompt, self._mask[kept], own)


_ACTIVE: list[SharedCache] = []


@contextmanager
def attending(model: PreTrainedModel, cache: SharedCache) -> Generator[None]:
    """Inside, the model's layers attend to ``cache``."""
    config = model.config.get_text_config()
    # transformers has a public name for it on models only, and that does more than set it
    before = config._attn_implementation  # pyright: ignore[reportPrivateUsage]
    config._attn_implementation = _NAME  # pyright: ignore[reportPrivateUsage]
    _ACTIVE.append(cache)
    try:
        yield
    finally:
        _ACTIVE.pop()
        config._attn_implementation = before  # pyright: ignore[reportPrivateUsage]


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. ``query`` (rows, heads, 1, width) of the newest tokens,
    ``key`` and ``value`` (rows, key heads, T, width) of the rows' own tokens."""
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("attention with a soft cap, sinks or a bias")
    cache = _ACTIVE[-1]
    prompt_keys, prompt_values = cache.of_prompt(module.layer_idx)  # type: ignore[arg-type]
    groups, heads, before, width = prompt_keys.shape
    rows, copies = len(query), len(query) // groups
    queries = (query * (scaling or width**-0.5)).reshape(rows, heads, -1, width)  # (R, H, rep, D)
    each = queries.shape[2]

    def by_prompt(x: Tensor) -> Tensor:  # (R, H, rep, n) -> (G, H, K·rep, n)
        x = x.view(groups, copies, heads, each, -1).transpose(1, 2)
        return x.reshape(groups, heads, copies * each, -1)

    def by_row(x: Tensor) -> Tensor:
        x = x.view(groups, heads, copies, each, -1).transpose(1, 2)
        return x.reshape(rows, heads, each, -1)

    to_prompt = by_prompt(queries) @ prompt_keys.transpose(-1, -2)
    if cache.padding is not None:
        to_prompt = to_prompt.masked_fill(cache.padding, -torch.inf)
    scores = torch.cat([by_row(to_prompt), queries @ key.transpose(-1, -2)], dim=-1)
    if sliding_window is not None:  # a prompt is padded on the left: distances are of columns
        scores[..., : max(scores.shape[-1] - sliding_window, 0)] = -torch.inf
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=exact).to(value.dtype)
    out = by_row(by_prompt(weights[..., :before]) @ prompt_values)
    out = out + weights[..., before:] @ value
    return out.reshape(rows, -1, 1, out.shape[-1]).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, shared_prompt_attention)
