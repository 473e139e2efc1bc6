"""Makes windows: samples traces, judges their text, and scores them where that comes beforehand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.model.forward import inference
from native_reasoning.model.ranks import sum_of_ranks
from native_reasoning.objective.credit import Objective
from native_reasoning.objective.custom import RewardFunctions, check_signal, name_of
from native_reasoning.objective.types import Scores, Signal, Verdict
from native_reasoning.objective.verdicts import judge
from native_reasoning.records.clock import Clock
from native_reasoning.rollout.answers import sample_answers
from native_reasoning.rollout.engine import NoiseKey, RolloutEngine, Sampling
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.schedule import PlannedStep, Rows, Schedule, rank_share
from native_reasoning.rollout.window import (
    Cell,
    MicroBatch,
    Recall,
    Window,
    in_batches,
    micro_batch,
)
from native_reasoning.scoring.rating import Rater
from native_reasoning.scoring.scorer import Scorer
from native_reasoning.training.limits import Limits, out_of_memory
from native_reasoning.training.parts import cut, cut_scores, join, pieces
from native_reasoning.training.state import ObjectiveState

#: Scores of the sampler's own caches are those of the training forward up to this rounding; coarser
#: arithmetic rounds differently in other shapes, and then the forward of training scores.
_FINEST = 1e-5


class WindowMaker:
    """Samples and scores windows of one run, this rank's share of them.

    ``engine`` samples; where it is the model itself, scores can be taken on the way. ``scorer``
    scores, ``objective`` makes signals, ``rewards`` are the user's functions, ``state`` has what
    the objective remembers.
    """

    def __init__(
        self,
        args: NRTConfig,
        groups: Sequence[PromptGroup],
        engine: RolloutEngine,
        scorer: Scorer,
        objective: Callable[[Scores], Signal],
        rewards: RewardFunctions,
        state: ObjectiveState,
        limits: Limits,
    ) -> None:
        self.args, self.groups, self.template = args, groups, scorer.template
        self.engine, self.scorer = engine, scorer
        self.objective, self.rewards, self.state = objective, rewards, state
        self.limits, self.settings = limits, args.resolved_objective()
        self.samples = self.settings.traces == "sampled"
        self.clock = Clock()

    def make(
        self,
        schedule: Schedule,
        plan: PlannedStep,
        model: nn.Module,
        *,
        beforehand: bool = False,
        **context: Any,
    ) -> Window:
        """Rolls out ``plan.rollout``. With several updates, or where it is asked for, it is scored
        ``beforehand`` under ``model``. ``context`` is handed to the reward functions."""
        shares = self._shares(schedule, plan)
        rows = [r for s in shares for batch in s for r in batch]
        groups = [self._filler() if r is None else self.groups[r] for r in rows]
        real = [group for group in groups if group.weight]
        several = len(shares) * self.args.num_iterations > 1
        with self.clock.stage("sampling"), self.engine.ready():
            rated = self._sampled(real, plan.rollout, several or beforehand)
        sampled = iter(rated)
        found = [next(sampled) if group.weight else (self._empty(), None) for group in groups]
        verdicts = self._verdicts(groups, [traces for traces, _ in found], context)
        cells = iter([Cell(g, *f, v) for g, f, v in zip(groups, found, verdicts, strict=True)])
        micros: list[list[MicroBatch]] = []
        for share in shares:
            batches = in_batches([next(cells) for batch in share for _ in batch], share)
            micros.append([micro_batch(batch) for batch in batches])
            if several or beforehand:
                micros[-1] = [
                    self._remember(micro, plan, model, several, [cell.scores for cell in batch])
                    for micro, batch in zip(micros[-1], batches, strict=True)
                ]
        return Window(plan.rollout, tuple(map(tuple, micros)))

    def reopen(self, checkpoint: Path, schedule: Schedule, plan: PlannedStep) -> Window:
        """This rank's share of the window that was open when a checkpoint was written, on as many
        ranks as there were then."""
        rank, shares = self.args.process_index, self._shares(schedule, plan)
        return Window.load(checkpoint, rank, shares, self.groups, self._filler(), self.args.device)

    def _shares(self, schedule: Schedule, plan: PlannedStep) -> list[list[Rows]]:
        """The row ids of this rank's micro-batches, for each mini-batch of the rollout."""
        a = self.args
        return [
            rank_share(rows, a.process_index, a.world_size, a.per_device_train_batch_size)
            for rows in schedule.rollout(plan.rollout)
        ]

    def score(self, window: Window, plan: PlannedStep, model: nn.Module) -> Window:
        """The window of one optimiser step with its scores taken beforehand after all."""
        scored = [
            [self._remember(m, plan, model, False, [None] * len(m.groups)) for m in minibatch]
            for minibatch in window.minibatches
        ]
        return replace(window, minibatches=tuple(map(tuple, scored)))

    def scores(self, micro: MicroBatch, model: nn.Module) -> list[Scores]:
        """Scores of a micro-batch under ``model``, with gradients if they are on."""
        if micro.recalls is None:
            return self._attach(micro, self.scorer(model, micro.groups, micro.traces))
        known = [recall.scores for recall in micro.recalls]
        scores = self.scorer(model, micro.groups, micro.traces, [k.baseline for k in known])
        pairs = zip(self._with_verdicts(micro, scores), known, strict=True)
        return [replace(s, frozen=k.frozen) for s, k in pairs]

    def _attach(self, micro: MicroBatch, scores: Sequence[Scores]) -> list[Scores]:
        """The scores with what is known of the text, and what copies of the policy say."""
        scores = self._with_verdicts(micro, scores)
        if self.state.judges is None:
            return scores
        return self.state.judges.attach(scores, micro.groups, micro.traces)

    def _with_verdicts(self, micro: MicroBatch, scores: Sequence[Scores]) -> list[Scores]:
        if micro.verdicts is None:
            return list(scores)
        pairs = zip(scores, micro.verdicts, strict=True)
        return [replace(one, verdict=verdict) for one, verdict in pairs]

    def signals(
        self, micro: MicroBatch, scores: Sequence[Scores], plan: PlannedStep
    ) -> list[Signal]:
        """The objective's signal of each group, in the format warm-up without its trace term;
        groups of weight 0 get one of zeros.

        Raises RunError where an objective of the user's own returns what does not fit.
        """
        real = [s for s, group in zip(scores, micro.groups, strict=True) if group.weight]
        made = iter(self._judged(real))
        warm = plan.rollout < self.args.format_warmup_steps
        signals = [
            next(made) if group.weight else Signal.nothing(s)
            for s, group in zip(scores, micro.groups, strict=True)
        ]
        zeros = {"trace_weights": None, "token_rewards": None, "kept": True}
        return [
            replace(s, advantages=torch.zeros_like(s.advantages), **zeros) if warm else s
            for s in signals
        ]

    def _judged(self, scores: Sequence[Scores]) -> list[Signal]:
        objective, filter = self.objective, self.state.filter
        if isinstance(objective, Objective) and type(objective).__call__ is Objective.__call__:
            signals = objective.of_groups(scores)
        else:  # the user's own, or a subclass with a __call__ of its own
            name = name_of(objective)
            signals = [check_signal(objective(s.detach()), s, name) for s in scores]
        return signals if filter is None else [filter.judge(signal) for signal in signals]

    def mean_tokens(self, minibatch: Sequence[MicroBatch], traces: int) -> float:
        """Sampled tokens with policy gradient per trace of a step that has ``traces`` of them over
        all ranks; 1 where nothing is divided by it."""
        if self.settings.length_norm != "token_mean":
            return 1.0
        pairs = [pair for m in minibatch for pair in zip(m.groups, m.traces, strict=True)]
        count = sum(self._policy_tokens(t) for group, t in pairs if group.weight)
        (total,) = sum_of_ranks([float(count)], self.args.device)
        return max(total, 1.0) / traces

    def _policy_tokens(self, traces: Traces) -> int:
        if self.settings.policy_tokens == "trace":
            closed = [z for z, closed in zip(traces.ids, traces.closed, strict=True) if closed]
            return sum(map(len, traces.ids)) - sum(map(self.template.tag_length, closed))
        return sum(traces.lengths) + sum(map(len, traces.answers))

    # -- scores taken beforehand -------------------------------------------------------------------

    def _remember(
        self,
        micro: MicroBatch,
        plan: PlannedStep,
        model: nn.Module,
        several: bool,
        known: Sequence[Scores | None],
    ) -> MicroBatch:
        """The micro-batch with what is remembered of it. The scores that are not ``known`` are
        computed."""
        with self.clock.stage("scoring"), inference(model):
            scores = [self._scored(micro, g, model, found) for g, found in enumerate(known)]
        recalls = []
        for s, signal in zip(scores, self.signals(micro, scores, plan), strict=True):
            recalls.append(Recall(signal, s.detach(), fresh=not several))
        return replace(micro, recalls=tuple(recalls))

    def _scored(self, micro: MicroBatch, g: int, model: nn.Module, known: Scores | None) -> Scores:
        """The scores of one group, as many rows at once as fit."""
        count = len(micro.traces[g].ids)
        while True:
            cuts = pieces(micro.traces[g], self.limits.rows or count)
            try:
                found: list[Scores] = []
                for ks in cuts:
                    part = cut(micro, g, ks)
                    base = [found[0].baseline] if found else None  # of the empty trace, once
                    one = (
                        [cut_scores(known, ks)]
                        if known
                        else self.scorer(model, part.groups, part.traces, base)
                    )
                    found += self._attach(part, one)
                return join(found, cuts)
            except RuntimeError as error:
                failed = out_of_memory(error)
            self.limits.fewer_rows(count, self.args.world_size, failed)

    def _sampled(
        self, groups: list[PromptGroup], step: int, beforehand: bool
    ) -> list[tuple[Traces, Scores | None]]:
        """Traces, with their scores where these can be had; with fewer prompts at once where
        memory runs out."""
        while True:
            try:
                rated = self._rate(groups, step) if beforehand else None
                if rated is not None:
                    return [*rated]
                return [(traces, None) for traces in self._sample(groups, step)]
            except RuntimeError as error:
                failed = out_of_memory(error)  # as text: the error would keep the tensors
                if not isinstance(self.engine, HFEngine):
                    raise  # vLLM has memory of its own (vllm_gpu_memory_utilization)
            self.limits.fewer_prompts(len(groups), failed)

    def _rate(self, groups: list[PromptGroup], step: int) -> list[tuple[Traces, Scores]] | None:
        """Traces with their scores, taken while they are sampled; None where that cannot be."""
        engine = self.engine
        if not isinstance(engine, HFEngine):
            return None
        able = self.samples and engine.share and self.scorer.rounding <= _FINEST
        able = able and not self.args.tf32
        if not able or self.settings.samples_answers or not groups:
            return None
        raters: list[tuple[int, int, Rater]] = []
        a = self.args

        def watch(first: int, after: int) -> Rater:
            part = groups[first:after]
            rater = Rater(
                part, a.num_generations, self.template, a.temperature, self.scorer.rounding
            )
            raters.append((first, after, rater))
            return rater

        traces = engine.rollout(groups, *self._drawn(step), watch)
        rated = [s for first, after, rater in raters for s in rater.scores(traces[first:after])]
        return list(zip(traces, rated, strict=True))

    # -- sampling ----------------------------------------------------------------------------------

    def _drawn(self, step: int) -> tuple[Sampling, NoiseKey]:
        a = self.args
        sampling = Sampling(a.num_generations, a.max_trace_length, a.temperature, a.top_p)
        return sampling, NoiseKey(a.seed, step)

    def _sample(self, groups: list[PromptGroup], step: int) -> list[Traces]:
        if not self.samples:
            return [self._empty() for _ in groups]
        a = self.args
        traces = self.engine.rollout(groups, *self._drawn(step))
        if not self.settings.samples_answers:
            return traces
        sampling = Sampling(1, a.max_answer_length, a.temperature, a.top_p)
        key = NoiseKey(a.seed, step)
        return sample_answers(self.engine, self.template, groups, traces, sampling, key)

    def _verdicts(
        self, groups: list[PromptGroup], traces: list[Traces], context: dict[str, Any]
    ) -> Sequence[Verdict | None]:
        if not (self.settings.reads_text or self.rewards):
            return [None] * len(groups)
        verdicts = judge(groups, traces, self.template, self.rewards, **context)
        return [verdict.to(self.args.device) for verdict in verdicts]

    def _empty(self) -> Traces:
        return Traces((self.template.empty_trace(),), (True,))

    def _filler(self) -> PromptGroup:
        return replace(self.groups[0], weight=0.0)
