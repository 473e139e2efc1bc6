"""How rows are laid out for a forward, and the mode that the model is in."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, PreTrainedModel

#: From so many tokens on, what several prompts begin with is worth a forward of its own.
LEAST_SHARED = 16
#: What configs call a distance beyond which a layer does not look, or the length of its pieces.
WINDOWS = (
    "sliding_window", "attention_window_size", "attention_chunk_size", "chunk_size",
    "mamba_chunk_size", "window_size",
)  # fmt: skip

Item = TypeVar("Item")


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Generator[None]:
    """Train mode with gradients, or eval mode without; the mode is restored afterwards."""
    before = model.training
    model.train(training)
    try:
        with torch.set_grad_enabled(training):
            yield
    finally:
        model.train(before)


def inference(model: nn.Module) -> AbstractContextManager[None]:
    """Eval mode and no gradients: in train mode, activation checkpointing would drop the cache."""
    return in_mode(model, training=False)


def together(items: Sequence[Item], fits: Callable[[Sequence[Item]], bool]) -> list[list[Item]]:
    """The items in order, in lists of one or more: as many in each as ``fits`` allows.

    >>> together([3, 1, 2, 9, 1], lambda numbers: sum(numbers) <= 6)
    [[3, 1, 2], [9], [1]]
    """
    if items and fits(items):
        return [list(items)]
    found: list[list[Item]] = []
    for item in items:
        if found and fits([*found[-1], item]):
            found[-1].append(item)
        else:
            found.append([item])
    return found


def left_pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (rows, longest), both int64, padded on the left with id 0."""
    ids, mask = padded(rows, side="left"), padded([[1] * len(row) for row in rows], side="left")
    return ids.to(device), mask.to(device)


def padded(rows: Sequence[Sequence[int]], value: int = 0, side: str = "right") -> Tensor:
    """The rows (rows, longest), int64, filled up with ``value`` on one side."""
    lines = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(lines, batch_first=True, padding_value=value, padding_side=side)


def positions(mask: Tensor) -> Tensor:
    """Position ids of a padded batch: 0 at the first real token of each row."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with, at most all but one of the shortest."""
    first, last = min(map(tuple, rows)), max(map(tuple, rows))
    end = min(map(len, rows)) - 1
    return next((i for i in range(end) if first[i] != last[i]), end)


def shared_start(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all of several prompts begin with, such as a system prompt or worked examples:
    0 where that is less than ``LEAST_SHARED``."""
    same = common_length(prompts) if len(prompts) > 1 else 0
    return same if same >= LEAST_SHARED else 0


def sees_whole_rows(model: PreTrainedModel, length: int) -> bool:
    """Whether each layer attends to all of a row of so many tokens, wherever its padding is."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"}:
        return False
    found = [getattr(config, name, None) for name in WINDOWS]
    reach = min([length, *(n for n in found if isinstance(n, int))])
    return kinds == {"full_attention"} or length <= reach


def split_start(ids: Tensor, mask: Tensor, common: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts rows (G, P), which are padded on the left, behind the ``common`` tokens that all begin
    with: those tokens (1, C); the rest (G, P − C), padded on the left; a mask (G, P) for both."""
    start = ids[mask.sum(1).argmax(), :common][None]
    rest = (mask.cumsum(1) > common)[:, common:].to(mask.dtype)
    seen = torch.cat([mask.new_ones(len(mask), common), rest], dim=1)
    return start, ids[:, common:], seen


def prefill(
    model: PreTrainedModel, cache: Cache, name: str, start: Tensor, rest: Tensor, seen: Tensor
) -> Tensor:
    """Forwards what ``split_start`` has cut, the start once, into ``cache``; returns the hidden
    states of the rest. ``name`` is that of the model's argument: ids, or embeddings of them."""
    options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    if common := start.shape[1]:
        model.base_model(**{name: start}, **options)
        cache.batch_select_indices(torch.zeros_like(seen[:, 0]))
    at = positions(seen)[:, common:]
    return model.base_model(**{name: rest}, attention_mask=seen, position_ids=at, **options)[0]


def prefill_prompts(
    model: PreTrainedModel,
    cache: DynamicCache,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Forwards prompts into ``cache``, padded on the left; returns the hidden states of their last
    tokens (N, H) and the mask (N, P). What all begin with is forwarded once, and so is what
    neighbours with the same row id begin with: a question with each of its traces."""
    device, heads, head_of = model.device, [*prompts], [*range(len(prompts))]
    whole = sees_whole_rows(model, max(map(len, prompts)))
    if whole and len(set(row_ids)) < len(row_ids):
        runs = [[*run] for _, run in groupby(head_of, row_ids.__getitem__)]
        starts = [prompts[run[0]][: common_length([prompts[i] for i in run])] for run in runs]
        if all(starts):
            heads, head_of = starts, [g for g, run in enumerate(runs) for _ in run]
    ids, seen = left_pad(heads, device)
    common = shared_start(heads) if whole else 0
    start, rest, seen = split_start(ids, seen, common)
    hidden = prefill(model, cache, "input_ids", start, rest, seen)
    if len(heads) < len(prompts):
        index = torch.tensor(head_of, device=device)
        cache.batch_select_indices(index)
        tails = [prompt[len(heads[g]) :] for prompt, g in zip(prompts, head_of, strict=True)]
        ids, mask = left_pad(tails, device)
        seen = torch.cat([seen[index], mask], dim=1)
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        at = positions(seen)[:, -ids.shape[1] :]
        hidden = model.base_model(input_ids=ids, attention_mask=seen, position_ids=at, **options)[0]
    return hidden[:, -1], _pad_left(cache, seen)


def _pad_left(cache: DynamicCache, mask: Tensor) -> Tensor:
    """Moves all padding in ``cache`` to the left, and in ``mask`` (N, P), which is returned."""
    at = mask.argsort(dim=1, stable=True)
    moved = mask.gather(1, at)
    if not torch.equal(moved, mask):
        for layer in cache.layers:
            for name in ("keys", "values"):
                states = getattr(layer, name)
                setattr(layer, name, states.gather(2, at[:, None, :, None].expand_as(states)))
    return moved
