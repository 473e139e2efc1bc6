"""Callbacks that every training run has: signals, and numbers that went wrong."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.ranks import largest_of_ranks

_STOPPING = (signal.SIGTERM, signal.SIGINT)


class SignalCallback(TrainerCallback):
    """SIGTERM and SIGINT save at the end of the step and leave; a second SIGINT leaves at once.

    ``received`` is the signal's number, for the exit code (128 + it), or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _STOPPING}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.received = largest_of_ranks(self.received or 0, args.device) or None
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        name = signal.Signals(number).name
        print(f"{name}: saving at the end of this step, then leaving", file=sys.stderr, flush=True)


class FiniteGuard(TrainerCallback):
    """Drops an update whose gradient is not finite, on all ranks together; the scheduler and the
    step counter go on."""

    def __init__(self) -> None:
        self._skipped = 0

    def take(self) -> int:
        """How many updates were dropped since this was asked last."""
        taken, self._skipped = self._skipped, 0
        return taken

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        finite = [p.grad.isfinite().all() for p in model.parameters() if p.grad is not None]
        broken = bool(finite) and not bool(torch.stack(finite).all())
        if largest_of_ranks(int(broken), args.device):
            self._skipped += 1
            model.zero_grad(set_to_none=True)
            told = f"step {state.global_step + 1}: gradient not finite, update skipped"
            print(told, file=sys.stderr, flush=True)
