"""The objective of a run, with what it remembers from step to step: a lagging policy, a filter's
running mean."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Traces
from native_reasoning.model.policy import inference
from native_reasoning.model.ranks import sum_of_ranks
from native_reasoning.objective.credit import Objective
from native_reasoning.objective.custom import AnyObjective, check_signal, name_of
from native_reasoning.objective.filters import StdFilter
from native_reasoning.objective.types import Scores, Signal
from native_reasoning.rollout.schedule import PlannedStep
from native_reasoning.rollout.window import MicroBatch, Recall
from native_reasoning.scoring.judges import Judges
from native_reasoning.scoring.scorer import Scorer
from native_reasoning.training.parts import fewer_rows, fitting, join, pieces, some


class RunObjective(TrainerCallback):
    """Scores micro-batches and makes signals of the scores; brings the copies of the policy
    (``judges``) and the filter up to date at the end of each step.

    ``objective`` is the settings' own, or the user's. ``scorer`` scores.
    """

    def __init__(
        self,
        args: NRTConfig,
        objective: AnyObjective,
        scorer: Scorer,
        judges: Judges | None,
    ) -> None:
        self.args, self.objective, self.scorer, self.judges = args, objective, scorer, judges
        self.settings = s = args.resolved_objective()
        self.samples = s.traces == "sampled"
        self.filter = StdFilter(s.filter_coef) if s.filter == "ema_std" else None
        self._rollout = -1  # the step (from 0) whose traces were judged last

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if self.judges is not None and model is not None:
            self.judges.follow(model, state.global_step)
        if self.filter is not None and self._rollout == state.global_step - 1:
            self.filter.close(args.device)

    # -- scores ------------------------------------------------------------------------------------

    def scores(self, micro: MicroBatch, model: nn.Module) -> list[Scores]:
        """Scores of a micro-batch under ``model``, with gradients if they are on."""
        if micro.recalls is None:
            return self._attach(micro, self.scorer(model, micro.groups, micro.traces))
        known = [recall.scores for recall in micro.recalls]
        scores = self.scorer(model, micro.groups, micro.traces, [k.baseline for k in known])
        pairs = zip(_with_verdicts(micro, scores), known, strict=True)
        return [replace(s, frozen=k.frozen) for s, k in pairs]

    def _attach(self, micro: MicroBatch, scores: Sequence[Scores]) -> list[Scores]:
        """The scores with what is known of the text, and what copies of the policy say."""
        scores = _with_verdicts(micro, scores)
        if self.judges is None:
            return scores
        return self.judges.attach(scores, micro.groups, micro.traces)

    def remember(
        self, micro: MicroBatch, plan: PlannedStep, model: nn.Module, *, fresh: bool
    ) -> MicroBatch:
        """The micro-batch with its scores under ``model``, without gradients, and their signals.
        ``fresh``: these are the weights that are trained."""
        with inference(model):
            scores = [self._in_pieces(micro, g, model) for g in range(len(micro.groups))]
        signals = self.signals(micro, scores, plan)
        pairs = zip(signals, scores, strict=True)
        return replace(micro, recalls=tuple(Recall(x, s.detach(), fresh) for x, s in pairs))

    def _in_pieces(self, micro: MicroBatch, g: int, model: nn.Module) -> Scores:
        """The scores of one group, ``rows_per_forward`` of its traces at once."""
        cuts = pieces(micro.traces[g], self.args.rows_per_forward or micro.rows)
        found: list[Scores] = []
        for ks in cuts:
            part = some(micro, [(g, ks)])
            base = [found[0].baseline] if found else None  # of the empty trace, once
            with fitting(*fewer_rows(part.rows)):
                one = self.scorer(model, part.groups, part.traces, base)
                found += self._attach(part, one)
        return join(found, cuts)

    # -- signals -----------------------------------------------------------------------------------

    def signals(
        self, micro: MicroBatch, scores: Sequence[Scores], plan: PlannedStep
    ) -> list[Signal]:
        """The signal of each group: what is remembered, else what the objective makes of the
        scores, in the format warm-up without its trace term; groups of weight 0 get one of zeros.

        Raises RunError where an objective of the user's own returns what does not fit.
        """
        if micro.recalls is not None:
            return [recall.signal for recall in micro.recalls]
        self._rollout = plan.rollout
        real = [s for s, group in zip(scores, micro.groups, strict=True) if group.weight]
        made = iter(self._judged(real))
        signals = [
            next(made) if group.weight else Signal.nothing(s)
            for s, group in zip(scores, micro.groups, strict=True)
        ]
        if plan.rollout >= self.args.format_warmup_steps:
            return signals
        zeros = {"trace_weights": None, "token_rewards": None, "kept": True}
        return [replace(s, advantages=torch.zeros_like(s.advantages), **zeros) for s in signals]

    def _judged(self, scores: Sequence[Scores]) -> list[Signal]:
        objective = self.objective
        if isinstance(objective, Objective) and type(objective).__call__ is Objective.__call__:
            signals = objective.of_groups(scores)
        else:  # the user's own, or a subclass with a __call__ of its own
            name = name_of(objective)
            signals = [check_signal(objective(s.detach()), s, name) for s in scores]
        return signals if self.filter is None else [self.filter.judge(s) for s in signals]

    def mean_tokens(self, minibatch: Sequence[MicroBatch], traces: int) -> float:
        """Sampled tokens with policy gradient per trace of a step that has ``traces`` of them over
        all ranks; 1 where nothing is divided by it."""
        if self.settings.length_norm != "token_mean":
            return 1.0
        pairs = [pair for micro in minibatch for pair in micro.pairs]
        count = sum(self._policy_tokens(t) for group, t in pairs if group.weight)
        (total,) = sum_of_ranks([float(count)], self.args.device)
        return max(total, 1.0) / traces

    def _policy_tokens(self, traces: Traces) -> int:
        if self.settings.policy_tokens == "trace":
            closed = [z for z, closed in zip(traces.ids, traces.closed, strict=True) if closed]
            tags = sum(map(self.scorer.template.tag_length, closed))
            return sum(map(len, traces.ids)) - tags
        return sum(traces.lengths) + sum(map(len, traces.answers))


def _with_verdicts(micro: MicroBatch, scores: Sequence[Scores]) -> list[Scores]:
    if micro.verdicts is None:
        return list(scores)
    pairs = zip(scores, micro.verdicts, strict=True)
    return [replace(one, verdict=verdict) for one, verdict in pairs]
