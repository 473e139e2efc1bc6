"""One optimiser step: forward, loss and backward of micro-batches, in parts where they do not fit.

``StepInParts`` overrides ``compute_loss`` and ``training_step`` of transformers' Trainer; the rest
of the trainer is in trainer.py.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.objective.credit import Objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.types import Scores, Signal
from native_reasoning.records.runlog import RunLog
from native_reasoning.rollout.schedule import PlannedStep
from native_reasoning.rollout.window import MicroBatch, Window
from native_reasoning.scoring.diagnostics import diagnose
from native_reasoning.training.callbacks import FiniteGuard
from native_reasoning.training.checkpoints import WholeCheckpoints
from native_reasoning.training.collector import WindowMaker
from native_reasoning.training.limits import Limits, out_of_memory
from native_reasoning.training.parts import split
from native_reasoning.training.state import ObjectiveState


class StepInParts(WholeCheckpoints):
    """A Trainer whose micro-batches are ``MicroBatch``es. Abstract: what is declared here is set by
    the subclass, ``plan``, ``window`` and ``mean_tokens`` anew before each step."""

    args: NRTConfig
    settings: Objective
    maker: WindowMaker
    memory: ObjectiveState
    limits: Limits
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
                    found = diagnose(minibatch, self.maker.scorer, model, self.limits.rows)
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
        """Forward and backward of a micro-batch, in parts where it has more rows than fit.

        Out of memory, the whole optimiser step is begun again from zero gradients with half the
        rows at once and the same traces: a backward that failed has already added to them.
        """
        done = inputs["place"]  # micro-batches whose gradients are there
        while True:
            assert self.window is not None
            micros = self.window.minibatches[self.plan.minibatch][: inputs["place"] + 1]
            try:
                loss = [self._train(model, micro, *args) for micro in micros[done:]][-1]
                if inputs["last"]:
                    self.clock.begin("optimiser")
                return loss
            except RuntimeError as error:
                failed = out_of_memory(error)  # as text: the error would keep the tensors
            self.limits.fewer_rows(max(m.rows for m in micros), self.args.world_size, failed)
            self._begin_again()
            done = 0

    def _train(self, model: nn.Module, micro: MicroBatch, *args: Any) -> Tensor:
        """The loss for the log: one that is not a number would stay in transformers' running sum.

        Its gradient is not a number either, and ``FiniteGuard`` drops it on all ranks.
        """
        if micro.recalls is not None:
            known = [recall.scores for recall in micro.recalls]
            self._note(micro, known, [recall.signal for recall in micro.recalls])
        parts = [micro] if micro.recalls is None else split(micro, self.limits.rows or micro.rows)
        losses = []
        for part in parts:
            last = part is parts[-1]
            sync = nullcontext() if last else self.accelerator.no_sync(model)
            with sync, self.clock.stage("backward"):
                losses.append(super().training_step(model, {"micro": part}, *args))
            self.finite_guard.saw_loss(losses[-1])
        return torch.stack(losses).sum().nan_to_num(0.0, 0.0, 0.0)

    def _begin_again(self) -> None:
        """As the optimiser step was before its first micro-batch, its traces scored beforehand."""
        assert self.window is not None
        self.model.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        clear_device_cache()
        self.runlog.rewind()
        if self.window.minibatches[0][0].recalls is None:
            if self.memory.filter is not None:
                self.memory.filter.forget()
            with self.whole_model() as model:
                self.window = self.maker.score(self.window, self.plan, model)
