"""Which groups a step trains on: RLPR's filter by the spread of their rewards (2506.18254)."""

import math
from dataclasses import replace
from typing import Any

import torch

from native_reasoning.model.ranks import sum_of_ranks
from native_reasoning.objective.types import Signal

#: As in RLPR's released code: rollouts 6 to 10 begin the mean, the filter acts from rollout 11.
FIRST, LAST, DECAY = 6, 10, 0.99


class StdFilter:
    """Keeps a group whose standard deviation of rewards is at least ``coef`` times a running mean.

    The mean over a rollout's groups, kept or not, enters the running mean when the rollout is
    closed; so one threshold holds for the whole rollout, on every rank and in any order.
    """

    def __init__(self, coef: float) -> None:
        self.coef = coef
        self.rollouts, self.mean, self._first = 0, None, []
        self._sum, self._count = 0.0, 0

    @property
    def threshold(self) -> float | None:
        """The least standard deviation that is kept; None before the filter acts."""
        return None if self.mean is None else self.coef * self.mean

    def judge(self, signal: Signal) -> Signal:
        """The signal, marked as not kept where the filter leaves its group out; its spread enters
        the running mean either way."""
        if math.isfinite(signal.spread):  # a broken step must not break the mean for good
            self._sum, self._count = self._sum + signal.spread, self._count + 1
        kept = self.threshold is None or signal.spread >= self.threshold
        return signal if kept else replace(signal, kept=False)

    def close(self, device: torch.device) -> None:
        """Ends a rollout, on all ranks together."""
        total, count = sum_of_ranks([self._sum, float(self._count)], device)
        self._sum, self._count = 0.0, 0
        self.rollouts += 1
        mean = total / max(count, 1)
        if FIRST <= self.rollouts <= LAST:
            self._first.append(mean)
        if self.rollouts == LAST:
            self.mean = sum(self._first) / len(self._first)
        elif self.mean is not None:
            self.mean = DECAY * self.mean + (1 - DECAY) * mean

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; between rollouts nothing else is known."""
        return {"rollouts": self.rollouts, "mean": self.mean, "first": list(self._first)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
        self.rollouts, self.mean = state["rollouts"], state["mean"]
        self._first = list(state["first"])
