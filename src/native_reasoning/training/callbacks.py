"""Callbacks that every training run has: signals, and numbers that went wrong."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.errors import RunError
from native_reasoning.model.gathered import local
from native_reasoning.model.ranks import largest_of_ranks

_STOPPING = (signal.SIGINT, signal.SIGTERM)
#: Saves and goes on; Windows has no such signal.
_SAVING: int | None = getattr(signal, "SIGUSR1", None)
#: In the order of what wins where ranks hear different ones.
_RANKED = (None, _SAVING, *_STOPPING)


class SignalCallback(TrainerCallback):
    """SIGTERM and SIGINT save at the end of the step and leave; a second SIGINT leaves at once.
    SIGUSR1 saves at the end of the step and goes on.

    ``received`` is the number of the signal to leave by, for the exit code (128 + it), or None; all
    ranks have the same.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._heard: int | None = None  # by this rank
        self._save = False
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.received, self._heard, self._save = None, None, False
        if threading.current_thread() is threading.main_thread():
            heard = [*_STOPPING, *([] if _SAVING is None else [_SAVING])]
            self._before = {number: signal.signal(number, self._note) for number in heard}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        save, self._save = self._save, False  # one that comes from now on is for the next step
        heard = self._agreed(self._heard or (_SAVING if save else None), args)
        if heard is None:
            return
        control.should_save = True
        if heard != _SAVING:
            self.received = heard
            control.should_training_stop = True

    def _agreed(self, mine: int | None, args: TrainingArguments) -> int | None:
        return _RANKED[largest_of_ranks(_RANKED.index(mine), args.device)]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.received = self._agreed(self._heard, args)  # one that came after the last step

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._heard is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == _SAVING:
            self._save, then = True, "then going on"
        else:
            self._heard, then = number, "then leaving"
        name = signal.Signals(number).name
        told = f"{name}: saving at the end of this step, {then}\n"
        with suppress(OSError):  # print may be what was interrupted, and cannot be entered twice
            os.write(2, told.encode())


class FiniteGuard(TrainerCallback):
    """Drops an update whose loss or gradient is not finite, on all ranks together; the scheduler
    and the step counter go on.

    ``report`` is told the step of each, on every rank. After ``LIMIT`` of them in a row the run
    ends with a RunError. ``scaled``: a gradient scaler (float16) finds its scale by overflowing,
    and skips by itself; it gets ``SCALING`` more.
    """

    LIMIT = 10
    SCALING = 20  # 2^16, the first scale, halved to 1 and then some

    def __init__(self, report: Callable[[int], None], *, scaled: bool = False) -> None:
        self.limit, self.report = self.LIMIT + (self.SCALING if scaled else 0), report
        self.scaled = scaled
        self.in_a_row = 0
        self._skipped = 0
        self._finite: list[Tensor] = []

    def take(self) -> int:
        """How many updates were dropped since this was asked last."""
        taken, self._skipped = self._skipped, 0
        return taken

    def saw_loss(self, loss: Tensor) -> None:
        """The loss of a part of the step."""
        self._finite.append(loss.detach().isfinite().all())

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        grads = [local(p.grad) for p in model.parameters() if p.grad is not None]
        gradients = [grad.isfinite().all() for grad in grads]
        finite, self._finite = [*self._finite, *gradients], []
        broken = bool(finite) and not bool(torch.stack(finite).all())
        if not largest_of_ranks(int(broken), args.device):
            self.in_a_row = 0
            return
        self._skipped, self.in_a_row = self._skipped + 1, self.in_a_row + 1
        if not self.scaled:
            model.zero_grad(set_to_none=True)
        step = state.global_step + 1
        told = f"step {step}: loss or gradient not finite, update skipped"
        print(told, file=sys.stderr, flush=True)
        self.report(step)
        if self.in_a_row >= self.limit:
            raise RunError(
                f"{self.in_a_row} updates in a row were not finite, the last at step {step}",
                why="every update since would have been skipped too; the weights are those from "
                "before",
                fix="look at quarantine.jsonl for rows that do this; a smaller --learning-rate, "
                "--bf16 or full precision in place of --fp16",
            )

    def state(self) -> dict[str, int]:
        """What a checkpoint holds."""
        return {"in_a_row": self.in_a_row}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on from ``state``."""
        self.in_a_row = state["in_a_row"]
