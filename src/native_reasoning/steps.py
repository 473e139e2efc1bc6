"""One optimiser step: forward, loss and backward of micro-batches, in parts where they do not fit.

``StepInParts`` overrides ``compute_loss`` and ``training_step`` of transformers' Trainer; the rest
of the trainer is in trainer.py.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from native_reasoning.callbacks import FiniteGuard
from native_reasoning.checkpoints import WholeCheckpoints
from native_reasoning.config import NRTConfig
from native_reasoning.diagnostics import diagnose
from native_reasoning.groups import PlannedStep
from native_reasoning.losses import group_loss
from native_reasoning.maker import WindowMaker
from native_reasoning.objective import Objective
from native_reasoning.parts import fewer_rows, fitting, split
from native_reasoning.runlog import RunLog
from native_reasoning.state import ObjectiveState
from native_reasoning.types import Scores, Signal
from native_reasoning.window import MicroBatch, Window


class StepInParts(WholeCheckpoints):
    """A Trainer whose micro-batches are ``MicroBatch``es. Abstract: what is declared here is set by
    the subclass, ``plan``, ``window`` and ``mean_tokens`` anew before each step."""

    args: NRTConfig
    settings: Objective
    maker: WindowMaker
    memory: ObjectiveState
    finite_guard: FiniteGuard
    runlog: RunLog
    plan: PlannedStep
    window: Window | None
    mean_tokens: float

    @property
    def traces_per_step(self) -> int:
        """N, all traces of the step, over all ranks."""
        return self.plan.prompts * (self.args.num_generations if self.maker.samples else 1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The micro-batch's share of the step's loss; DDP averages over ranks, hence world_size."""
        micro: MicroBatch = inputs["micro"]
        share, terms = self.args.world_size / self.traces_per_step, []
        # DDP's and DeepSpeed's forwards are in the run's arithmetic already, FSDP's is not
        arithmetic = self.accelerator.autocast() if self.is_fsdp_enabled else nullcontext()
        with self.clock.stage("scoring"), arithmetic:
            found = self.maker.scores(micro, model)
        with self.clock.stage("objective"):
            signals = (
                self.maker.signals(micro, found, self.plan)
                if micro.recalls is None
                else [recall.signal for recall in micro.recalls]
            )
            for i, (scores, signal) in enumerate(zip(found, signals, strict=True)):
                if not micro.groups[i].weight:
                    terms.append(0.0 * scores.answer.sum())  # every rank takes part in the backward
                    continue
                old = micro.recalls[i].old if micro.recalls else None
                term = group_loss(scores, signal, self.settings, old, self.mean_tokens)
                terms.append(share * term.total())
                self.runlog.note_loss(term, share / self.args.world_size)
        if micro.recalls is None:
            self._note(micro, found, signals)
        return torch.stack(terms).sum()

    def diagnose(self, minibatch: Sequence[MicroBatch]) -> None:
        """Exchanges traces between the prompts of a step that is about to begin, every
        ``diagnostics_steps``."""
        every = self.args.diagnostics_steps
        if every and self.maker.samples and self.state.global_step % every == 0:
            with self.clock.stage("diagnostics"):
                with self.whole_model() as model:
                    found = diagnose(
                        minibatch, self.maker.scorer, model, self.args.rows_per_forward
                    )
                self.runlog.note_findings(found)

    def _note(self, micro: MicroBatch, found: Sequence[Scores], signals: Sequence[Signal]) -> None:
        """What the metrics and the run folder keep of a micro-batch, beside its loss."""
        write = self.plan.first_pass and self.args.record_traces and self.maker.samples
        for i, (scores, signal) in enumerate(zip(found, signals, strict=True)):
            if micro.groups[i].weight:
                about = (micro.groups[i], micro.traces[i], scores, signal)
                self.runlog.note(*about)
                if write:
                    self.runlog.note_traces(self.state.global_step + 1, *about)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> Tensor:  # type: ignore[override]
        """Forward and backward of a micro-batch, in parts of ``rows_per_forward`` rows; returns the
        loss for the log: one that is not a number would stay in transformers' running sum.

        Its gradient is not a number either, and ``FiniteGuard`` drops it on all ranks.
        """
        assert self.window is not None
        micro = self.window.minibatches[self.plan.minibatch][inputs["place"]]
        rows, losses = self.args.rows_per_forward or micro.rows, []
        if micro.recalls is not None:
            known = [recall.scores for recall in micro.recalls]
            self._note(micro, known, [recall.signal for recall in micro.recalls])
        parts = [micro] if micro.recalls is None else split(micro, rows)
        for part in parts:
            sync = nullcontext() if part is parts[-1] else self.accelerator.no_sync(model)
            with sync, self.clock.stage("backward"), fitting(*fewer_rows(part.rows)):
                losses.append(super().training_step(model, {"micro": part}, *args))
            self.finite_guard.saw_loss(losses[-1])
        if inputs["last"]:
            self.clock.begin("optimiser")
        return torch.stack(losses).sum().nan_to_num(0.0, 0.0, 0.0)
