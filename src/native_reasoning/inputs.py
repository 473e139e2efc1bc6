"""What every forward of ours needs: padding, positions, a model that does not train, and a way to
try out what an architecture can do."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def inference(model: nn.Module) -> Generator[None]:
    """Eval mode and no gradients, restored afterwards: in train mode, activation checkpointing
    would drop the cache."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def tried(model: nn.Module, trial: Callable[[], bool]) -> bool:
    """What ``trial`` says of the model in eval mode; False where its code refuses. Out of memory is
    no refusal."""
    refusals = (
        AttributeError,
        IndexError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    )
    with inference(model):
        try:
            return trial()
        except torch.OutOfMemoryError:
            raise
        except refusals:
            return False


def trial_length(model: PreTrainedModel) -> int:
    """Tokens of a trial prompt: more than a sliding window of up to 2,048 tokens (4,096 on an
    accelerator), because a window is where things go wrong; for a wider window it is short."""
    window = getattr(model.config.get_text_config(), "sliding_window", None) or 0
    return window + 8 if window <= (2048 if model.device.type == "cpu" else 4096) else 16


def left_pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (rows, longest), both int64, padded on the left with id 0."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def right_pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Ids (rows, longest), int64, padded on the right with id 0."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids.to(device)


def positions(mask: Tensor) -> Tensor:
    """Position ids of a padded batch: 0 at the first real token of each row."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
