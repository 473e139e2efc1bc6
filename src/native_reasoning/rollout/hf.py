"""Sampling from a transformers model: prefill once per prompt, then a decode loop of our own.

``HFEngine`` draws each token by inverting the cumulative distribution at one stateless uniform
number (noise.py). A decoder holds K rows for each of G prompts, in a grid, one prompt after the
other: ``start`` forwards the prompts, ``logits`` (rows, V) are those of every row's next token,
``advance`` appends a token to each row, and ``keep`` drops rows that are finished. A finished row
that is still there stands at the model's last position once it has come to it.

The K rows of a prompt look at the same keys. Repeating them K times, as an ordinary cache has to,
copies and reads K times as much. In a ``SharedCache`` the queries of all K rows meet the prompt's
keys in one product, and their own tokens' keys in another, under one softmax (Hydragen, 2402.05099,
computes the same sums)::

    softmax([q · prompt keys, q · own keys]) · [prompt values, own values]

It goes through transformers' attention interface, so any model whose layers use that interface
works; capabilities.py tries it out.
"""

import math
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from native_reasoning.model.adapters import linear_parts
from native_reasoning.model.forward import inference, left_pad, positions, prefill_prompts, together
from native_reasoning.model.policy import context_of
from native_reasoning.rollout.engine import NoiseKey, RolloutEngine, Sample, Sampling, Stop
from native_reasoning.rollout.noise import pick, uniforms_of

#: Finished rows are dropped once they are this share of the batch: each drop copies the cache.
DROP_SHARE = 0.25
#: Tokens between two looks for stops: an accelerator's are there when it has computed them.
LOOK_EVERY = {"cpu": 1, "other": 8}
#: Tokens that a row's buffer has room for at first.
_FIRST = 64


class HFEngine(RolloutEngine):
    """A rollout engine on a transformers causal language model.

    ``model`` is the unwrapped module. ``vocabulary`` is the template's: ids from there on are
    padding of the embedding table and are never sampled. ``share`` keeps each prompt once for its K
    rows, else its cache is repeated: capabilities.py says what the architecture can do. At most
    ``max_tokens`` are decoded at once (``batches``), in the context that ``autocast`` gives. A
    sequence that reaches the positions that the model was made for ends there.
    Stops are looked for every ``look_every`` tokens, None means ``LOOK_EVERY``: a row that stopped
    goes on until then, and what it sampled meanwhile is cut off.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop: Stop,
        vocabulary: int,
        *,
        share: bool = True,
        max_tokens: float = math.inf,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        look_every: int | None = None,
    ) -> None:
        self.model, self.stop, self.vocabulary = model, stop, vocabulary
        self.look_every = look_every
        self.share, self.max_tokens, self.autocast = share, max_tokens, autocast
        self.context = context_of(model) or sys.maxsize

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        row_ids: Sequence[int],
        sampling: Sampling,
        key: NoiseKey,
        stop: Stop,
        traces: Sequence[int | None] | None = None,
    ) -> list[list[Sample]]:
        """See ``RolloutEngine``. Where ``traces[i]`` is None the most likely tokens are taken."""
        k = sampling.num_generations
        streams = [*zip(row_ids, traces or [0] * len(prompts), strict=True)]
        found: list[Sample] = []
        with inference(self.model), self.autocast():
            decoder = decoder_of(self.model, self.share)
            for places in self.batches(prompts, k, sampling.max_tokens):
                batch = [prompts[i] for i in places]
                noise = uniforms_of(key, [streams[i] for i in places], sampling)
                decoder.start(batch, k, [row_ids[i] for i in places])
                rooms = [self.context - len(prompt) for prompt in batch for _ in range(k)]
                rooms = [min(sampling.max_tokens, room) for room in rooms]
                found += self._decode(decoder, sampling, noise, stop, rooms)
        return [found[i : i + k] for i in range(0, len(found), k)]

    def batches(self, prompts: Sequence[Sequence[int]], rows: int, length: int) -> list[list[int]]:
        """The prompts, by number, that are decoded at once: as many as have no more than
        ``max_tokens`` with that many ``rows`` of ``length`` tokens each, or one."""

        def fits(places: Sequence[int]) -> bool:
            longest = max(len(prompts[i]) for i in places)
            each = longest + rows * length if self.share else rows * (longest + length)
            return len(places) * each <= self.max_tokens

        return together(range(len(prompts)), fits)

    def _decode(
        self,
        decoder: "Decoder",
        sampling: Sampling,
        noise: np.ndarray,
        stop: Stop,
        rooms: Sequence[int],
    ) -> list[Sample]:
        ids: list[list[int]] = [[] for _ in noise]
        stopped = [None if room > 0 else "limit" for room in rooms]
        active = list(range(len(noise)))  # the batch row at index i holds sequence active[i]
        device, unread = self.model.device, list[Tensor]()
        uniform = torch.from_numpy(noise).to(device)  # of each batch row
        mixed, ends = bool((noise < 0).any()), {*rooms}
        every = self.look_every or LOOK_EVERY.get(device.type, LOOK_EVERY["other"])
        for t in range(max(rooms)):
            logits = decoder.logits[:, : self.vocabulary]
            drawn = pick(logits, sampling, uniform[:, t], mixed=mixed)
            unread.append(drawn)
            if len(unread) == every or t + 1 in ends:
                for q, tokens in zip(active, torch.stack(unread, 1).tolist(), strict=True):
                    while q >= 0 and stopped[q] is None and tokens:
                        ids[q].append(tokens.pop(0))
                        stopped[q] = stop(ids[q]) or ("limit" if len(ids[q]) == rooms[q] else None)
                unread.clear()
                alive = [i for i, q in enumerate(active) if q >= 0 and stopped[q] is None]
                if not alive:
                    break
                if (kept := decoder.keep(alive)) is not None:
                    places = torch.tensor(kept, device=device)
                    drawn, uniform = drawn[places], uniform[places]
                    seen: set[int] = set()  # rows that come again only fill up the batch
                    active = [-1 if r in seen or seen.add(r) else active[r] for r in kept]
            decoder.advance(drawn)
        return [Sample(tuple(i), s or "limit") for i, s in zip(ids, stopped, strict=True)]


# -- Decoders --------------------------------------------------------------------------------------


class SharedDecoder:
    """``copies`` rows for each prompt, of ``lengths`` (G, 1) tokens, over a ``SharedCache``."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.head = model, decoding_head(model)
        self.last = (context_of(model) or sys.maxsize) - 1

    def start(
        self, prompts: Sequence[Sequence[int]], copies: int, row_ids: Sequence[int] = ()
    ) -> None:
        """Forwards the prompts, each once; those of one row id share what they begin with."""
        cache = DynamicCache()  # whole layers everywhere: windows are masked, not cut off
        hidden, mask = prefill_prompts(self.model, cache, prompts, row_ids or range(len(prompts)))
        self.cache, self.copies, self.lengths = SharedCache(cache, mask), copies, mask.sum(1, True)
        self.logits = self.head(hidden).repeat_interleave(copies, 0)

    def advance(self, tokens: Tensor) -> None:
        """Appends a token (rows,) to each row."""
        at = (self.lengths + self.cache.get_seq_length()).clamp(max=self.last)
        at = at.repeat_interleave(self.copies, 0)
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
        """Drops all rows but these, if that is worth it: the rows of the new batch by their old
        place, else None. The rows stay a grid: prompts with fewer rows than another one are filled
        up with their first, whose place comes again."""
        by_prompt: dict[int, list[int]] = {}
        for row in alive:
            by_prompt.setdefault(row // self.copies, []).append(row)
        widest = max(map(len, by_prompt.values()))
        grid = [r for rows in by_prompt.values() for r in rows + rows[:1] * (widest - len(rows))]
        if len(grid) > (1 - DROP_SHARE) * len(self.lengths) * self.copies:
            return None
        prompts = list(by_prompt)
        self.cache.keep(prompts, grid)
        self.copies = widest
        self.lengths = self.lengths[torch.tensor(prompts, device=self.lengths.device)]
        return grid


class RepeatDecoder:
    """Rows on an ordinary cache, which is repeated for the K rows of a prompt."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.last = (context_of(model) or sys.maxsize) - 1

    def start(
        self, prompts: Sequence[Sequence[int]], copies: int, row_ids: Sequence[int] = ()
    ) -> None:
        """Forwards the prompts, each once."""
        ids, self.mask = left_pad(prompts, self.model.device)
        self.cache = DynamicCache(config=self.model.config)
        self.logits = self._next(ids, positions(self.mask))
        if copies > 1:
            self._take(torch.arange(len(prompts), device=ids.device).repeat_interleave(copies))

    def advance(self, tokens: Tensor) -> None:
        """Appends a token (rows,) to each row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        at = self.mask.sum(-1, keepdim=True) - 1
        self.logits = self._next(tokens[:, None], at.clamp(max=self.last))

    def keep(self, alive: Sequence[int]) -> list[int] | None:
        """See ``SharedDecoder.keep``; here no place comes again."""
        if len(alive) > (1 - DROP_SHARE) * len(self.mask):
            return None
        self._take(torch.tensor(alive, device=self.mask.device))
        return list(alive)

    def _take(self, rows: Any) -> None:
        self.cache.reorder_cache(rows)  # the one selection that all kinds of layers have
        self.logits, self.mask = self.logits[rows], self.mask[rows]

    def _next(self, ids: Tensor, at: Tensor) -> Tensor:
        return self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=at,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


Decoder = SharedDecoder | RepeatDecoder


def decoder_of(model: PreTrainedModel, share: bool) -> Decoder:
    """What keeps each prompt once for its rows, or else a cache for each row."""
    return SharedDecoder(model) if share else RepeatDecoder(model)


def decoding_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The head as a function of hidden states (rows, H). On a CPU its weights, in the dtype of the
    arithmetic and laid out once as oneDNN multiplies them fastest: a few rows against a large
    vocabulary take a third of the time."""
    head = model.get_output_embeddings()
    parts = linear_parts(head)
    assert head is not None
    assert parts is not None
    weight, bias = parts.weight.detach(), None if parts.bias is None else parts.bias.detach()
    if weight.device.type != "cpu" or weight.dtype == torch.float64:
        return head
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
        multiply: Any = torch.ops.mkldnn._linear_pointwise
        multiply(weight.new_zeros(1, weight.shape[1]), packed, bias, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError):  # a torch without oneDNN
        return head
    dtype = weight.dtype
    return lambda hidden: multiply(hidden.to(dtype).contiguous(), packed, bias, "none", [], "")


# -- Many rows behind one prompt -------------------------------------------------------------------


class OwnLayer(DynamicLayer):
    """Keys and values of the rows' own tokens: views of buffers that double when they are full, so
    that adding a token copies nothing."""

    buffers: Sequence[Tensor] = ()

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
    config._attn_implementation = "shared_prompt"  # pyright: ignore[reportPrivateUsage]
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
    prompts: Any = cache.prompt.layers[module.layer_idx]  # type: ignore[index]
    prompt_keys, prompt_values = prompts.keys, prompts.values
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


AttentionInterface.register("shared_prompt", shared_prompt_attention)
