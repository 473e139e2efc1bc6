"""What traces are worth, f of the answer's log-probabilities, and how they compare: advantages.

With l_{k,i} = log π(y*_i | x, z_k, y*_<i), c = exp l, and b_i the same with an empty trace, a
reward is R_k = f(c_k), and its exact answer weights w_i = c_i ∂f/∂c_i make A_k ∇log π(z_k) +
Σ_i w_i ∇l_i the gradient of E[f]. Everything is a pure function of a group's tensors (types.py
names the axes), or of several groups' with an axis in front, and works in log space, where a
product of 4,000 probabilities is exact. Advantages come of R', an R that was clipped and added to.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from native_reasoning.objective.types import Scores

#: b is clamped to this range before it weights anything: log(−b) needs b < 0.
LARGEST_BASELINE = -1e-6
#: and for ``weighted_inverse`` from below, because 1/p of a hopeless token is without bound.
SMALLEST_INVERSE = -10.0
#: Tokens of the longest answer that ``weighted_units`` takes as one; a longer one is cut.
UNIT = 8


@dataclass(frozen=True, eq=False)
class Group:
    """What a reward sees: ``l`` (..., K, T), ``b`` (..., T), the same ``clamped`` for where it
    weights something, and of each trace (..., K) its ``length`` in tokens, whether it is
    ``complete`` (in the right format), and whether its sampled answer is ``correct``."""

    l: Tensor
    b: Tensor
    clamped: Tensor
    length: Tensor
    complete: Tensor
    correct: Tensor


# -- Token rewards: l (..., T) and b (T,) -> R or log R (...), and w or log w (..., T) -------------


def logp(l: Tensor, b: Tensor) -> Tensor:
    """R = Σ log c_i. JEPO with one sample (2503.19618), LaTRO (2411.04282)."""
    return l.sum(-1)


def logp_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_i = 1."""
    return torch.ones_like(l)


def avg_logp(l: Tensor, b: Tensor) -> Tensor:
    """R = mean of log c_i. LBR (2602.03979)."""
    return l.mean(-1)


def avg_logp_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_i = 1/T."""
    return torch.full_like(l, 1 / l.shape[-1])


def log_prob_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_i = R for R = Π c_i; log R is ``logp``. VeriFree (2505.21493)."""
    return logp(l, b).unsqueeze(-1).expand_as(l)


def log_geometric_mean_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_i = R/T for R = (Π c_i)^{1/T}; log R is ``avg_logp``. NRT-GM, the core of NOVER."""
    return (avg_logp(l, b) - math.log(l.shape[-1])).unsqueeze(-1).expand_as(l)


def log_weighted_mean(l: Tensor, log_omega: Tensor) -> Tensor:
    """log R for R = mean of ω_i c_i."""
    return (l + log_omega).logsumexp(-1) - math.log(l.shape[-1])


def log_weighted_mean_weights(l: Tensor, log_omega: Tensor) -> Tensor:
    """w_i = ω_i c_i/T."""
    return l + log_omega - math.log(l.shape[-1])


def units(l: Tensor) -> Tensor:
    """(..., T) -> (..., U): sums over U = ⌈T/UNIT⌉ stretches of the answer that differ in length by
    at most one token. The product of a stretch's probabilities is what one token has elsewhere."""
    cuts = l.tensor_split(-(-l.shape[-1] // UNIT), dim=-1)
    return torch.stack([cut.sum(-1) for cut in cuts], dim=-1)


def log_weighted_units(l: Tensor, b: Tensor) -> Tensor:
    """log R for R = mean over units of C_u·(−B_u), with C_u = Π c_i and B_u = Σ b_i of the unit's
    tokens: NRT-WS(−log p) where a right first token alone is worth nothing."""
    return log_weighted_mean(units(l), (-units(b)).log())


def log_weighted_units_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_i = C_u·(−B_u)/U for every token i of unit u, since c_i ∂C_u/∂c_i = C_u."""
    weights = log_weighted_mean_weights(units(l), (-units(b)).log())
    cuts = l.tensor_split(weights.shape[-1], dim=-1)
    return torch.cat([weights[..., u, None].expand_as(cut) for u, cut in enumerate(cuts)], dim=-1)


def jepo_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_{k,i} = n·softmax_k(S), with the 1/n outside: the gradient of log mean_k e^{S_k} for the
    n = K traces of a group, S = ``logp``. JEPO (2503.19618)."""
    share = logp(l, b).softmax(-1)
    return (l.shape[-2] * share).unsqueeze(-1).expand_as(l)


# -- Group rewards: no gradient through the answer -------------------------------------------------


def reflection(group: Group) -> tuple[Tensor, Tensor]:
    """R_k = Σ_i ω_i l_{k,i}, R_base = Σ_i ω_i b_i, ω_i = σ_i/Σσ, σ_i the standard deviation of
    l_{·,i} over the traces: tokens that react to reasoning count. R − R_base is DRO's R3
    (2506.13351), which leaves ω open."""
    sigma = group.l.std(-2, unbiased=False)
    omega = sigma / sigma.sum(-1, keepdim=True).clamp(min=torch.finfo(sigma.dtype).tiny)
    return (group.l * per_trace(omega)).sum(-1), (group.b * omega).sum(-1)


def length_normalised(group: Group) -> tuple[Tensor, Tensor]:
    """log R for R = (Π c_i)^{1/(T·N)}, N = max(1, 1 + log10 |z|): one over NOVER's perplexity."""
    stretch = (1 + group.length.clamp(min=1).to(group.l.dtype).log10()).clamp(min=1)
    return avg_logp(group.l, group.b) / stretch, avg_logp(group.b, group.b)


def perplexity_rank(group: Group) -> tuple[Tensor, Tensor]:
    """R_k = (n − rank)/n among the n complete traces, rank 0 the lowest perplexity, ties in the
    order of sampling; 0 for the others. NOVER's reasoning reward (2505.16022)."""
    worth, _ = length_normalised(group)
    worth = torch.where(group.complete, worth, -math.inf)
    order = worth.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(-1).to(worth.dtype)  # the inverse permutation
    count = group.complete.sum(-1, keepdim=True)
    worth = torch.where(group.complete, (count - rank) / count.clamp(min=1), 0)
    return worth, worth.new_zeros(worth.shape[:-1])


def nothing(group: Group) -> tuple[Tensor, Tensor]:
    """R_k = 0: no trace is told from another, but by what is added."""
    return group.l.new_zeros(group.l.shape[:-1]), group.b.new_zeros(group.b.shape[:-1])


def exact_match(group: Group) -> tuple[Tensor, Tensor]:
    """R_k = 1 where the sampled answer is the reference, else 0; R_base is that event's probability
    without a trace."""
    return group.correct.to(group.l.dtype), logp(group.b, group.b).exp()


@dataclass(frozen=True)
class Reward:
    """One aggregation f.

    ``score`` gives R (..., K) and R_base (...), or their logarithms where ``is_log``: a product of
    many probabilities is exact in log space and zero outside it. ``weights`` gives the exact answer
    weights (..., K, T) from l and from b with an axis for the traces, in the same space, or is None
    where f does not act on the reference's tokens.
    ``smallest_baseline`` bounds b from below. ``adds_up``: R is the sum of these weights.
    """

    score: Callable[[Group], tuple[Tensor, Tensor]]
    weights: Callable[[Tensor, Tensor], Tensor] | None
    is_log: bool = True
    smallest_baseline: float = -math.inf
    adds_up: bool = False

    def parts(self, l: Tensor, b: Tensor) -> Tensor:
        """(..., T) what each token of l puts into R: its weight where R is the sum of the weights,
        else l itself, of which R or log R is the sum or the mean (but of several units)."""
        assert self.weights is not None
        return self.weights(l, b).exp() if self.adds_up else l


def of_tokens(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Group], tuple[Tensor, Tensor]]:
    """A reward of a group from one of a row of log-probabilities: R_base is f at b itself."""
    return lambda group: (f(group.l, per_trace(group.clamped)), f(group.b, group.clamped))


def per_trace(b: Tensor) -> Tensor:
    """(..., T) -> (..., 1, T): what a prompt has, beside what each of its traces has."""
    return b.unsqueeze(-2)


def weighted_mean(
    log_omega: Callable[[Tensor], Tensor], smallest_baseline: float = -math.inf
) -> Reward:
    """R = mean of ω_i c_i with ω_i from b_i."""
    return Reward(
        of_tokens(lambda l, b: log_weighted_mean(l, log_omega(b))),
        lambda l, b: log_weighted_mean_weights(l, log_omega(b)),
        smallest_baseline=smallest_baseline,
        adds_up=True,
    )


REWARDS: dict[str, Reward] = {
    "none": Reward(nothing, None, is_log=False),
    "logp": Reward(of_tokens(logp), logp_weights, is_log=False),
    "avg_logp": Reward(of_tokens(avg_logp), avg_logp_weights, is_log=False),
    "prob": Reward(of_tokens(logp), log_prob_weights),
    "geometric_mean": Reward(of_tokens(avg_logp), log_geometric_mean_weights),
    # ω = 1: RLPR (2506.18254)
    "arithmetic_mean": weighted_mean(torch.zeros_like),
    # ω = 1/e^b: NRT-WS(1/p) (2602.11549)
    "weighted_inverse": weighted_mean(lambda b: -b, SMALLEST_INVERSE),
    # ω = −b: NRT-WS(−log p), the paper's best
    "weighted_neglog": weighted_mean(lambda b: (-b).log()),
    "weighted_units": Reward(of_tokens(log_weighted_units), log_weighted_units_weights),
    "jepo": Reward(of_tokens(logp), jepo_weights, is_log=False),
    "reflection": Reward(reflection, None, is_log=False),
    "length_normalised": Reward(length_normalised, None),
    "perplexity_rank": Reward(perplexity_rank, None, is_log=False),
    "exact_match": Reward(exact_match, None, is_log=False),
}


# -- Added to a reward -----------------------------------------------------------------------------


def efficiency(group: Group) -> Tensor:
    """(..., K) the share of the other complete traces that are longer and of higher perplexity; 0
    for a trace that is not complete, or has no other. NOVER (2505.16022)."""
    worth, _ = length_normalised(group)
    longer = group.length[..., None, :] > group.length[..., :, None]
    worse = worth[..., None, :] < worth[..., :, None]
    both = longer & worse & group.complete[..., None, :] & group.complete[..., :, None]
    others = (group.complete.sum(-1, keepdim=True) - 1).clamp(min=1)
    return both.sum(-1).to(worth.dtype) / others


def twice_mean(r: Tensor, complete: Tensor) -> Tensor:
    """Twice the mean of all rewards (..., K) in place of those in a wrong format: a penalty where
    rewards are log-probabilities, which are negative. LaTRO's released code (2411.04282)."""
    return torch.where(complete, r, 2 * r.mean(-1, keepdim=True))


# -- From R' (..., K) to advantages ----------------------------------------------------------------


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


# -- Tokens that an advantage reaches --------------------------------------------------------------


def policy_mask(scores: Scores, policy_tokens: str) -> Tensor:
    """(K, L) which sampled tokens get policy gradient and are held to the first policy: all, or
    ("trace") those before the stop decision."""
    if policy_tokens != "trace":
        return scores.trace_mask
    at = torch.arange(scores.trace_mask.shape[1], device=scores.trace.device)
    return scores.trace_mask & (at < scores.lengths[:, None])
