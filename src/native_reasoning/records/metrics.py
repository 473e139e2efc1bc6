"""Names that metrics, timings, notices and pages share; nothing is imported for them."""

from collections.abc import Mapping

#: Where the time of a step goes (clock.py): ``<stage>_seconds`` in timings.jsonl.
STAGES = (
    "sampling",
    "scoring",
    "objective",
    "backward",
    "optimiser",
    "diagnostics",
    "records",
    "waiting",
)
#: Nats per token below which a trace makes no difference worth the name.
LEAST = 0.02
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
#: What the collapse guard says (collapse.py); the metric is an index.
STATES = ("healthy", "drifting", "collapsed")
COLLAPSE = "collapse_state"


def one_kind(metrics: Mapping[str, float]) -> dict[str, str]:
    """A sentence for each of ``KINDS`` that has more than half of the reward, or of its spread
    within groups: ``reward_share_…`` and ``spread_share_…`` of ``metrics``, where they are there.
    """
    parts = {"reward": "the reward", "spread": "its spread within groups"}
    found = {}
    for kind, (name, cure) in KINDS.items():
        shares = {part: metrics.get(f"{part}_share_{kind}") for part in parts}
        known = {part: share for part, share in shares.items() if share is not None}
        if max(known.values(), default=0.0) > 0.5:
            told = " and ".join(f"{100 * x:.0f} % of {parts[part]}" for part, x in known.items())
            found[kind] = (
                f"{name} has {told}: traces are judged by their format, not by the answer; {cure}"
            )
    return found
