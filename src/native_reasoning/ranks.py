"""Numbers that all processes of a run agree on."""

import torch
import torch.distributed as dist


def largest_of_ranks(value: int, device: torch.device) -> int:
    """The largest value that any rank has, so that all ranks decide alike."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)


def sum_of_ranks(values: list[float], device: torch.device) -> list[float]:
    """Each value summed over the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(shared)
    return shared.tolist()
