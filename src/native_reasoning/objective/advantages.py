"""From what traces are worth to their advantages: clip, bad format, centring, scaling.

Pure functions of the K rewards of a group, or of several groups' with an axis in front;
``complete`` (..., K) says which traces are in the right format.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def centre_mean(r: Tensor) -> Tensor:
    """R'_k − mean R'. Gives (K−1)/K of the exact trace term when unscaled."""
    return r - r.mean(-1, keepdim=True)


def centre_leave_one_out(r: Tensor) -> Tensor:
    """R'_k minus the mean of the others: the unbiased baseline (VeriFree, LaTRO); 0 for K = 1."""
    n = r.shape[-1]
    return centre_mean(r) * (n / max(n - 1, 1))


def centre_lme_loo(r: Tensor) -> Tensor:
    """n·(LME(all) − LME(all but k)), LME the log of the mean of e^R, n = K; 0 for K = 1.

    JEPO's advantage of a log-probability (2503.19618): it is centred already, and the n makes up
    for the 1/n of the sum over traces.
    """
    n = r.shape[-1]
    if n == 1:
        return torch.zeros_like(r)
    itself = torch.eye(n, dtype=torch.bool, device=r.device)
    others = r.unsqueeze(-2).expand(*r.shape, n).masked_fill(itself, -math.inf)
    log_mean = r.logsumexp(-1, keepdim=True) - math.log(n)
    return n * (log_mean - (others.logsumexp(-1) - math.log(n - 1)))


def centre_rank(r: Tensor) -> Tensor:
    """The share of the others that are worse, ties counted half, less ½: from −½ to ½."""
    one, other = r[..., :, None], r[..., None, :]
    worse, better = (other < one).sum(-1), (other > one).sum(-1)
    return (worse - better).to(r.dtype) / (2 * max(r.shape[-1] - 1, 1))


CENTRES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda r: r,
    "mean": centre_mean,
    "leave_one_out": centre_leave_one_out,
    "lme_loo": centre_lme_loo,
    "rank": centre_rank,
}


def spread(r: Tensor) -> Tensor:
    """(...) the unbiased standard deviation of (..., K), 0 for one trace."""
    return r.std(-1) if r.shape[-1] > 1 else r.new_zeros(r.shape[:-1])


def twice_mean(r: Tensor, complete: Tensor) -> Tensor:
    """Twice the mean of all rewards (..., K) in place of those in a wrong format: a penalty where
    rewards are log-probabilities, which are negative. LaTRO's released code (2411.04282)."""
    return torch.where(complete, r, 2 * r.mean(-1, keepdim=True))


#: Policies that leave the answer of a trace in a wrong format untrained.
ANSWER_MASKED = ("mask", "zero", "penalty")
