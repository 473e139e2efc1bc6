"""Names that metrics, timings, notices and pages share; nothing is imported for them."""

import math

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
#: Difficulty of an answer token by exp(b), its probability after no trace: upper edges.
BINS = {"hard": 0.1, "middle": 0.5, "easy": math.inf}
#: Nats per token below which a trace makes no difference worth the name.
LEAST = 0.02
#: What the collapse guard says (collapse.py); the metric is an index.
STATES = ("healthy", "drifting", "collapsed")
COLLAPSE = "collapse_state"
