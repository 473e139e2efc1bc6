"""Every number that a run writes: its name, its unit, and what it says. Nothing is imported for it.

``METRICS`` is what progress, the report, the card and docs/diagnostics.md read. ``TIMES`` stand in
timings.jsonl, all others in metrics.jsonl. l is the log-probability of a reference token after a
trace, b the one after an empty trace, lᵒ the one after another question's trace.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Where the time of a step goes (``meter.Clock``): ``<stage>_seconds`` in timings.jsonl.
STAGES = {
    "sampling": "Sampling traces, and answers where they are sampled",
    "scoring": "Forwards that score reference answers",
    "objective": "Rewards, advantages and the loss",
    "backward": "Gradients",
    "optimiser": "The update, with clipping",
    "diagnostics": "Exchanging traces between questions",
    "records": "Writing metrics, traces and checkpoints",
    "waiting": "Waiting for other processes",
}
#: Kinds of answer tokens that can take a reward over: how they are called, and what to set then.
KINDS = {
    "end": (
        "the end-of-turn token",
        "--objective.reward-span answer leaves that token out of the reward",
    ),
    "space": (
        "white space",
        "more --format-warmup-steps teach the format before traces are judged",
    ),
}
PARTS = {"reward": "the reward", "spread": "its spread within groups"}
#: What the collapse guard says (collapse.py); the metric is an index.
STATES = ("healthy", "drifting", "collapsed")
COLLAPSE = "collapse_state"
#: How a number of a unit is written, and by what it is multiplied before.
FORMS = {
    "share": ("{:.1f} %", 100),
    "points": ("{:+.1f}", 100),
    "nats per token": ("{:+.3f}", 1),
    "tokens": ("{:.1f}", 1),
}
#: What a value of a unit can be.
BOUNDS = {"share": (0.0, 1.0), "points": (-1.0, 1.0)}


@dataclass(frozen=True)
class Metric:
    """One number. ``sentence`` says what it is; it is healthy from ``low`` to ``high``, None where
    there is no such bound."""

    name: str
    unit: str
    sentence: str
    low: float | None = None
    high: float | None = None

    @property
    def label(self) -> str:
        """The name in words."""
        words = self.name.removeprefix("eval_").removesuffix("_seconds").replace("_", " ")
        words = words.replace("no think", "without thinking").replace("pass at k", "pass@K")
        return words.replace("maj", "of the majority")

    def text(self, value: float) -> str:
        """A value as people read it: ``25.0 %``, ``+0.051``."""
        form, factor = FORMS.get(self.unit, ("{:.3g}", 1))
        return form.format(factor * value)

    @property
    def title(self) -> str:
        """The label with the unit, where numbers do not tell it."""
        return self.label if self.unit in ("share", self.label) else f"{self.label} ({self.unit})"

    @property
    def healthy(self) -> str:
        """The healthy range in words, "" where there is none."""
        unit, factor = ("\u00a0%", 100) if self.unit == "share" else ("", 1)
        ends = (self.low, self.high)
        low, high = (None if end is None else f"{factor * end:g}{unit}" for end in ends)
        if low == high:
            return low or ""
        if low is None or high is None:
            return f"above {low}" if high is None else f"under {high}"
        return f"{low} to {high}"


_NATS = "nats per token"
#: Of each logged step.
STEP = (
    Metric("reward", "reward", "What a trace is worth; each preset has a scale of its own."),
    Metric("reward_baseline", "reward", "What an empty trace is worth."),
    Metric("uplift", _NATS, "How much likelier a reference token is after a trace: l − b.", 0),
    Metric("answer_logp", _NATS, "l; it falls where the policy is being destroyed."),
    Metric("helped", "share", "Traces that are worth more than an empty one."),
    Metric("trace_length", "tokens", "Sampled tokens of a trace with its closing tag."),
    Metric(
        "closed", "share", "Traces that end with the tag; else a longer --max-trace-length.", 0.5
    ),
    Metric("short", "share", "Traces under 16 tokens."),
    Metric("empty", "share", "Traces with nothing in them: it learns not to think.", high=0.6),
    Metric("ended", "share", "Traces that end the turn in place of the tag."),
    Metric("trace_entropy", "nats", "How undecided it is while it thinks: −log π of a token."),
    Metric("distinct", "share", "Different traces in a group; at least 1/K."),
    Metric("flat_groups", "share", "Groups of equal rewards, from which nothing is learned."),
    Metric("narrow_groups", "share", "These, and those of rewards that differ by under 5 %."),
    Metric("reward_share_end", "share", "What the end of the turn has of the reward.", high=0.5),
    Metric("spread_share_end", "share", "The same of the variance in a group.", high=0.5),
    Metric("reward_share_space", "share", "What white space has of the reward.", high=0.5),
    Metric("spread_share_space", "share", "The same of the variance in a group.", high=0.5),
    Metric("sampled_correct", "share", "Right ones among the answers sampled in training."),
    Metric("sampled_complete", "share", "Answers sampled in training in the right format."),
    Metric("sampled_answer_length", "tokens", "Tokens of an answer sampled in training."),
    Metric("added_reward", "reward", "What reward functions of your own add."),
    Metric("answer_weight", "weight", "Mean weight of an answer's log-probabilities in the loss."),
    Metric("clamped_baseline", "share", "Of b, clamped: answers too improbable for the preset."),
    Metric("underflow", "share", "Rewards too small for float32; the same warning.", 0, 0),
    Metric("kept_groups", "share", "Groups that a filter left in."),
    Metric("loss", "loss", "Advantages are centred, so near 0 is normal."),
    Metric("loss_trace", "loss", "Its policy-gradient term."),
    Metric("loss_answer", "loss", "Its term of the reference answer."),
    Metric("loss_format", "loss", "Its term of the closing tag."),
    Metric("loss_kl", "loss", "Its term of the KL divergence."),
    Metric("grad_norm", "norm", "Norm of the gradient before clipping."),
    Metric("learning_rate", "rate", "That of the next update."),
    Metric("epoch", "epochs", "Passes over the training questions."),
    Metric("skipped_updates", "share", "Updates dropped because a number was not finite.", 0, 0),
    Metric(COLLAPSE, "state", "0 healthy, 1 drifting, 2 collapsed; stderr says why.", 0, 0),
    Metric("mismatch_kl", _NATS, "KL of vLLM's distribution from the trainer's."),
    Metric("mismatch_max", "nats", "The largest difference of a log-probability from vLLM's."),
    Metric("non_finite", "names", "The numbers of this line that were not finite."),
)
#: Of a logged step every ``diagnostics_steps``.
EXCHANGE = (
    Metric("specificity", _NATS, "How much better its own trace does: l − lᵒ.", 0.02),
    Metric("specificity_se", _NATS, "Standard error of specificity over questions."),
    Metric("trace_dependence", _NATS, "log π of a trace after its own question less another's.", 0),
    Metric("leakage", "share", "Answer tokens in the trace, less those in another question's."),
    Metric("restated", "share", "Whole answers that stand in the trace."),
    Metric("clean_uplift", _NATS, "Uplift of the tokens that do not stand in the trace.", 0),
    Metric("gain_hard", _NATS, "l − lᵒ of tokens with e^b under 0.1."),
    Metric("gain_middle", _NATS, "l − lᵒ of tokens with e^b from 0.1 to 0.5."),
    Metric("gain_easy", _NATS, "l − lᵒ of the other tokens."),
    Metric("uplift_hard", _NATS, "l − b of the same tokens; even noise lifts those with a low b."),
    Metric("uplift_middle", _NATS, "The same."),
    Metric("uplift_easy", _NATS, "The same."),
)
#: Of each evaluation, with an interval over questions as ``…_low`` and ``…_high``.
MEASURED = (
    Metric("eval_accuracy", "share", "Right answers after a sampled trace."),
    Metric("eval_accuracy_maj", "share", "Of several such answers, the most common one."),
    Metric("eval_pass_at_k", "share", "Questions with at least one right among K such answers."),
    Metric("eval_accuracy_greedy", "share", "Right answers after the most likely trace."),
    Metric("eval_accuracy_no_think", "share", "Right answers after an empty trace."),
    Metric("eval_accuracy_no_think_greedy", "share", "The most likely answer after it."),
    Metric("eval_accuracy_gain", "points", "accuracy less accuracy_no_think.", 0),
    Metric("eval_exact_match", "share", "Answers with the reference's words."),
    Metric("eval_numeric_match", "share", "Answers with the reference's number."),
    Metric("eval_token_f1", "share", "Overlap of the answer's words with the reference's."),
    Metric("eval_answer_logp", _NATS, "l."),
    Metric("eval_answer_logp_no_think", _NATS, "b."),
    Metric("eval_uplift", _NATS, "l − b.", 0),
    Metric("eval_trace_length", "tokens", "Tokens of a trace."),
    Metric("eval_trace_entropy", "nats", "How undecided it is while it thinks: −log π of a token."),
    Metric("eval_closed", "share", "Traces that end with the tag.", 0.5),
    Metric("eval_cut", "share", "Answers after a trace that ran into the limit."),
    Metric("eval_cut_no_think", "share", "Answers after an empty trace that ran into it."),
)
ASKED = (
    Metric("eval_questions", "questions", "How many were asked."),
    Metric("eval_max_answer_length", "tokens", "Where answers were cut."),
    Metric("eval_other_data", "0 or 1", "1 for questions that are not the run's own."),
)
#: In timings.jsonl: of each logged step, of an evaluation, and of the whole of training.
TIMES = (
    *(Metric(f"{name}_seconds", "seconds", f"{told}.") for name, told in STAGES.items()),
    Metric("other_seconds", "seconds", "What is left of a step."),
    Metric("step_seconds", "seconds", "A step with all of these."),
    Metric("rollout_seconds", "seconds", "A step until its first forward."),
    Metric("eval_seconds", "seconds", "An evaluation."),
    Metric("train_runtime", "seconds", "All of training; what follows is transformers' own."),
    Metric("train_steps_per_second", "1/s", "Optimiser steps."),
    Metric("train_samples_per_second", "1/s", "Questions."),
    Metric("train_loss", "loss", "Its mean."),
    Metric("total_flos", "operations", "An estimate."),
)
METRICS = {metric.name: metric for metric in (*STEP, *EXCHANGE, *MEASURED, *ASKED, *TIMES)}
#: Of an evaluation for people, in this order.
SHOWN = (
    *("accuracy", "accuracy_maj", "pass_at_k", "accuracy_greedy"),
    *("accuracy_no_think", "accuracy_no_think_greedy"),
    *("token_f1", "uplift", "trace_length", "trace_entropy", "closed"),
)
#: Nats per token below which a trace makes no difference worth the name.
LEAST = METRICS["specificity"].low or 0.0


def interval_text(values: Mapping[str, Any], metric: Metric) -> str:
    """A number of an evaluation, whose names lack ``eval_`` here, with its 95 % interval:
    ``25.0 % (20.1 to 30.0)``; "–" where it is not there."""
    name = metric.name.removeprefix("eval_")
    value, low, high = (values.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    if low is None or high is None:
        return metric.text(value)
    ends = (metric.text(end).removesuffix(" %") for end in (low, high))
    return f"{metric.text(value)} ({' to '.join(ends)})"


def evaluation_rows(*columns: Mapping[str, Any] | None) -> list[list[str]]:
    """For people: a row for each of ``SHOWN`` that one of the evaluations has, with the label and
    a cell for each of them."""
    known = [column or {} for column in columns]
    return [
        [metric.title, *(interval_text(column, metric) for column in known)]
        for metric in (METRICS[f"eval_{name}"] for name in SHOWN)
        if any(metric.name.removeprefix("eval_") in column for column in known)
    ]


def one_kind(metrics: Mapping[str, float]) -> dict[str, str]:
    """A sentence for each of ``KINDS`` that has more than a healthy part of the reward, or of its
    spread within groups: ``reward_share_…`` and ``spread_share_…`` of ``metrics``, where they are
    there."""
    found = {}
    for kind, (name, cure) in KINDS.items():
        shares = {f"{part}_share_{kind}": told for part, told in PARTS.items()}
        known = {part: metrics[part] for part in shares if metrics.get(part) is not None}
        if any(share > (METRICS[part].high or 1) for part, share in known.items()):
            told = " and ".join(f"{100 * x:.0f} % of {shares[part]}" for part, x in known.items())
            found[kind] = (
                f"{name} has {told}: traces are judged by their format, not by the answer; {cure}"
            )
    return found
