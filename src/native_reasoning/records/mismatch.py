"""How far a sampler with kernels of its own is from the trainer, on the tokens that it sampled.

For a token drawn from the sampler's π_s, with d = log π − log π_s under the same weights,

    mismatch_kl    mean of e^d − 1 − d, an estimate of KL(π_s ‖ π) that is never negative (k3)
    mismatch_max   the largest |d|

Both are 0 where the trainer's own model samples, and nothing is logged then. Nothing else reads
what the sampler says: rewards and gradients come from the trainer's weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from native_reasoning.data.rows import Traces
from native_reasoning.objective.losses import kl_k3
from native_reasoning.objective.types import Scores


@dataclass(frozen=True)
class Mismatch:
    """Of one group: its sampled tokens, their sum of e^d − 1 − d, and the largest |d|."""

    tokens: int
    kl: float
    largest: float


def mismatch(traces: Traces, scores: Scores) -> Mismatch | None:
    """None where the sampler said nothing of its own. ``scores`` are under the weights that sampled
    and begin with the trace's tokens."""
    said = traces.sampler_logps
    if not any(said):
        return None
    assert tuple(map(len, said)) == traces.lengths
    own = torch.cat([scores.trace[k, : len(row)] for k, row in enumerate(said)]).detach().double()
    theirs = torch.tensor([logp for row in said for logp in row], dtype=own.dtype).to(own.device)
    gap = (own - theirs).abs().max()
    return Mismatch(len(own), float(kl_k3(theirs, own).sum()), float(gap))


def summary(found: Sequence[Mismatch]) -> dict[str, float]:
    """Metrics of the groups of all ranks; none where there is none."""
    if not found:
        return {}
    tokens = sum(one.tokens for one in found)
    return {
        "mismatch_kl": sum(one.kl for one in found) / tokens,
        "mismatch_max": max(one.largest for one in found),
    }
