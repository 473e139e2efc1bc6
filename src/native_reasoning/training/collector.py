"""Collects what a step trains on: samples windows of traces and judges their text."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn
from transformers import TrainerState

from native_reasoning.config.errors import warn
from native_reasoning.config.nrt_config import NRTConfig, sharded
from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.model.policy import warmup_warning
from native_reasoning.objective.types import Verdict
from native_reasoning.objective.verdicts import RewardFunctions, judge
from native_reasoning.records.meter import Clock
from native_reasoning.rollout.engine import NoiseKey, RolloutEngine, Sampling, sample_answers
from native_reasoning.rollout.noise import ANSWERS, REFERENCES, uniforms
from native_reasoning.rollout.schedule import (
    PlannedStep,
    Rows,
    Schedule,
    make_schedule,
    rank_share,
    total_steps,
)
from native_reasoning.rollout.window import Cell, MicroBatch, Window, micro_batches
from native_reasoning.training.judging import RunObjective
from native_reasoning.training.memory import Memory


class Collector:
    """Samples the windows of a run, this rank's share of them, and has the open one.

    ``groups`` are the training rows, ``engine`` samples, ``rewards`` are the user's functions.
    ``objective`` scores what is scored beforehand, ``memory`` says how much of it at once.
    ``clock`` is told what the time is spent on.
    """

    def __init__(
        self,
        args: NRTConfig,
        groups: Sequence[PromptGroup],
        engine: RolloutEngine,
        rewards: RewardFunctions,
        objective: RunObjective,
        memory: Memory,
        clock: Clock,
    ) -> None:
        self.args, self.groups, self.engine, self.rewards = args, groups, engine, rewards
        self.objective, self.memory, self.clock = objective, memory, clock
        self.template, self.settings = objective.scorer.template, objective.settings
        told = warmup_warning(self.template, args) if groups else None
        if told and args.process_index == 0:
            warn(f"warning: {told}")
        self.window: Window | None = None
        self._resumed: Path | None = None

    def restart(self, checkpoint: Path | None) -> None:
        """A run begins, or goes on from ``checkpoint``."""
        self.window, self._resumed = None, checkpoint

    @property
    def schedule(self) -> Schedule:
        """Which rows each optimiser step takes."""
        return make_schedule(len(self.groups), self.args)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return total_steps(self.schedule, self.args)

    def take_longest(self) -> None:
        """From now on the rows of a step are the longest that there are."""
        sizes = [len(group.prompt_ids) + group.answer_size for group in self.groups]
        longest = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
        rows = [self.groups[i] for i in longest[: self.schedule.prompts]]
        self.groups = [rows[i % len(rows)] for i in range(len(self.groups))]

    def is_open(self, step: int) -> bool:
        """Whether this step (from 0) trains on traces that an earlier one sampled."""
        return self.schedule.step(step).rollout < step

    def save(self, folder: Path, step: int) -> None:
        """The open window into an unfinished checkpoint, if ``step`` goes on with it."""
        if self.is_open(step):
            assert self.window is not None
            self.window.save(folder, self.args.process_index)

    def collect(
        self, state: TrainerState, whole_model: Callable[[], AbstractContextManager[nn.Module]]
    ) -> tuple[PlannedStep, Window]:
        """The plan of step ``state.global_step`` and the window that has its micro-batches: the
        open one, that of the checkpoint, or one that is sampled now."""
        plan = self.schedule.step(state.global_step)
        if self.window is None or self.window.rollout != plan.rollout:
            if self._resumed is not None and self.is_open(state.global_step):
                saved = (self._resumed, self.args.process_index, self._shares(plan))
                self.window = Window.load(*saved, partial(self._group, plan), self.args.device)
            else:
                with whole_model() as model:
                    self.window = self.sample(plan, model, state)
        return plan, self.window

    def sample(self, plan: PlannedStep, model: nn.Module, state: TrainerState) -> Window:
        """The rollout of ``plan``. With several updates, or where a group is cut, it is scored
        beforehand under ``model``."""
        a, shares = self.args, self._shares(plan)
        rows = [row for share in shares for batch in share for row in batch]
        groups = [self._group(plan, row) for row in rows]
        cells = iter(self.cells(groups, plan.rollout, state))
        several = len(shares) * a.num_iterations > 1
        minibatches: list[tuple[MicroBatch, ...]] = []
        for share in shares:
            micros = micro_batches([next(cells) for batch in share for _ in batch], share)
            for i, micro in enumerate(micros):
                if several or self.objective.is_cut(micro):
                    with self.clock.stage("scoring"):
                        fresh = not several
                        micros[i] = self.objective.remember(micro, plan, model, fresh=fresh)
            minibatches.append(tuple(micros))
        return Window(plan.rollout, tuple(minibatches))

    def cells(self, groups: Sequence[PromptGroup], step: int, state: TrainerState) -> list[Cell]:
        """The groups with traces that are sampled now for rollout ``step``, and what their text
        says where that matters."""
        real = [group for group in groups if group.weight]
        self.memory.find(real)
        with self.clock.stage("sampling"), self.engine.ready():
            sampled = iter(self._traces(real, step))
        traces = [next(sampled) if group.weight else self._empty() for group in groups]
        verdicts: Sequence[Verdict | None] = [None] * len(groups)
        if self.settings.reads_text or self.rewards:
            said = judge(groups, traces, self.template, self.rewards, trainer_state=state)
            verdicts = [verdict.to(self.args.device) for verdict in said]
        return [*map(Cell, groups, traces, verdicts)]

    def _shares(self, plan: PlannedStep) -> list[list[Rows]]:
        """The row ids of this rank's micro-batches, for each mini-batch of the rollout: one
        micro-batch, which is forwarded in parts that fit, or where weights are cut those of
        transformers' accumulation, because there all ranks have to forward equally often."""
        a = self.args
        size = a.per_device_train_batch_size
        size = size if sharded(a) else size * a.gradient_accumulation_steps
        return [
            rank_share(rows, a.process_index, a.world_size, size)
            for rows in self.schedule.rollout(plan.rollout)
        ]

    def _traces(self, groups: list[PromptGroup], step: int) -> list[Traces]:
        """Traces, with answers where the objective samples them."""
        a, key = self.args, NoiseKey(self.args.seed, step)
        if not self.objective.samples:
            return [self._empty() for _ in groups]
        sampling = Sampling(a.num_generations, a.max_trace_length, a.temperature, a.top_p)
        with self.memory.sampling(groups, sampling):
            traces = self.engine.rollout(groups, sampling, key)
            if not self.settings.samples_answers:
                return traces
            sampling = replace(sampling, max_tokens=a.max_answer_length)
            key = replace(key, domain=ANSWERS)
            answers = sample_answers(
                self.engine, self.template, groups, traces, sampling, key, only_closed=True
            )
        return [
            replace(t, answers=tuple(sample.ids for sample in after))
            for t, after in zip(traces, answers, strict=True)
        ]

    def _empty(self) -> Traces:
        return Traces((self.template.empty_trace(),), (True,))

    def _group(self, plan: PlannedStep, row: int | None) -> PromptGroup:
        """The group of a row, with one of its references, drawn for this rollout; None fills up a
        batch."""
        if row is None:
            return replace(self.groups[0], weight=0.0)
        group = self.groups[row]
        number = uniforms(self.args.seed, REFERENCES, plan.rollout, row, 0, 1)[0]
        return group.with_reference(int(number * (1 + len(group.others))))
