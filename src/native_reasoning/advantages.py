"""From what traces are worth to their advantages: clip, bad format, centring, scaling.

Pure functions of the K rewards of one group; ``complete`` (K,) says which traces are in the right
format.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def centre_mean(r: Tensor) -> Tensor:
    """R'_k − mean R'. Gives (K−1)/K of the exact trace term when unscaled."""
    return r - r.mean()


def centre_leave_one_out(r: Tensor) -> Tensor:
    """R'_k minus the mean of the others: the unbiased baseline (VeriFree, LaTRO); 0 for K = 1."""
    return (r - r.mean()) * (len(r) / max(len(r) - 1, 1))


def centre_lme_loo(r: Tensor) -> Tensor:
    """n·(LME(all) − LME(all but k)), LME the log of the mean of e^R, n = K; 0 for K = 1.

    JEPO's advantage of a log-probability (2503.19618): it is centred already, and the n makes up
    for the 1/n of the sum over traces.
    """
    n = len(r)
    if n == 1:
        return torch.zeros_like(r)
    every = r.expand(n, n).masked_fill(torch.eye(n, dtype=torch.bool, device=r.device), -torch.inf)
    log_mean = r.logsumexp(0) - torch.tensor(n, dtype=r.dtype).log()
    log_mean_others = every.logsumexp(1) - torch.tensor(n - 1, dtype=r.dtype).log()
    return n * (log_mean - log_mean_others)


def centre_rank(r: Tensor) -> Tensor:
    """The share of the others that are worse, ties counted half, less ½: from −½ to ½."""
    n = max(len(r) - 1, 1)
    worse = (r[None, :] < r[:, None]).sum(1)
    better = (r[None, :] > r[:, None]).sum(1)
    return (worse - better).to(r.dtype) / (2 * n)


CENTRES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda r: r,
    "mean": centre_mean,
    "leave_one_out": centre_leave_one_out,
    "lme_loo": centre_lme_loo,
    "rank": centre_rank,
}


def spread(r: Tensor) -> Tensor:
    """The unbiased standard deviation, 0 for one trace."""
    return r.std() if len(r) > 1 else r.new_zeros(())


def twice_mean(r: Tensor, complete: Tensor) -> Tensor:
    """Twice the mean of all rewards (K,) in place of those of traces in a wrong format: a penalty
    for log-probabilities, which are negative. LaTRO's released code (2411.04282)."""
    return torch.where(complete, r, 2 * r.mean())


#: Policies that leave the answer of a trace in a wrong format untrained.
ANSWER_MASKED = ("mask", "zero", "penalty")
