"""The candidates for the default objective: name → (preset, what is changed in it).

``run.py candidates`` of the lab and ``run.py --candidates`` of the middle tier train them; the rule
of decision is in benchmarks/middle/README.md. A change is a setting of the objective or the run.
"""

from typing import Any

Changes = tuple[tuple[str, Any], ...]

_EXACT = ("answer_weight", "exact")
_OWN = ("answer_weight", "probability")
_UNITS = ("reward", "weighted_units")

#: In the order in which they are run.
CANDIDATES: dict[str, tuple[str, Changes]] = {
    "one": ("nrt-ws", ()),  # the present default
    # -- what the answer's tokens weigh
    "probability": ("nrt-ws", (_OWN,)),
    "units-exact": ("nrt-ws", (_UNITS, _EXACT)),
    "lambda-0.1": ("nrt-ws", (("answer_coef", 0.1),)),
    "verifree": ("verifree", ()),
    "exact": ("nrt-ws", (_EXACT,)),
    "one-gated": ("nrt-ws", (("answer_gate", "relu"),)),
    "exact-gated": ("nrt-ws", (_EXACT, ("answer_gate", "relu"))),
    "one-then-exact": ("nrt-ws", (_EXACT, ("format_warmup_steps", 20))),
    # -- what a trace is worth
    "units": ("nrt-ws", (_UNITS, _OWN)),
    "without-end": ("nrt-ws", (("reward_span", "answer"), _OWN)),
    # -- advantages
    "units-exact-unscaled": ("nrt-ws", (_UNITS, _EXACT, ("scale", "none"))),
    "exact-unscaled": ("nrt-ws", (_EXACT, ("scale", "none"))),
    "floor": ("nrt-ws", (_OWN, ("std_eps", 0.1))),
    "filter": ("nrt-ws", (_OWN, ("filter", "ema_std"))),
    # -- the optimiser
    "epsilon-1e-15": ("nrt-ws", (_OWN, ("adam_epsilon", 1e-15))),
    "epsilon-1e-6": ("nrt-ws", (_OWN, ("adam_epsilon", 1e-6))),
}
