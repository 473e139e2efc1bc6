"""The loss of a group, from its log-probabilities and an objective's signal.

    L = −Σ_k [ Σ_t ρ_{k,t} A_k log π(z_{k,t}) + Σ_i w_{k,i} l_{k,i} ]
        − λ_fmt Σ_open log π(tag) + β KL

A and w are constants for the gradient. The trainer divides the sum over prompts by N, the number of
all traces of the optimiser step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.objective.rewards import policy_mask
from native_reasoning.objective.types import Scores, Signal


def on_policy(new: Tensor, old: Tensor, weights: Tensor, settings: ObjectiveSettings) -> Tensor:
    """A log π: the importance ratio is taken as 1."""
    return weights * new


def cispo(new: Tensor, old: Tensor, weights: Tensor, settings: ObjectiveSettings) -> Tensor:
    """sg(clamp(ρ)) A log π, dropped where ρ left the range on the side that A pushes to.

    CISPO's weight (2506.13585) with PPO's mask, per token, as the released NRT code has it.
    """
    rho = (new - old).detach().exp()
    low, high = settings.ratio_low, settings.ratio_high
    dropped = ((weights > 0) & (rho > high)) | ((weights < 0) & (rho < low))
    return torch.where(dropped, 0, rho.clamp(low, high)) * weights * new


def ppo(new: Tensor, old: Tensor, weights: Tensor, settings: ObjectiveSettings) -> Tensor:
    """min(ρ A, clamp(ρ) A) (PPO, 1707.06347)."""
    rho = (new - old).exp()
    clipped = rho.clamp(settings.ratio_low, settings.ratio_high)
    return torch.minimum(rho * weights, clipped * weights)


RATIOS: dict[str, Callable[[Tensor, Tensor, Tensor, ObjectiveSettings], Tensor]] = {
    "none": on_policy,
    "cispo": cispo,
    "ppo": ppo,
}

#: A token that was sampled is not e^20 times likelier under the first policy, but for a mishap.
LARGEST_LOG_RATIO = 20.0


def kl_k3(new: Tensor, reference: Tensor) -> Tensor:
    """e^d − d − 1 with d = log π_0 − log π: an estimate of KL(π ‖ π_0) per sampled token that is
    never negative (Schulman, "Approximating KL divergence", k3; GRPO, 2402.03300).

    Beyond ``LARGEST_LOG_RATIO`` e^d goes on as a straight line, so that it stays finite."""
    d = reference - new
    near = d.clamp(max=LARGEST_LOG_RATIO)
    return near.exp() * (1 + d - near) - d - 1


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The terms of one group, sums over its traces, not yet divided by N."""

    trace: Tensor
    answer: Tensor
    format: Tensor
    kl: Tensor

    def total(self) -> Tensor:
        """Their sum: coefficients are already inside."""
        return self.trace + self.answer + self.format + self.kl


def group_loss(
    scores: Scores,
    signal: Signal,
    settings: ObjectiveSettings,
    rollout_trace: Tensor | None = None,
    mean_tokens: float = 1.0,
) -> LossTerms:
    """The loss of one group; its gradient is the update of the module's opening formula.

    ``rollout_trace`` (K, L) holds log π(z) under the weights that sampled it; None means these.
    ``mean_tokens`` is the mean number of policy tokens of the step's traces, for ``token_mean``.
    A tag that was forced in was not sampled: it gets the format term and no policy gradient. A
    group that was not kept has a loss of 0, with gradients of 0.
    """
    ratio = on_policy if rollout_trace is None else RATIOS[settings.ratio]
    old = scores.trace.detach() if rollout_trace is None else rollout_trace
    weights = signal.trace_weights
    weights = signal.advantages.unsqueeze(-1) if weights is None else weights
    share = token_shares(scores, settings, mean_tokens)
    kept = float(signal.kept)
    zero = scores.trace.new_zeros(())
    return LossTerms(
        trace=-kept * (ratio(scores.trace, old, weights, settings) * share).sum(),
        answer=-kept * (signal.answer_weights * scores.answer).sum(),
        format=-kept * settings.format_loss_coef * scores.forced_tag.sum(),
        kl=kept * settings.beta * _kl(scores, share) if settings.beta else zero,
    )


def token_shares(scores: Scores, settings: ObjectiveSettings, mean_tokens: float = 1.0) -> Tensor:
    """(K, L) what the term of each sampled token counts: 0 where it gets no policy gradient."""
    mask = policy_mask(scores, settings.policy_tokens)
    if settings.bad_format == "mask":
        mask = mask & scores.complete[:, None]
    counted = mask.to(scores.trace.dtype)
    if settings.length_norm == "token_mean":
        return counted / mean_tokens
    if settings.length_norm == "sequence_mean":
        return counted / counted.sum(-1, keepdim=True).clamp(min=1)
    return counted


def _kl(scores: Scores, share: Tensor) -> Tensor:
    assert scores.frozen is not None and scores.frozen.trace is not None
    return (kl_k3(scores.trace, scores.frozen.trace) * share).sum()
