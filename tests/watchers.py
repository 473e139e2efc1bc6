"""Callbacks of the tests: a gradient that is kept, a power that goes off."""

import torch
from transformers import TrainerCallback


class Gradients(TrainerCallback):
    """The gradient of each step, flat."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]))


class Killed(Exception):
    """Stands for the power going off."""


class KillIn(TrainerCallback):
    """Raises in the middle of step ``step + 1``: after its backward, before its update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed
