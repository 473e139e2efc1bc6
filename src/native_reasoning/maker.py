"""Makes windows: samples traces, judges their text, and scores them where that comes beforehand."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from native_reasoning.clock import Clock
from native_reasoning.config import NRTConfig
from native_reasoning.custom import RewardFunctions, check_signal, name_of
from native_reasoning.groups import PlannedStep, Rows, Schedule, rank_share
from native_reasoning.inputs import inference
from native_reasoning.objective import Objective
from native_reasoning.parts import fewer_rows, fitting, join, pieces, some
from native_reasoning.ranks import sum_of_ranks
from native_reasoning.rollout.answers import sample_answers
from native_reasoning.rollout.engine import NoiseKey, RolloutEngine, Sampling
from native_reasoning.rollout.noise import ANSWERS
from native_reasoning.scoring import Scorer
from native_reasoning.state import ObjectiveState
from native_reasoning.types import PromptGroup, Scores, Signal, Traces, Verdict
from native_reasoning.verdicts import judge
from native_reasoning.window import Cell, MicroBatch, Recall, Window, in_batches, micro_batch


class WindowMaker:
    """Samples and scores windows of one run, this rank's share of them.

    ``engine`` samples, ``scorer`` scores, ``objective`` makes signals, ``rewards`` are the user's
    functions, ``state`` has what the objective remembers.
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
    ) -> None:
        self.args, self.groups, self.template = args, groups, scorer.template
        self.engine, self.scorer = engine, scorer
        self.objective, self.rewards, self.state = objective, rewards, state
        self.settings = args.resolved_objective()
        self.samples = self.settings.traces == "sampled"
        self.clock = Clock()

    def make(
        self,
        schedule: Schedule,
        plan: PlannedStep,
        model: nn.Module,
        **context: Any,
    ) -> Window:
        """Rolls out ``plan.rollout``. With several updates, or in parts, it is scored beforehand
        under ``model``. ``context`` is handed to the reward functions."""
        shares = self._shares(schedule, plan)
        rows = [r for s in shares for batch in s for r in batch]
        groups = [self._filler() if r is None else self.groups[r] for r in rows]
        real = [group for group in groups if group.weight]
        several = len(shares) * self.args.num_iterations > 1
        with self.clock.stage("sampling"), self.engine.ready():
            sampled = iter(self._sample(real, plan.rollout))
        traces = [next(sampled) if group.weight else self._empty() for group in groups]
        verdicts = self._verdicts(groups, traces, context)
        cells = iter([*map(Cell, groups, traces, verdicts)])
        micros: list[list[MicroBatch]] = []
        for share in shares:
            batches = in_batches([next(cells) for batch in share for _ in batch], share)
            micros.append([micro_batch(batch) for batch in batches])
            if several or self._in_parts:
                micros[-1] = [self._remember(micro, plan, model, several) for micro in micros[-1]]
        return Window(plan.rollout, tuple(map(tuple, micros)))

    def reopen(self, checkpoint: Path, schedule: Schedule, plan: PlannedStep) -> Window:
        """This rank's share of the window that was open when a checkpoint was written, on as many
        ranks as there were then."""
        rank, shares = self.args.process_index, self._shares(schedule, plan)
        return Window.load(checkpoint, rank, shares, self.groups, self._filler(), self.args.device)

    @property
    def _in_parts(self) -> bool:
        """Whether a micro-batch has more rows than are forwarded at once."""
        a, each = self.args, self.args.num_generations if self.samples else 1
        return (a.rows_per_forward or math.inf) < a.per_device_train_batch_size * each

    def _shares(self, schedule: Schedule, plan: PlannedStep) -> list[list[Rows]]:
        """The row ids of this rank's micro-batches, for each mini-batch of the rollout."""
        a = self.args
        return [
            rank_share(rows, a.process_index, a.world_size, a.per_device_train_batch_size)
            for rows in schedule.rollout(plan.rollout)
        ]

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
        self, micro: MicroBatch, plan: PlannedStep, model: nn.Module, several: bool
    ) -> MicroBatch:
        """The micro-batch with what is remembered of it."""
        with self.clock.stage("scoring"), inference(model):
            scores = [self._scored(micro, g, model) for g in range(len(micro.groups))]
        recalls = [
            Recall(signal, s.detach(), fresh=not several)
            for s, signal in zip(scores, self.signals(micro, scores, plan), strict=True)
        ]
        return replace(micro, recalls=tuple(recalls))

    def _scored(self, micro: MicroBatch, g: int, model: nn.Module) -> Scores:
        """The scores of one group, ``rows_per_forward`` of its traces at once."""
        count = len(micro.traces[g].ids)
        cuts = pieces(micro.traces[g], self.args.rows_per_forward or count)
        found: list[Scores] = []
        for ks in cuts:
            part = some(micro, [(g, ks)])
            base = [found[0].baseline] if found else None  # of the empty trace, once
            with fitting(*fewer_rows(part.rows)):
                one = self.scorer(model, part.groups, part.traces, base)
                found += self._attach(part, one)
        return join(found, cuts)

    # -- sampling ----------------------------------------------------------------------------------

    def _sample(self, groups: list[PromptGroup], step: int) -> list[Traces]:
        """Traces, with answers where the objective samples them."""
        a, key = self.args, NoiseKey(self.args.seed, step)
        if not self.samples:
            return [self._empty() for _ in groups]
        sampling = Sampling(a.num_generations, a.max_trace_length, a.temperature, a.top_p)
        with fitting(*self._fewer_prompts(len(groups))):
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

    def _fewer_prompts(self, prompts: int) -> tuple[str, str]:
        """What ``fitting`` says of so many prompts."""
        at_once = min(self.args.rollout_batch_size or prompts, prompts)
        fewer = f"--rollout-batch-size {at_once // 2}, " if at_once > 1 else ""
        fix = f"{fewer}a smaller --max-trace-length or --num-generations"
        return f"{at_once} prompts of {self.args.num_generations} traces sampled at once", fix

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
