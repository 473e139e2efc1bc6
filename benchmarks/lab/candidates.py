"""The candidates for the default objective: name → (preset, what is changed in it).

``run.py candidates`` of the lab and ``run.py --candidates`` of the middle tier train them; the rule
of decision is in benchmarks/middle/README.md. A change is a setting of the objective or the run.
"""

from typing import Any

Changes = tuple[tuple[str, Any], ...]

_EXACT = ("answer_weight", "exact")
_CLIPPED = (_EXACT, ("answer_gate", "relu"))
_UNITS = ("reward", "weighted_units")

CANDIDATES: dict[str, tuple[str, Changes]] = {
    # -- what the answer's tokens weigh
    "one": ("nrt-ws", ()),  # the present default
    "probability": ("nrt-ws", (("answer_weight", "probability"),)),
    "exact": ("nrt-ws", (_EXACT,)),
    "exact-gated": ("nrt-ws", _CLIPPED),
    "one-gated": ("nrt-ws", (("answer_gate", "relu"),)),
    "lambda-0.1": ("nrt-ws", (("answer_coef", 0.1),)),
    "one-then-exact": ("nrt-ws", (_EXACT, ("format_warmup_steps", 20))),
    "verifree": ("verifree", ()),
    # -- what a trace is worth
    "units": ("nrt-ws", (_UNITS, ("answer_weight", "probability"))),
    "units-exact": ("nrt-ws", (_UNITS, _EXACT)),
    "without-end": ("nrt-ws", (("reward_span", "answer"), ("answer_weight", "probability"))),
    # -- advantages
    "units-exact-unscaled": ("nrt-ws", (_UNITS, _EXACT, ("scale", "none"))),
    "exact-unscaled": ("nrt-ws", (_EXACT, ("scale", "none"))),
    "floor": ("nrt-ws", (("answer_weight", "probability"), ("std_eps", 0.1))),
    "filter": ("nrt-ws", (("answer_weight", "probability"), ("filter", "ema_std"))),
    # -- the optimiser
    "epsilon-1e-15": ("nrt-ws", (("answer_weight", "probability"), ("adam_epsilon", 1e-15))),
    "epsilon-1e-6": ("nrt-ws", (("answer_weight", "probability"), ("adam_epsilon", 1e-6))),
}
