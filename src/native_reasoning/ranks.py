"""Numbers that all processes of a run agree on."""

import torch
from accelerate.utils import gather, reduce


def largest_of_ranks(value: int, device: torch.device) -> int:
    """The largest value that any rank has, so that all ranks decide alike."""
    return int(gather(torch.tensor([value], device=device)).max())  # type: ignore[union-attr]


def sum_of_ranks(values: list[float], device: torch.device) -> list[float]:
    """Each value summed over the ranks."""
    return reduce(torch.tensor(values, dtype=torch.float64, device=device), "sum").tolist()  # type: ignore[union-attr]
