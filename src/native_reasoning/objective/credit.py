"""From a group's log-probabilities to advantages and answer weights.

For K traces z_k of one prompt, with l_{k,i} = log π(y*_i | x, z_k, y*_<i), c = exp l, and b_i the
same with an empty trace::

    R_k  = f(c_k)                        rewards.py, one function each
    R'_k = clip(R_k − R_base)            clip ∈ {none, relu}, R_base = f(exp b)
    A_k  = scale(centre(R'_k + …))       rewards.py too; scale ∈ {std, none}
    w_ki = λ c_i ∂f/∂c_i, or λ, λ c_i, 0 what the answer's tokens weigh

A and w are constants for the gradient of the loss (losses.py). Every method is a choice of settings
(settings.py, papers.py); nothing here knows a method's name. Groups of equal shape are computed
together: all tensors below have an axis of groups in front, G.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from native_reasoning.config.papers import find_preset
from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.objective.rewards import (
    CENTRES,
    LARGEST_BASELINE,
    REWARDS,
    Group,
    Reward,
    efficiency,
    per_trace,
    policy_mask,
    spread,
    twice_mean,
)
from native_reasoning.objective.types import Scores, Signal

#: The natural logarithm below which float32 has no normal number left.
UNDERFLOW = -87.0
#: Policies that leave the answer of a trace in a wrong format untrained.
ANSWER_MASKED = ("mask", "zero", "penalty")


@dataclass(frozen=True, eq=False)
class _Worth:
    """R' (G, K) in units of e^``shift``, ``unit`` the size of the rewards that it is made of, and
    whether R > R_base beyond rounding; ``shift`` and ``unit`` are (G, 1)."""

    r: Tensor
    unit: Tensor
    helped: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Objective(ObjectiveSettings):
    """The settings as a function: it maps ``Scores`` to a ``Signal``.

    A custom objective is any callable that does. ``PRESETS`` has the settings of every method, with
    its formula and source.
    """

    def __call__(self, scores: Scores) -> Signal:
        """Rewards, advantages and answer weights of one group, all without gradients.

        The formulas are those of this module's opening text; settings that need what ``scores``
        lacks (``frozen``, ``ema``) are a mistake of the caller's.
        """
        return self.of_groups([scores])[0]

    def of_groups(self, scores: Sequence[Scores]) -> list[Signal]:
        """The signals of several groups, those of equal shape computed together."""
        places = defaultdict(list)
        for i, s in enumerate(scores):
            places[s.answer.shape].append(i)
        signals: dict[int, Signal] = {}
        with torch.no_grad():
            for same in places.values():
                made = self._signals([scores[i] for i in same])
                signals.update(zip(same, made, strict=True))
        return [signals[i] for i in range(len(scores))]

    def _signals(self, scores: Sequence[Scores]) -> list[Signal]:
        adds = self._adds(scores[0])
        if self.reward == "none" and not adds:
            return [self._supervised(s) for s in scores]
        reward = REWARDS[self.reward]
        group = self._group(scores, reward)
        score, base = reward.score(group)
        worth = self._worth(score, base[:, None], reward.is_log, scores, adds)
        r = self._with_additions(worth.r, scores, group) if adds else worth.r
        unit = torch.maximum(worth.unit, r.abs().amax(-1, keepdim=True)) if adds else worth.unit
        wide = spread(r)[:, None]
        flat = wide <= scores[0].rounding * unit
        centred = CENTRES[self.centre](r)
        advantages = self._advantages(centred, unit, flat, group.complete)
        weights = self._answer_weights(group, reward, worth, scores)
        parts = self._token_rewards(group, reward, worth, weights)
        underflow = torch.zeros_like(base)
        if reward.is_log:
            underflow = ((score < UNDERFLOW) & (worth.shift == 0)).double().mean(-1)
            score, base = score.exp(), base.exp()
        if adds:  # what was added makes f alone misleading
            score, base = r, base * (self.baseline == "none")
        numbers = {
            "flat": flat[:, 0],
            "clamped": (group.clamped != group.b).double().mean(-1),
            "underflow": underflow,
            "spread": (wide * worth.shift.exp())[:, 0],
        }
        lists = {name: values.tolist() for name, values in numbers.items()}
        return [
            Signal(
                score[i],
                base[i],
                advantages[i],
                weights[i],
                token_rewards=None if parts is None else parts[i],
                helped=worth.helped[i],
                **{name: values[i] for name, values in lists.items()},
            )
            for i in range(len(scores))
        ]

    # -- What a trace is worth ---------------------------------------------------------------------

    def _supervised(self, s: Scores) -> Signal:
        """No trace term: the answer alone is trained."""
        zero = s.answer.new_zeros(len(s.answer))
        weights = self.answer_coef * self._plain_weights(s.answer)
        if self.bad_format in ANSWER_MASKED:
            weights = weights * s.complete[:, None]
        return Signal(zero, zero.sum(), zero, weights)

    def _group(self, scores: Sequence[Scores], reward: Reward) -> Group:
        """What the reward sees of these groups."""
        judges = [{"frozen": s.frozen, "ema": s.ema}.get(self.baseline, s) for s in scores]
        answerers = [s.ema if self.scored_by == "ema" else s for s in scores]
        t = scores[0].answer.shape[-1]
        last = t - (self.reward_span == "answer" and t > 1)
        b = torch.stack([judge.baseline for judge in judges])[:, :last]  # type: ignore[union-attr]
        l = torch.stack([one.answer for one in answerers])[..., :last]  # type: ignore[union-attr,misc]
        right = [
            torch.zeros_like(s.closed) if s.verdict is None else s.verdict.correct for s in scores
        ]
        return Group(
            l=l,
            b=b,
            clamped=b.clamp(reward.smallest_baseline, LARGEST_BASELINE),
            length=torch.stack([s.lengths for s in scores]),
            complete=torch.stack([s.complete for s in scores]),
            correct=torch.stack(right),
        )

    def _worth(
        self, score: Tensor, base: Tensor, is_log: bool, scores: Sequence[Scores], adds: bool
    ) -> _Worth:
        """R' and its size, from f of the traces and of the empty one.

        With std scaling any positive factor of R cancels, so R is taken relative to the largest
        reward of the group: exp(S − m). That is exact where a product would underflow. It holds
        only where nothing of another size is added to R or to its standard deviation.
        """
        compared = self.baseline != "none"
        shift = torch.zeros_like(base)
        if is_log:
            cancels = self.scale == "std" and self.std_eps is None and self.centre != "lme_loo"
            if cancels and not adds:
                shift = score.amax(-1, keepdim=True)
                shift = torch.maximum(shift, base) if compared else shift
            score, base = (score - shift).exp(), (base - shift).exp()
        if self.bad_format == "twice_mean":
            score = twice_mean(score, torch.stack([s.complete for s in scores]))
        if self.kl_in_reward:
            score = score - self.kl_in_reward * torch.stack([self._ratio(s) for s in scores])
        unit = score.abs().amax(-1, keepdim=True)
        unit = torch.maximum(unit, base.abs()) if compared else unit
        helped = score - base > scores[0].rounding * unit
        r = score - base if compared else score
        if self.clip == "relu":
            r = torch.where(r <= scores[0].rounding * unit, 0, r)
        return _Worth(r, unit, helped, shift)

    def _token_rewards(
        self, group: Group, reward: Reward, worth: _Worth, like: Tensor
    ) -> Tensor | None:
        """What each answer token puts into f's part of R' (G, K, T); ``like`` has that shape."""
        if reward.weights is None:
            return None
        clamped = per_trace(group.clamped)
        parts = reward.parts(group.l, clamped)
        if self.clip == "relu":
            if self.baseline != "none":
                parts = parts - reward.parts(per_trace(group.b), clamped)
            parts = parts * (worth.r > 0)[..., None]
        return pad(parts, (0, like.shape[-1] - parts.shape[-1]))

    def _ratio(self, s: Scores) -> Tensor:
        """(K,) log(π/π_0) of each trace, summed over its policy tokens. LaTRO (2411.04282)."""
        assert s.frozen is not None and s.frozen.trace is not None
        return ((s.trace - s.frozen.trace) * policy_mask(s, self.policy_tokens)).sum(-1)

    def _adds(self, s: Scores) -> bool:
        """Whether anything is added to R', so that its size matters."""
        return bool(
            self.format_reward
            or self.efficiency_reward
            or self.repetition_penalty
            or self.kl_in_reward
            or self.reward_coef != 1
            or self.bad_format in ("zero", "twice_mean")
            or (s.verdict is not None and s.verdict.added is not None)
        )

    def _with_additions(self, r: Tensor, scores: Sequence[Scores], group: Group) -> Tensor:
        """R' (G, K) with every reward that is not f. What can be negative comes after the zero for
        a wrong format, which would be a prize otherwise."""
        r = self.reward_coef * r
        if self.format_reward:
            r = r + self.format_reward * group.complete.to(r.dtype)
        if self.efficiency_reward:
            r = r + self.efficiency_reward * efficiency(group)
        verdicts = [s.verdict for s in scores if s.verdict is not None]
        if self.bad_format == "zero":
            r = torch.where(group.complete, r, 0)
        if self.repetition_penalty and verdicts:  # a reward of exactly 0 escapes it
            again = torch.stack([v.repetitive for v in verdicts])
            r = torch.where(again & (r != 0), r - self.repetition_penalty, r)
        if verdicts and verdicts[0].added is not None:
            r = r + torch.stack([v.added for v in verdicts])  # type: ignore[misc]
        return r

    # -- What it does to the policy ----------------------------------------------------------------

    def _advantages(self, centred: Tensor, unit: Tensor, flat: Tensor, ok: Tensor) -> Tensor:
        """A (G, K), scaled and clipped, with the policy for a wrong format; ``ok`` is complete."""
        if self.scale == "std":
            eps = 1e-6 * unit if self.std_eps is None else self.std_eps
            centred = torch.where(flat, 0, centred / (spread(centred)[:, None] + eps))
        a = self._clipped(centred)
        if self.bad_format == "penalty":
            a = a + self._format_advantages(ok.to(a.dtype))
        return torch.where(ok, a, 0) if self.bad_format == "mask" else a

    def _format_advantages(self, complete: Tensor) -> Tensor:
        """JEPO's advantage of its own for the format: −p for a wrong one, treated like R."""
        centred = CENTRES["leave_one_out"](self.format_penalty * (complete - 1))
        if self.scale == "std":
            centred = centred / (spread(centred)[:, None] + 1e-6 * self.format_penalty)
        return self._clipped(centred)

    def _clipped(self, a: Tensor) -> Tensor:
        return a if self.adv_clip is None else a.clamp(-self.adv_clip, self.adv_clip)

    def _plain_weights(self, answer: Tensor) -> Tensor:
        """w without λ (..., K, T) where it does not depend on f: 1, c_i, or 0."""
        if self.answer_weight == "probability":
            return answer.exp()
        return torch.full_like(answer, float(self.answer_weight == "one"))

    def _answer_weights(
        self, group: Group, reward: Reward, worth: _Worth, scores: Sequence[Scores]
    ) -> Tensor:
        """λ·w (G, K, T): gated, and zero where the answer is not trained."""
        answer = torch.stack([s.answer for s in scores])
        if self.answer_weight == "exact":
            assert reward.weights is not None, self.reward
            exact = reward.weights(group.l, per_trace(group.clamped))
            exact = self.reward_coef * (exact.exp() if reward.is_log else exact)
            weights = pad(exact, (0, answer.shape[-1] - exact.shape[-1]))
        else:
            weights = self._plain_weights(answer)
        if self.answer_gate == "relu":
            weights = weights * worth.helped[..., None]
        if self.bad_format in ANSWER_MASKED:
            weights = weights * group.complete[..., None]
        return weights if self.answer_coef == 1 else self.answer_coef * weights


def objective_of(settings: ObjectiveSettings) -> Objective:
    """The settings as a function."""
    return Objective(**asdict(settings))


def preset_objective(name: str) -> Objective:
    """The objective of a preset. Raises ConfigError for an unknown name."""
    return objective_of(find_preset(name).settings)
