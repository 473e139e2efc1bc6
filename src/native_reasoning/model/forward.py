"""What every forward of ours needs: padding, positions, and a mode of the model."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn


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
