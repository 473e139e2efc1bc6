"""One optimiser step: collect, score, judge, loss.

micro-batches = collect: the rows of the step, with traces that were sampled now or before
scores        = log-probabilities of trace, answer, and answer without trace
signals       = what the objective makes of the scores: advantages and answer weights
loss          = the sum of the groups' losses over N, all traces of the step
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainerState

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.objective.losses import group_loss
from native_reasoning.rollout.schedule import PlannedStep
from native_reasoning.rollout.window import MicroBatch
from native_reasoning.scoring.diagnostics import diagnose
from native_reasoning.training.collector import Collector
from native_reasoning.training.judging import RunObjective, some
from native_reasoning.training.memory import fitting
from native_reasoning.training.recorder import Recorder


class Step:
    """The optimiser steps of a run, one after the other: ``collect`` begins one, ``train`` is
    called for each of its micro-batches."""

    def __init__(
        self,
        args: NRTConfig,
        collector: Collector,
        objective: RunObjective,
        recorder: Recorder,
        accelerator: Accelerator,
    ) -> None:
        self.args, self.accelerator = args, accelerator
        self.collector, self.objective, self.recorder = collector, objective, recorder
        self.plan: PlannedStep | None = None
        self.traces, self.mean_tokens = 0, 1.0
        self._last: MicroBatch | None = None

    def collect(
        self, state: TrainerState, whole_model: Callable[[], AbstractContextManager[nn.Module]]
    ) -> Sequence[MicroBatch]:
        """The micro-batches of step ``state.global_step``, sampled now if it opens a rollout."""
        args, recorder = self.args, self.recorder
        plan, window = self.collector.collect(state, whole_model)
        micros = window.minibatches[plan.minibatch]
        self.plan, self._last = plan, micros[-1]
        self.traces = plan.prompts * (args.num_generations if self.objective.samples else 1)
        with recorder.clock.stage("waiting"):
            self.mean_tokens = self.objective.mean_tokens(micros, self.traces)
        every = args.diagnostics_steps
        if every and self.objective.samples and state.global_step % every == 0:
            less = self.objective.less_than(max(micros, key=lambda micro: micro.rows))
            with recorder.clock.stage("diagnostics"), whole_model() as model, fitting(*less):
                recorder.findings += diagnose(micros, self.objective.scorer, model)
        return micros

    def train(
        self, micro: MicroBatch, model: nn.Module, forward_backward: Callable[..., Tensor]
    ) -> Tensor:
        """Forward and backward of a micro-batch, in parts that fit into memory; returns the loss
        for the log: one that is not a number would stay in transformers' running sum.

        Its gradient is not a number either, and ``FiniteGuard`` drops it on all ranks.
        """
        parts = [some(micro, picks) for picks in self.objective.parts(micro)]
        losses: list[Tensor] = []
        if micro.recalls is not None:
            known = [recall.scores for recall in micro.recalls]
            self._note(micro, known, [recall.signal for recall in micro.recalls])
        for part in parts:
            sync = nullcontext() if part is parts[-1] else self.accelerator.no_sync(model)
            less = self.objective.less_than(part)
            with sync, self.recorder.clock.stage("backward"), fitting(*less):
                losses.append(forward_backward(model, {"micro": part}))
            self.recorder.finite.saw_loss(losses[-1])
        if micro is self._last:
            self.recorder.clock.begin("optimiser")
        return torch.stack(losses).sum().nan_to_num(0.0, 0.0, 0.0)

    def loss(self, micro: MicroBatch, model: nn.Module) -> Tensor:
        """The micro-batch's share of the step's loss; DDP averages over ranks, hence world_size."""
        assert self.plan is not None
        share, terms, clock = self.args.world_size / self.traces, [], self.recorder.clock
        with clock.stage("scoring"), self._arithmetic():
            scores = self.objective.scores(micro, model)
        with clock.stage("objective"):
            signals = self.objective.signals(micro, scores, self.plan)
            for i, group in enumerate(micro.groups):
                if not group.weight:  # every rank takes part in the backward
                    terms.append(0.0 * scores[i].answer.sum())
                    continue
                old = micro.recalls[i].old if micro.recalls else None
                settings = self.objective.settings
                term = group_loss(scores[i], signals[i], settings, old, self.mean_tokens)
                terms.append(share * term.total())
                self.recorder.meter.add_loss(term, share / self.args.world_size)
        if micro.recalls is None:
            self._note(micro, scores, signals)
        return torch.stack(terms).sum()

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """DDP's and DeepSpeed's forwards are in the run's arithmetic already, FSDP's is not."""
        cut = self.accelerator.distributed_type == DistributedType.FSDP
        return self.accelerator.autocast() if cut else nullcontext()

    def _note(self, micro: MicroBatch, scores: Sequence[Any], signals: Sequence[Any]) -> None:
        """What the metrics and the run folder keep of a micro-batch, beside its loss."""
        assert self.plan is not None
        keeps = self.plan.first_pass and self.args.record_traces and self.objective.samples
        for i, group in enumerate(micro.groups):
            if group.weight:
                about = (group, micro.traces[i], scores[i], signals[i])
                self.recorder.note(*about, keeps=keeps)
