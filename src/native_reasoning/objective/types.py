"""What one stage of the line hands to the next: frozen dataclasses, never dicts of tensors.

    Example -> PromptGroup -> Traces -> Verdict -> Scores -> Signal

Axis names: K = traces of one prompt, L = most tokens sampled for a trace of the group, T = tokens
of the answer with its end-of-turn token. Log-probabilities are natural logarithms (nats), float32.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Nats = TypeVar("Nats")


def uplift(after: Nats, without: Any) -> Nats:
    """l − b: what a trace does to the log-probability of a reference token. Both are tensors,
    arrays or numbers; (K, T) and (T,) go together."""
    return after - without


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the text of K traces says, without any model. All of shape (K,).

    ``complete``: in the right format: the trace closed itself, and where an answer is sampled, it
    has text and ended itself, and neither of the two holds another tag. ``correct``: the sampled
    answer is the reference's text, or its first lines are where it ran on (``Example.graded``).
    ``repetitive``: ten words in a row occur ten times. ``added``: the weighted sum of the reward
    functions, if there are any.
    """

    complete: Tensor
    correct: Tensor
    repetitive: Tensor
    added: Tensor | None = None

    def to(self, device: torch.device) -> "Verdict":
        """The same on another device."""
        moved: Any = {name: x.to(device) for name, x in vars(self).items() if x is not None}
        return Verdict(**moved)


@dataclass(frozen=True, eq=False)
class Judgement:
    """The group's log-probabilities under a copy of the policy, without gradients.

    ``baseline`` (T,), and where they are asked for ``answer`` (K, T) and ``trace`` (K, L), are as
    in ``Scores``.
    """

    baseline: Tensor
    answer: Tensor | None = None
    trace: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-probabilities of one group under the trainer's weights, and what else is known of it.

    Natural logarithms (nats), float32; K traces, L sampled tokens, T answer tokens with the end of
    turn. l and b are those of NRT (arXiv 2602.11549), docs/how-it-works.md (1) and (2).

    ``trace`` (K, L): log π of every sampled token in order: the trace z, its stop decision if one
    was sampled, the answer after it if one was sampled; 0 where ``trace_mask`` (K, L) is False.
    ``answer`` (K, T): l, log π(y*_i | x, z_k, y*_<i), of the reference answer.
    ``baseline`` (T,): b, the same with an empty trace.
    ``forced_tag`` (K,): log π of the closing tag where it had to be spliced in, 0 where sampled.
    ``closed`` (K,): whether the trace closed itself.
    ``rounding``: the relative difference below which two rewards count as equal: 1e-5 for a float32
    forward, 5e-3 for bfloat16, 1e-12 for float64.
    ``trace_length`` (K,): tokens of z without its stop decision; None means ``trace_mask`` counts.
    ``answer_length`` (K,): tokens of the sampled answer; None where none was sampled.
    ``verdict`` is None where no text was looked at. ``frozen`` and ``ema`` are what the first
    policy and a lagging copy say, None where the objective does not ask them.
    ``trace``, ``answer``, ``forced_tag`` carry gradients when the forward did.

    With K = 2, L = 3, T = 2 and traces of 3 and 1 tokens, ``trace_mask`` is
    ``[[1, 1, 1], [1, 0, 0]]``.
    """

    trace: Tensor
    trace_mask: Tensor
    answer: Tensor
    baseline: Tensor
    forced_tag: Tensor
    closed: Tensor
    rounding: float = 1e-5
    trace_length: Tensor | None = None
    answer_length: Tensor | None = None
    verdict: Verdict | None = None
    frozen: Judgement | None = None
    ema: Judgement | None = None

    def detach(self) -> "Scores":
        """The same numbers without gradients."""
        names = ("trace", "answer", "baseline", "forced_tag")
        return replace(self, **{name: getattr(self, name).detach() for name in names})

    @property
    def complete(self) -> Tensor:
        """(K,) whether the trace, and the answer if one was sampled, are in the right format."""
        return self.closed if self.verdict is None else self.verdict.complete

    @property
    def lengths(self) -> Tensor:
        """(K,) tokens of each trace, without its stop decision where that is known."""
        return self.trace_mask.sum(-1) if self.trace_length is None else self.trace_length


@dataclass(frozen=True, eq=False)
class Signal:
    """What an objective makes of one group's scores; everything is a constant for the gradient.

    It is all that the loss needs beside the scores: docs/how-it-works.md (5) to (8).

    ``rewards`` (K,): R_k = f(c_k) before any clip; where a preset adds something to f, the total
    that A is made of.
    ``baseline_reward`` (): R_base, f at the empty trace; 0 where it is taken off that total.
    ``advantages`` (K,): A_k, the weight of log π(z_k).
    ``answer_weights`` (K, T): w_{k,i}, the weight of l_{k,i}, λ included.
    ``trace_weights`` (K, L): a weight of each sampled token in place of its trace's A_k, 0 where
    ``Scores.trace_mask`` is False; None means A_k for all of them.
    ``token_rewards`` (K, T): what each answer token puts into R_k, 0 where a clip took R_k away:
    exact where f is a sum or a mean, of log R where it is a product; None where R is not made of
    the reference's tokens.
    ``helped`` (K,): whether the trace beat the empty one beyond rounding; None where an objective
    does not say, and rewards are compared.
    ``flat`` says that the group's rewards were equal up to rounding; with std scaling A is then 0.
    ``clamped`` is the share of b that was clamped before it weighted anything, ``underflow`` the
    share of rewards too small for float32, ``spread`` the standard deviation of the rewards that A
    is made of. ``kept`` False leaves the group out of the step's loss; N counts it.

    Two traces, one better than the other: ``advantages = [0.71, -0.71]``.
    """

    rewards: Tensor
    baseline_reward: Tensor
    advantages: Tensor
    answer_weights: Tensor
    trace_weights: Tensor | None = None
    token_rewards: Tensor | None = None
    helped: Tensor | None = None
    flat: bool = False
    clamped: float = 0.0
    underflow: float = 0.0
    spread: float = 0.0
    kept: bool = True

    @classmethod
    def nothing(cls, scores: Scores) -> "Signal":
        """Of a group that counts for nothing: every weight is 0."""
        zero = scores.answer.detach().new_zeros(len(scores.answer))
        return cls(zero, zero.sum(), zero, torch.zeros_like(scores.answer).detach())
