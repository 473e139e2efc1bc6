"""The settings of an objective, each written once: name, type, default and one sentence.

No torch here, so that ``nrt presets`` and ``nrt train --help`` answer at once. ``Objective``
(objective/credit.py) is these settings as a function; a preset (papers.py) is one choice of them.
"""

from dataclasses import dataclass, field, fields
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    within: tuple[float, float] | None = None,
) -> Any:
    """A dataclass field with its one sentence of help. ``choices`` are the values that it may take,
    ``within`` the least and the largest number: unless given, from 0 for a float, from 1 for an
    int."""
    if within is None:
        within = {float: (0, 1e6), int: (1, 1e9)}.get(type(default))
    return field(default=default, metadata={"help": help, "choices": choices, "within": within})


#: Rewards whose exact answer weights exist; the others judge traces and train no answer token.
TOKEN_REWARDS = (
    "logp",
    "avg_logp",
    "prob",
    "geometric_mean",
    "arithmetic_mean",
    "weighted_inverse",
    "weighted_neglog",
    "jepo",
)
#: Those that are logarithms of probabilities: negative, with 0 the best there is.
LOG_PROBABILITIES = ("logp", "avg_logp", "jepo")
GROUP_REWARDS = ("reflection", "length_normalised", "perplexity_rank", "exact_match")


@dataclass(frozen=True)
class ObjectiveSettings:
    """What to do with a group's scores, in the order of the computation. A preset is one of these;
    so is any mixture of settings."""

    # -- what a trace is worth
    reward: str = setting(
        "weighted_neglog",
        "f: what a trace is worth, from the reference answer's log-probabilities",
        choices=("none", *TOKEN_REWARDS, *GROUP_REWARDS),
    )
    reward_span: str = setting(
        "answer_end",
        "tokens of the answer that f looks at: with its end-of-turn token, or without",
        choices=("answer_end", "answer"),
    )
    scored_by: str = setting(
        "current",
        "whose probabilities of the answer f takes: ema is a lagging copy",
        choices=("current", "ema"),
    )
    baseline: str = setting(
        "current",
        "whose answer without a trace is R_base: of this step, of the first policy, of an EMA",
        choices=("none", "current", "frozen", "ema"),
    )
    clip: str = setting(
        "relu", "relu: a trace that hurts is worth nothing", choices=("none", "relu")
    )
    # -- what is added to it
    reward_coef: float = setting(1.0, "coefficient of the clipped reward", within=(1e-9, 1e6))
    format_reward: float = setting(0.0, "added for a sampled text in the right format")
    efficiency_reward: float = setting(
        0.0, "times the share of the other traces that are both longer and worse (NOVER)"
    )
    repetition_penalty: float = setting(
        0.0, "taken off a text in which ten words in a row occur ten times (RLPR)"
    )
    kl_in_reward: float = setting(
        0.0, "times log(pi/pi_0) of the sampled tokens, taken off the reward (LaTRO)"
    )
    bad_format: str = setting(
        "splice",
        "a trace that did not close itself: score it with the tag spliced in, leave it out, give "
        "it 0, give it a penalty of its own, or twice the group's mean",
        choices=("splice", "mask", "zero", "penalty", "twice_mean"),
    )
    format_penalty: float = setting(
        10.0,
        "size of the penalty with bad_format penalty (JEPO); with scale std it is divided out",
        within=(1e-9, 1e9),
    )
    # -- advantages
    centre: str = setting(
        "mean",
        "what is subtracted from the group's rewards",
        choices=("mean", "leave_one_out", "lme_loo", "rank", "none"),
    )
    scale: str = setting(
        "std", "std: divide advantages by the group's standard deviation", choices=("std", "none")
    )
    std_eps: float | None = setting(
        None,
        "added to the standard deviation; default: a millionth of the rewards' size",
        within=(0, 1e6),
    )
    adv_clip: float | None = setting(
        None, "bound of an advantage's size, after scaling", within=(1e-9, 1e9)
    )
    # -- the answer term
    answer_weight: str = setting(
        "one", "weight of each answer token in the answer term", choices=("one", "exact", "none")
    )
    answer_gate: str = setting(
        "none", "relu: train the answer only after traces that helped", choices=("none", "relu")
    )
    answer_scale: str = setting(
        "none",
        "group_std: divide answer weights by the std too; they grow as a group gets flat",
        choices=("none", "group_std"),
    )
    answer_coef: float = setting(1.0, "coefficient of the answer term (lambda)")
    # -- the loss
    policy_tokens: str = setting(
        "trace_tag",
        "sampled tokens with policy gradient: the trace, its closing tag, an answer after it",
        choices=("trace", "trace_tag", "trace_tag_answer"),
    )
    ratio: str = setting(
        "cispo",
        "importance ratio with several updates per rollout",
        choices=("none", "cispo", "ppo"),
    )
    ratio_low: float = setting(0.8, "lower bound of the importance ratio", within=(0, 1))
    ratio_high: float = setting(1.28, "upper bound of the importance ratio", within=(1, 1e6))
    length_norm: str = setting(
        "token_sum",
        "a trace's tokens: summed, divided by the step's mean length, or by its own length",
        choices=("token_sum", "token_mean", "sequence_mean"),
    )
    beta: float = setting(0.0, "coefficient of the KL divergence from the first policy (k3)")
    format_loss_coef: float = setting(
        0.3, "coefficient of the loss on a closing tag that had to be spliced in"
    )
    # -- which groups are trained on, and copies of the policy
    filter: str = setting(
        "none",
        "ema_std: drop groups whose rewards differ little (RLPR)",
        choices=("none", "ema_std"),
    )
    filter_coef: float = setting(0.5, "the filter's share of the running mean of the std")
    ema_decay: float = setting(
        0.9, "weight of the old copy at each update of the EMA", within=(0, 1)
    )
    ema_steps: int = setting(100, "optimiser steps between updates of the EMA")
    traces: str = setting(
        "sampled",
        "empty: nothing is sampled, the answer follows an empty trace",
        choices=("sampled", "empty"),
    )

    @property
    def samples_answers(self) -> bool:
        """Whether an answer is sampled after each trace."""
        return self.policy_tokens == "trace_tag_answer"

    @property
    def needs_reference(self) -> bool:
        """Whether the first policy's log-probabilities of the sampled tokens are needed."""
        return bool(self.beta or self.kl_in_reward)

    @property
    def needs_frozen(self) -> bool:
        """Whether a copy of the first policy is kept."""
        return self.needs_reference or self.baseline == "frozen"

    @property
    def needs_ema(self) -> bool:
        """Whether a lagging copy of the policy is kept."""
        return "ema" in (self.baseline, self.scored_by)

    @property
    def reads_text(self) -> bool:
        """Whether the text of what was sampled matters, beside its probabilities."""
        return self.samples_answers or bool(self.repetition_penalty)


SETTINGS = {f.name: f for f in fields(ObjectiveSettings)}
