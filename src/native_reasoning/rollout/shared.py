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
from transformers.cache_utils import DynamicLayer

_NAME = "shared_prompt"
_FIRST = 64


class OwnLayer(DynamicLayer):
    """Keys and values of the rows' own tokens: views of buffers that double when they are full, so
    that adding a token copies nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends (rows, heads, tokens, width) and returns views of all there is."""
        added, start = (key_states, value_states), self.get_seq_length()
        end = start + key_states.shape[2]
        if not self.buffers:
            self.buffers = [_with_room(new[:, :, :0], max(_FIRST, end)) for new in added]
        elif end > self.buffers[0].shape[2]:
            self.buffers = [_with_room(old, max(2 * start, end)) for old in self.buffers]
        for buffer, new in zip(self.buffers, added, strict=True):
            buffer[:, :, start:end] = new
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows."""
        if self.buffers:
            self.buffers = [buffer[indices] for buffer in self.buffers]
            self._show(self.get_seq_length())

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)
        self.is_initialized = True
        return self.keys, self.values


def _with_room(filled: Tensor, room: int) -> Tensor:
    """A buffer for ``room`` tokens that begins with those of ``filled``."""
    grown = filled.new_empty(*filled.shape[:2], room, filled.shape[-1])
    grown[:, :, : filled.shape[2]] = filled
    return grown


class SharedCache(Cache):
    """The prompts' keys once (``prompt``, G rows, ``mask`` (G, P) says which are real), and those
    of the rows' own tokens."""

    def __init__(self, prompt: DynamicCache, mask: Tensor) -> None:
        super().__init__(layers=[OwnLayer() for _ in prompt.layers])
        self.prompt = prompt
        self._see(mask)

    def _see(self, mask: Tensor) -> None:
        self.mask = mask
        #: (G, 1, 1, P): where the prompt's padding is; None where there is none
        self.padding = None if bool(mask.all()) else (mask == 0)[:, None, None, :]

    def of_prompt(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (G, key heads, P, width) of the prompts in one layer."""
        found: Any = self.prompt.layers[layer]
        assert found.keys is not None and found.values is not None
        return found.keys, found.values

    @property
    def length(self) -> int:
        """Tokens of each row so far, without its prompt."""
        first: Any = self.layers[0]
        return first.get_seq_length()

    def keep(self, prompts: Sequence[int], rows: Sequence[int]) -> None:
        """Keeps these prompts and these rows, which again form a grid."""
        if list(prompts) != [*range(len(self.mask))]:
            kept = torch.tensor(prompts, device=self.mask.device)
            self.prompt.batch_select_indices(kept)
            self._see(self.mask[kept])
        self.batch_select_indices(torch.tensor(rows, device=self.mask.device))


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
