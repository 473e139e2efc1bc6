"""From a group's log-probabilities to advantages and answer weights.

For K traces z_k of one prompt, with l_{k,i} = log π(y*_i | x, z_k, y*_<i), c = exp l, and b_i the
same with an empty trace::

    R_k  = f(c_k)                        rewards.py, one function each
    R'_k = clip(R_k − R_base)            clip ∈ {none, relu}, R_base = f(exp b)
    A_k  = scale(centre(R'_k + …))       advantages.py; scale ∈ {std, none}
    w_ki = λ c_i ∂f/∂c_i, or λ, or 0     what the answer's tokens weigh

A and w are constants for the gradient of the loss (losses.py). Every method is a choice of settings
(settings.py, presets.py); nothing here knows a method's name.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from native_reasoning.advantages import ANSWER_MASKED, CENTRES, spread, twice_mean
from native_reasoning.presets import find_preset
from native_reasoning.rewards import (
    LARGEST_BASELINE,
    REWARDS,
    Group,
    Reward,
    efficiency,
    length_difference,
    log_ratio,
    policy_mask,
)
from native_reasoning.settings import ObjectiveSettings
from native_reasoning.types import Scores, Signal

#: The natural logarithm below which float32 has no normal number left.
UNDERFLOW = -87.0


@dataclass(frozen=True, eq=False)
class _Worth:
    """Rewards and what is read off them.

    ``r`` (K,) is R' in units of e^``shift``; ``unit`` is the size of the rewards it is made of,
    ``helped`` (K,) whether R > R_base beyond rounding, ``underflow`` the share of rewards that
    float32 cannot hold.
    """

    r: Tensor
    unit: Tensor
    helped: Tensor
    shift: Tensor
    underflow: float = 0.0


@dataclass(frozen=True)
class Objective(ObjectiveSettings):
    """The settings as a function: it maps ``Scores`` to a ``Signal``.

    A custom objective is any callable that does. ``PRESETS`` has the settings of every method.
    """

    def __call__(self, scores: Scores) -> Signal:
        """Rewards, advantages and answer weights of one group, all without gradients."""
        s = scores.detach()
        adds = self._adds(s)
        if self.reward == "none" and not adds:
            return self._supervised(s)
        reward = REWARDS[self.reward]
        group, clamped = self._group(s, reward)
        score, base = reward.score(group)
        worth = self._worth(score, base, reward.is_log, s, adds)
        r = self._with_additions(worth.r, s, group) if adds else worth.r
        unit = torch.maximum(worth.unit, r.abs().max()) if adds else worth.unit
        wide = spread(r)
        flat = bool(wide <= s.rounding * unit)
        centred = CENTRES[self.centre](r)
        divisor = self._divisor(centred, unit, flat)
        advantages = self._advantages(centred, divisor, flat, s.complete)
        natural, base = (score.exp(), base.exp()) if reward.is_log else (score, base)
        if adds:  # what was added makes f alone misleading
            natural, base = r, base * (self.baseline == "none")
        return Signal(
            rewards=natural,
            baseline_reward=base,
            advantages=advantages,
            answer_weights=self._answer_weights(group, reward, worth, divisor, s),
            helped=worth.helped,
            flat=flat,
            clamped=clamped,
            underflow=worth.underflow,
            spread=wide.item(),
        )

    # -- What a trace is worth ---------------------------------------------------------------------

    def _supervised(self, s: Scores) -> Signal:
        """No trace term: the answer alone is trained."""
        zero, weights = s.answer.new_zeros(len(s.answer)), torch.zeros_like(s.answer)
        if self.answer_weight == "one":
            weights = weights + self.answer_coef
        return Signal(zero, zero.sum(), zero, weights)

    def _group(self, s: Scores, reward: Reward) -> tuple[Group, float]:
        """What the reward sees, and the share of b that was clamped."""
        judges = {"none": s, "current": s, "frozen": s.frozen, "ema": s.ema}
        answerer = s.ema if self.scored_by == "ema" else s
        judge = judges[self.baseline]
        assert judge is not None and answerer is not None and answerer.answer is not None
        last = s.answer.shape[-1] - (self.reward_span == "answer" and s.answer.shape[-1] > 1)
        b = judge.baseline[:last]
        clamped_b = b.clamp(reward.smallest_baseline, LARGEST_BASELINE)
        correct = torch.zeros_like(s.closed) if s.verdict is None else s.verdict.correct
        group = Group(answerer.answer[:, :last], b, clamped_b, s.lengths, s.complete, correct)
        return group, (clamped_b != b).double().mean().item()

    def _worth(self, score: Tensor, base: Tensor, is_log: bool, s: Scores, adds: bool) -> _Worth:
        """R' and its size, from f of the traces and of the empty one.

        With std scaling any positive factor of R cancels, so R is taken relative to the largest
        reward of the group: exp(S − m). That is exact where a product would underflow. It holds
        only where nothing of another size is added to R or to its standard deviation.
        """
        compared = self.baseline != "none"
        shift, underflow = torch.zeros_like(base), 0.0
        if is_log:
            cancels = self.scale == "std" and self.std_eps is None and self.centre != "lme_loo"
            if cancels and not adds:
                shift = torch.maximum(score.max(), base) if compared else score.max()
            else:
                underflow = (score < UNDERFLOW).double().mean().item()
            score, base = (score - shift).exp(), (base - shift).exp()
        if self.bad_format == "twice_mean":
            score = twice_mean(score, s.complete)
        if self.kl_in_reward:
            assert s.frozen is not None and s.frozen.trace is not None
            ratio = log_ratio(s.trace, s.frozen.trace, policy_mask(s, self.policy_tokens))
            score = score - self.kl_in_reward * ratio
        unit = torch.maximum(score.abs().max(), base.abs()) if compared else score.abs().max()
        helped = score - base > s.rounding * unit
        r = score - base if compared else score
        if self.clip == "relu":
            r = torch.where(r <= s.rounding * unit, 0, r)
        return _Worth(r, unit, helped, shift, underflow)

    def _adds(self, s: Scores) -> bool:
        """Whether anything is added to R', so that its size matters."""
        return bool(
            self.format_reward
            or self.efficiency_reward
            or self.length_reward
            or self.repetition_penalty
            or self.kl_in_reward
            or self.reward_coef != 1
            or self.bad_format in ("zero", "twice_mean")
            or (s.verdict is not None and s.verdict.added is not None)
        )

    def _with_additions(self, r: Tensor, s: Scores, group: Group) -> Tensor:
        """R' (K,) with every reward that is not f, in the order of settings.py."""
        r = self.reward_coef * r
        if self.format_reward:
            r = r + self.format_reward * group.complete.to(r.dtype)
        if self.efficiency_reward:
            r = r + self.efficiency_reward * efficiency(group)
        if self.length_reward and s.answer_length is not None:
            r = r - self.length_reward * length_difference(
                s.answer_length.to(r.dtype), s.answer.shape[-1]
            )
        if s.verdict is not None and s.verdict.added is not None:
            r = r + s.verdict.added
        if self.bad_format == "zero":
            r = torch.where(group.complete, r, 0)
        if self.repetition_penalty and s.verdict is not None:  # a reward of exactly 0 escapes it
            r = torch.where(s.verdict.repetitive & (r != 0), r - self.repetition_penalty, r)
        return r

    # -- What it does to the policy ----------------------------------------------------------------

    def _divisor(self, centred: Tensor, unit: Tensor, flat: bool) -> Tensor:
        """What advantages are divided by; in a flat group, whose A is 0, the rewards' size."""
        if self.scale == "none":
            return torch.ones_like(unit)
        if self.std_eps is not None:
            return spread(centred) + self.std_eps
        return unit if flat else spread(centred) + 1e-6 * unit

    def _advantages(self, centred: Tensor, divisor: Tensor, flat: bool, ok: Tensor) -> Tensor:
        """A (K,) after clipping and the policy for a wrong format; ``ok`` (K,) is complete."""
        a = centred / divisor
        if flat and self.scale == "std" and self.std_eps is None:
            a = torch.zeros_like(a)
        a = self._clipped(a)
        if self.bad_format == "penalty":
            a = a + self._format_advantages(ok.to(a.dtype))
        return torch.where(ok, a, 0) if self.bad_format == "mask" else a

    def _format_advantages(self, complete: Tensor) -> Tensor:
        """JEPO's advantage of its own for the format: −p for a wrong one, treated like R."""
        centred = CENTRES["leave_one_out"](self.format_penalty * (complete - 1))
        if self.scale == "std":
            centred = centred / (spread(centred) + 1e-6 * self.format_penalty)
        return self._clipped(centred)

    def _clipped(self, a: Tensor) -> Tensor:
        return a if self.adv_clip is None else a.clamp(-self.adv_clip, self.adv_clip)

    def _answer_weights(
        self, group: Group, reward: Reward, worth: _Worth, divisor: Tensor, s: Scores
    ) -> Tensor:
        """λ·w (K, T): gated, scaled, and zero where the answer is not trained."""
        weights = torch.zeros_like(s.answer)
        if self.answer_weight == "one":
            weights = torch.ones_like(s.answer)
            if self.answer_scale == "group_std":
                weights = weights / divisor
        elif self.answer_weight == "exact":
            assert reward.weights is not None, self.reward
            scaled = self.answer_scale == "group_std"
            exact = reward.weights(group.l, group.clamped)
            if reward.is_log:
                exact = (exact - worth.shift if scaled else exact).exp()
            exact = self.reward_coef * exact
            weights[:, : exact.shape[1]] = exact / divisor if scaled else exact
        if self.answer_gate == "relu":
            weights = weights * worth.helped[:, None]
        if self.bad_format in ANSWER_MASKED:
            weights = weights * s.complete[:, None]
        return self.answer_coef * weights


def preset_objective(name: str) -> Objective:
    """The objective of a preset. Raises ConfigError for an unknown name."""
    return Objective(**asdict(find_preset(name).settings))
