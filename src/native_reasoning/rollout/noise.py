"""One uniform number per token, a pure function of where the token stands.

Token t of trace k of row p in step s uses ``uniforms(seed, domain, s, p, k, n)[t]``: Philox, a
counter-based generator (Salmon et al. 2011), with key (seed, domain) and counter (t, k, p, s). No
state is kept, so the same traces come out whatever the batch, the number of processes or the number
of restarts. Traces, answers, evaluation, the order of the data, benchmarks and conversations draw
from different domains.
"""

import numpy as np

TRAINING, EVALUATION, ORDER, ANSWERS, BENCHMARKS, CONVERSATION = range(6)
_MASK = (1 << 64) - 1


def uniforms(seed: int, domain: int, step: int, row: int, trace: int, count: int) -> np.ndarray:
    """``count`` float64 numbers in [0, 1), 53 random bits each. All arguments are ≥ 0."""
    raw = _philox(seed, domain, step, row, trace).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_of(seed: int, domain: int, step: int, row: int, trace: int) -> int:
    """63 bits from the same place, for samplers that draw from a generator of their own."""
    return int(_philox(seed, domain, step, row, trace).random_raw()) >> 1


def _philox(seed: int, domain: int, step: int, row: int, trace: int) -> np.random.Philox:
    key = np.array([seed & _MASK, domain], dtype=np.uint64)
    counter = np.array([0, trace, row, step], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)
