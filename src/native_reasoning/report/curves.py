"""Which curves there are: the figures over optimiser steps."""

from dataclasses import dataclass

from native_reasoning.records.metrics import STAGES


@dataclass(frozen=True)
class Series:
    """A column of a run (``Run.column``). ``spread`` names what is drawn around it: "interval" (its
    ``_low`` and ``_high``) or "error" (two of its ``_se``)."""

    column: str
    label: str
    spread: str = ""


@dataclass(frozen=True)
class Curves:
    """A figure over optimiser steps. ``explains`` is one sentence for people."""

    title: str
    unit: str
    explains: str
    series: tuple[Series, ...]
    log: bool = False


CURVES = {
    "accuracy": Curves(
        "Accuracy on held-out questions",
        "share",
        "Right answers after a sampled trace and after none; bars are 95 % intervals.",
        (
            Series("eval_accuracy", "with thinking", "interval"),
            Series("eval_accuracy_no_think", "without", "interval"),
        ),
    ),
    "reward": Curves(
        "Reward",
        "reward",
        "What traces are worth, beside what an empty one is.",
        (Series("reward", "with a trace"), Series("reward_baseline", "without")),
    ),
    "kinds": Curves(
        "Reward by kind of answer token",
        "share",
        "Of the reward, and of its spread within groups, which is all that tells traces apart. The "
        "rest is the answer's own. Above a half, traces are judged by their format.",
        (
            Series("reward_share_end", "end of turn"),
            Series("reward_share_space", "white space"),
            Series("spread_share_end", "end of turn, of the spread"),
            Series("spread_share_space", "white space, of the spread"),
        ),
    ),
    "uplift": Curves(
        "Uplift",
        "nats per token",
        "How much likelier a reference token is after a trace than after none: above 0, it helps.",
        (
            Series("uplift", "training questions"),
            Series("clean_uplift", "tokens not copied from the trace"),
            Series("eval_uplift", "held-out questions", "interval"),
        ),
    ),
    "answer_logp": Curves(
        "Log-probability of the reference answer",
        "nats per token",
        "Both should rise; if only the lower one falls, uplift is a worse start.",
        (Series("answer_logp", "with a trace"), Series("answer_logp_no_think", "without")),
    ),
    "specificity": Curves(
        "Specificity",
        "nats per token",
        "How much better a question's own trace does than another question's; bars are two "
        "standard errors.",
        (Series("specificity", "specificity", "error"),),
    ),
    "dependence": Curves(
        "Trace dependence",
        "nats per trace token",
        "How much likelier a trace is after its own question than after another.",
        (Series("trace_dependence", "trace dependence"),),
    ),
    "gains": Curves(
        "Gain by difficulty",
        "nats per token",
        "The same by how probable the answer's token is without thinking: under 0.1, under 0.5, "
        "and the rest.",
        (
            Series("gain_hard", "hard tokens"),
            Series("gain_middle", "middle"),
            Series("gain_easy", "easy"),
        ),
    ),
    "leakage": Curves(
        "Leakage",
        "share",
        "Answer tokens that stand in the trace already, and answers that stand there whole.",
        (Series("leakage", "tokens"), Series("restated", "whole answers")),
    ),
    "length": Curves(
        "Trace length",
        "tokens",
        "With the closing tag.",
        (Series("trace_length", "training"), Series("eval_trace_length", "held-out", "interval")),
    ),
    "shares": Curves(
        "Shares of traces",
        "share",
        "Closed by the tag, empty, and better than no trace.",
        (Series("closed", "closed"), Series("empty", "empty"), Series("helped", "helped")),
    ),
    "entropy": Curves(
        "Trace entropy",
        "nats per token",
        "How undecided the model is while it thinks.",
        (Series("trace_entropy", "entropy"),),
    ),
    "distinct": Curves(
        "Variety",
        "share",
        "Different traces in a group, and groups whose rewards are all equal: nothing is learned "
        "from those.",
        (Series("distinct", "distinct traces"), Series("flat_groups", "flat groups")),
    ),
    "sampled": Curves(
        "Sampled answers in training",
        "share",
        "Of presets that sample an answer after each trace.",
        (Series("sampled_correct", "right"), Series("sampled_complete", "in the right format")),
    ),
    "loss": Curves(
        "Loss terms",
        "loss",
        "Not a measure of progress: advantages are centred, so near 0 is normal.",
        (
            Series("loss_trace", "trace"),
            Series("loss_answer", "answer"),
            Series("loss_format", "format"),
            Series("loss_kl", "KL"),
        ),
    ),
    "gradient": Curves(
        "Gradient norm", "norm", "Before clipping.", (Series("grad_norm", "gradient norm"),), True
    ),
    "guard": Curves(
        "Collapse guard",
        "",
        "What the guard said of each step.",
        (Series("collapse_state", "state"),),
    ),
    "seconds": Curves(
        "Time of a step, over the run",
        "seconds",
        "Seconds of each stage: a run that slows down rises.",
        (
            Series("step_seconds", "whole step"),
            *(Series(f"{stage}_seconds", stage) for stage in (*STAGES, "other")),
        ),
    ),
}
