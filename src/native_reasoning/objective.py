"""From log-probabilities to a loss: rewards, advantages, answer weights, and the three loss terms.

For K traces z_k of one prompt, with l_{k,i} = log π(y*_i | x, z_k, y*_<i), c = exp l, and b_i the
same with an empty trace::

    R_k  = f(c_k)                        rewards, one function each
    R'_k = clip(R_k − R_base)            clip ∈ {none, relu}, R_base = f(exp b)
    A_k  = scale(centre(R'_k))           centre ∈ {mean, leave_one_out, none}, scale ∈ {std, none}
    L    = −Σ_k [ Σ_t ρ_{k,t} A_k log π(z_{k,t}) + λ Σ_i w_{k,i} l_{k,i} ] − λ_fmt Σ_open log π(tag)

A and w are constants for the gradient; w_i = c_i ∂f/∂c_i makes it the exact gradient of E[f]. The
trainer divides the sum over prompts by N, the number of all traces of the optimiser step.
Everything here is a pure function of tensors of one prompt group (types.py names the axes).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from native_reasoning.types import Scores, Signal

#: b is clamped to this range before it weights anything: log(−b) needs b < 0.
LARGEST_BASELINE = -1e-6
#: and for ``weighted_inverse`` from below, because 1/p of a hopeless token is without bound.
SMALLEST_INVERSE = -10.0


# -- Rewards: l (..., T) and clamped b (T,) -> a number per trace, and exact answer weights --------


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


def prob_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_i = R for R = Π c_i; log R is ``logp``. VeriFree (2505.21493)."""
    return logp(l, b).exp().unsqueeze(-1).expand_as(l)


def geometric_mean_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_i = R/T for R = (Π c_i)^{1/T}; log R is ``avg_logp``. NRT-GM, the core of NOVER."""
    return (avg_logp(l, b).exp() / l.shape[-1]).unsqueeze(-1).expand_as(l)


def log_arithmetic_mean(l: Tensor, b: Tensor) -> Tensor:
    """log R for R = mean of c_i. RLPR (2506.18254)."""
    return l.logsumexp(-1) - math.log(l.shape[-1])


def arithmetic_mean_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_i = c_i/T."""
    return l.exp() / l.shape[-1]


def log_weighted_inverse(l: Tensor, b: Tensor) -> Tensor:
    """log R for R = mean of c_i / e^{b_i}. NRT-WS(1/p) (2602.11549)."""
    return (l - b).logsumexp(-1) - math.log(l.shape[-1])


def weighted_inverse_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_i = (c_i / e^{b_i})/T."""
    return (l - b).exp() / l.shape[-1]


def log_weighted_neglog(l: Tensor, b: Tensor) -> Tensor:
    """log R for R = mean of c_i·(−b_i). NRT-WS(−log p) (2602.11549), the paper's best."""
    return (l + (-b).log()).logsumexp(-1) - math.log(l.shape[-1])


def weighted_neglog_weights(l: Tensor, b: Tensor) -> Tensor:
    """w_i = c_i·(−b_i)/T."""
    return l.exp() * -b / l.shape[-1]


@dataclass(frozen=True)
class Reward:
    """One aggregation f and its exact answer weights.

    ``score`` gives R itself, or log R where ``is_log``: a product of many probabilities is exact in
    log space and zero outside it. ``smallest_baseline`` bounds b from below.
    """

    score: Callable[[Tensor, Tensor], Tensor]
    weights: Callable[[Tensor, Tensor], Tensor]
    is_log: bool = True
    smallest_baseline: float = -math.inf


REWARDS: dict[str, Reward] = {
    "logp": Reward(logp, logp_weights, is_log=False),
    "avg_logp": Reward(avg_logp, avg_logp_weights, is_log=False),
    "prob": Reward(logp, prob_weights),
    "geometric_mean": Reward(avg_logp, geometric_mean_weights),
    "arithmetic_mean": Reward(log_arithmetic_mean, arithmetic_mean_weights),
    "weighted_inverse": Reward(
        log_weighted_inverse, weighted_inverse_weights, smallest_baseline=SMALLEST_INVERSE
    ),
    "weighted_neglog": Reward(log_weighted_neglog, weighted_neglog_weights),
}


# -- From rewards to advantages --------------------------------------------------------------------


def centre_mean(r: Tensor) -> Tensor:
    """R'_k − mean R'. Gives (K−1)/K of the exact trace term when unscaled."""
    return r - r.mean()


def centre_leave_one_out(r: Tensor) -> Tensor:
    """R'_k minus the mean of the others: the unbiased baseline (VeriFree, LaTRO); 0 for K = 1."""
    return (r - r.mean()) * (len(r) / max(len(r) - 1, 1))


CENTRES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda r: r,
    "mean": centre_mean,
    "leave_one_out": centre_leave_one_out,
}


def scale_std(centred: Tensor, unit: Tensor) -> Tensor:
    """A / (unbiased std + 1e-6·unit), where ``unit`` is the size of the group's rewards."""
    return centred / (centred.std() + 1e-6 * unit)


# -- The objective ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """What to do with a group's scores. A preset is one of these; so is any mixture of settings.

    ``reward`` None means no trace term (supervised presets). ``traces`` "empty" means that nothing
    is sampled and the answer is trained after an empty trace (SFT). ``ratio`` matters only with
    several updates per rollout. ``answer_coef`` is λ, ``format_loss_coef`` is λ_fmt.

    Calling it maps ``Scores`` to a ``Signal``; a custom objective is any callable that does.
    """

    reward: str | None = "weighted_neglog"
    baseline: str = "current"
    clip: str = "relu"
    centre: str = "mean"
    scale: str = "std"
    answer_weight: str = "one"
    answer_gate: str = "none"
    answer_coef: float = 1.0
    ratio: str = "cispo"
    ratio_low: float = 0.8
    ratio_high: float = 1.28
    format_loss_coef: float = 0.3
    traces: str = "sampled"

    def __call__(self, scores: Scores) -> Signal:
        """Rewards, advantages and answer weights of one group, all without gradients."""
        scores = scores.detach()
        l, b = scores.answer, scores.baseline
        if self.reward is None:
            zero, ungated = l.new_zeros(len(l)), l.new_ones(len(l), dtype=torch.bool)
            weights = self._answer_weights(torch.ones_like(l), ungated)
            return Signal(zero, l.new_zeros(()), zero, weights)
        reward = REWARDS[self.reward]
        clamped_b = b.clamp(reward.smallest_baseline, LARGEST_BASELINE)
        score, base = reward.score(l, clamped_b), reward.score(b, clamped_b)
        r_prime, helped, unit = self._improvement(score, base, reward.is_log, scores.rounding)
        spread = r_prime.std() if len(r_prime) > 1 else r_prime.new_zeros(())
        flat = bool(spread <= scores.rounding * unit)
        one = self.answer_weight == "one"
        weights = torch.ones_like(l) if one else reward.weights(l, clamped_b)
        return Signal(
            rewards=score.exp() if reward.is_log else score,
            baseline_reward=base.exp() if reward.is_log else base,
            advantages=self._advantages(r_prime, unit, flat),
            answer_weights=self._answer_weights(weights, helped),
            helped=helped,
            flat=flat,
            clamped=(clamped_b != b).double().mean().item(),
        )

    def _improvement(
        self, score: Tensor, base: Tensor, is_log: bool, rounding: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R' (K,), whether R > R_base (K,), and the size s of the rewards that R' is made of.

        With std scaling any positive factor of R cancels, so R is taken relative to the largest
        reward of the group: exp(S − m). That is exact where a product would underflow.
        """
        current = self.baseline == "current"
        if is_log:
            largest = torch.maximum(score.max(), base) if current else score.max()
            shift = largest if self.scale == "std" else torch.zeros_like(largest)
            score, base = (score - shift).exp(), (base - shift).exp()
        unit = torch.maximum(score.abs().max(), base.abs()) if current else score.abs().max()
        helped = score - base > rounding * unit
        r_prime = score - base if current else score
        if self.clip == "relu":
            r_prime = torch.where(r_prime <= rounding * unit, 0, r_prime)
        return r_prime, helped, unit

    def _advantages(self, r_prime: Tensor, unit: Tensor, flat: bool) -> Tensor:
        centred = CENTRES[self.centre](r_prime)
        if self.scale == "none":
            return centred
        return torch.zeros_like(centred) if flat else scale_std(centred, unit)

    def _answer_weights(self, weights: Tensor, helped: Tensor) -> Tensor:
        """λ·w, gated; zero where the answer is not trained."""
        if self.answer_weight == "none":
            return torch.zeros_like(weights)
        if self.answer_gate == "relu":
            weights = weights * helped.unsqueeze(-1)
        return self.answer_coef * weights


# -- The loss --------------------------------------------------------------------------------------


def on_policy(new: Tensor, old: Tensor, advantages: Tensor, objective: Objective) -> Tensor:
    """A log π: the importance ratio is taken as 1."""
    return advantages * new


def cispo(new: Tensor, old: Tensor, advantages: Tensor, objective: Objective) -> Tensor:
    """sg(clamp(ρ)) A log π, dropped where ρ left the range on the side that A pushes to.

    CISPO's weight (2506.13585) with PPO's mask, per token, as the released NRT code has it.
    """
    rho = (new - old).detach().exp()
    low, high = objective.ratio_low, objective.ratio_high
    dropped = ((advantages > 0) & (rho > high)) | ((advantages < 0) & (rho < low))
    return torch.where(dropped, 0, rho.clamp(low, high)) * advantages * new


def ppo(new: Tensor, old: Tensor, advantages: Tensor, objective: Objective) -> Tensor:
    """min(ρ A, clamp(ρ) A) (PPO, 1707.06347)."""
    rho = (new - old).exp()
    clipped = rho.clamp(objective.ratio_low, objective.ratio_high)
    return torch.minimum(rho * advantages, clipped * advantages)


RATIOS: dict[str, Callable[[Tensor, Tensor, Tensor, Objective], Tensor]] = {
    "none": on_policy,
    "cispo": cispo,
    "ppo": ppo,
}


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The three terms of one group, sums over its traces, not yet divided by N."""

    trace: Tensor
    answer: Tensor
    format: Tensor

    def total(self) -> Tensor:
        """Their sum: coefficients are already inside."""
        return self.trace + self.answer + self.format


def group_loss(
    scores: Scores,
    signal: Signal,
    objective: Objective,
    rollout_trace: Tensor | None = None,
) -> LossTerms:
    """The loss of one group; its gradient is the update of the module's opening formula.

    ``rollout_trace`` (K, L) holds log π(z) under the weights that sampled it; None means these.
    A tag that was forced in was not sampled: it gets the format term and no policy gradient.
    """
    ratio = on_policy if rollout_trace is None else RATIOS[objective.ratio]
    old = scores.trace.detach() if rollout_trace is None else rollout_trace
    per_token = ratio(scores.trace, old, signal.advantages.unsqueeze(-1), objective)
    return LossTerms(
        trace=-(per_token * scores.trace_mask).sum(),
        answer=-(signal.answer_weights * scores.answer).sum(),
        format=-objective.format_loss_coef * scores.forced_tag.sum(),
    )
