"""The objective of a run: micro-batches are scored and judged, and cut where groups do not fit into
memory. It remembers a lagging policy and a filter's running mean from step to step.

With the signal known beforehand the loss is a sum over traces, so any split gives the same gradient
(up to rounding).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Traces
from native_reasoning.model.forward import inference, together
from native_reasoning.model.ranks import sum_of_ranks
from native_reasoning.objective.credit import Objective
from native_reasoning.objective.types import Judgement, Scores, Signal, Verdict
from native_reasoning.objective.verdicts import AnyObjective, check_signal, name_of
from native_reasoning.rollout.noise import DEALT, uniforms
from native_reasoning.rollout.schedule import PlannedStep
from native_reasoning.rollout.window import MicroBatch, Recall
from native_reasoning.scoring.judges import Judges
from native_reasoning.scoring.packing import size_of, tokens_of
from native_reasoning.scoring.scorer import Scorer
from native_reasoning.training.memory import fewer_tokens, fitting

#: As in RLPR's released code: rollouts 6 to 10 begin the mean, the filter acts from rollout 11.
FIRST, LAST, DECAY = 6, 10, 0.99

Numbers = TypeVar("Numbers", Scores, Signal, Verdict, Judgement)

#: Of a group, by its number in a micro-batch, the numbers of some traces.
Pick = tuple[int, list[int]]

#: What has a row for each trace; the first ones have a column for each sampled token.
_BY_TOKEN = ("trace", "trace_mask", "trace_weights")
_BY_TRACE = (
    *_BY_TOKEN,
    *("answer", "forced_tag", "closed", "trace_length", "answer_length"),
    *("rewards", "advantages", "answer_weights", "token_rewards", "helped"),
    *("complete", "correct", "repetitive", "added"),
)
_INSIDE = ("verdict", "frozen", "ema")


class RunObjective(TrainerCallback):
    """Scores micro-batches and makes signals of the scores; brings the copies of the policy
    (``judges``) and the filter up to date at the end of each step.

    ``objective`` is the settings' own, or the user's. ``scorer`` scores.
    """

    def __init__(
        self, args: NRTConfig, objective: AnyObjective, scorer: Scorer, judges: Judges | None
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
        pairs = zip(scores, known, strict=True)
        return [replace(s, verdict=k.verdict, frozen=k.frozen) for s, k in pairs]

    def _attach(self, micro: MicroBatch, scores: Sequence[Scores]) -> list[Scores]:
        """The scores with what is known of the text, and what copies of the policy say."""
        if micro.verdicts is not None:
            pairs = zip(scores, micro.verdicts, strict=True)
            scores = [replace(one, verdict=verdict) for one, verdict in pairs]
        if self.judges is None:
            return list(scores)
        return self.judges.attach(scores, micro.groups, micro.traces)

    def remember(
        self, micro: MicroBatch, plan: PlannedStep, model: nn.Module, *, fresh: bool
    ) -> MicroBatch:
        """The micro-batch with its scores under ``model``, without gradients, and their signals.
        ``fresh``: these are the weights that are trained."""
        with inference(model):
            scores = self.in_parts(micro, model)
        signals = self.signals(micro, scores, plan)
        pairs = zip(signals, scores, strict=True)
        return replace(micro, recalls=tuple(Recall(x, s.detach(), fresh) for x, s in pairs))

    def in_parts(self, micro: MicroBatch, model: nn.Module) -> list[Scores]:
        """The scores of each group, from as few forwards as may be."""
        cuts: list[list[list[int]]] = [[] for _ in micro.groups]
        found: list[list[Scores]] = [[] for _ in micro.groups]
        for picks in self.parts(micro):
            part = some(micro, picks)
            known = [found[g][0].baseline for g, _ in picks if found[g]]  # of the empty trace, once
            with fitting(*self.less_than(part)):
                scores = self.scorer(model, part.groups, part.traces, known or None)
                scores = self._attach(part, scores)
            for (g, ks), one in zip(picks, scores, strict=True):
                cuts[g].append(ks)
                found[g].append(one)
        return [join(*pair) for pair in zip(found, cuts, strict=True)]

    # -- forwards that fit into memory -------------------------------------------------------------

    def parts(self, micro: MicroBatch) -> list[list[Pick]]:
        """What is forwarded together: whole groups, as many as fit, or of one that is too large
        some traces. These are sorted by length before they are cut, so that little is padded."""
        pairs, template = micro.pairs, self.scorer.template

        def fits(picks: Sequence[Pick]) -> bool:
            return self.scorer.fits([size_of(*pairs[g], template, ks) for g, ks in picks])

        def cut(g: int, ks: list[int]) -> list[list[Pick]]:
            ks = sorted(ks, key=lambda k: len(pairs[g][1].ids[k]))
            return [[(g, few)] for few in together(ks, lambda few: fits([(g, [*few])]))]

        found: list[list[Pick]] = []
        for part in together([(g, [*range(len(t.ids))]) for g, (_, t) in enumerate(pairs)], fits):
            found += [part] if len(part) > 1 or fits(part) else cut(*part[0])
        return found

    def is_cut(self, micro: MicroBatch) -> bool:
        """Whether a group has too many traces for one forward."""
        sizes = [size_of(*pair, self.scorer.template) for pair in micro.pairs]
        return not all(self.scorer.fits([size]) for size in sizes)

    def less_than(self, micro: MicroBatch) -> tuple[str, str]:
        """What ``fitting`` says of a forward of these groups."""
        sizes = [size_of(*pair, self.scorer.template) for pair in micro.pairs]
        return fewer_tokens(tokens_of(sizes, self.scorer.layouts[0]), cut=micro.rows > 1)

    # -- signals -----------------------------------------------------------------------------------

    def signals(
        self, micro: MicroBatch, scores: Sequence[Scores], plan: PlannedStep
    ) -> list[Signal]:
        """The signal of each group: what is remembered, else what the objective makes of the
        scores; groups of weight 0 get one of zeros. In the format warm-up there is no trace term,
        and the answer's tokens weigh one where the settings train them.

        Raises RunError where an objective of the user's own returns what does not fit.
        """
        if micro.recalls is not None:
            return [recall.signal for recall in micro.recalls]
        self._rollout = plan.rollout
        pairs = [*zip(scores, micro.groups, strict=True)]
        warming = plan.rollout < self.args.format_warmup_steps
        made = iter(self._judged([s for s, group in pairs if group.weight], warming))
        signals = [next(made) if group.weight else Signal.nothing(s) for s, group in pairs]
        if self.settings.advantages == "permuted":
            about = zip(signals, micro.groups, strict=True)
            signals = [self._dealt(s, group.example.row_id, plan.rollout) for s, group in about]
        if not warming:
            return signals
        zeros = {"trace_weights": None, "token_rewards": None, "kept": True}
        return [replace(s, advantages=torch.zeros_like(s.advantages), **zeros) for s in signals]

    def _dealt(self, signal: Signal, row: int, step: int) -> Signal:
        """The group's advantages in an order that depends on seed, step and row alone: every order
        is equally likely, so that a trace's own advantage has no say (2506.10947, random rewards).

        Raises RunError where a token has a weight of its own, which is no other trace's to have."""
        if signal.trace_weights is not None:
            raise RunError(
                "objective.advantages permuted with trace_weights",
                why="an objective of your own gives each token a weight, and traces have other "
                "tokens",
                fix="leave it out, or return advantages alone",
            )
        a = signal.advantages
        order = uniforms(self.args.seed, DEALT, step, row, 0, len(a)).argsort()
        return replace(signal, advantages=a[torch.from_numpy(order).to(a.device)])

    def _judged(self, scores: Sequence[Scores], warming: bool) -> list[Signal]:
        objective = self.objective
        if isinstance(objective, Objective) and type(objective).__call__ is Objective.__call__:
            if warming and objective.answer_weight != "none":
                objective = replace(objective, answer_weight="one", answer_gate="none")
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


# -- Which groups a step trains on -----------------------------------------------------------------


class StdFilter:
    """Keeps a group whose standard deviation of rewards is at least ``coef`` times a running mean.

    The mean over a rollout's groups, kept or not, enters the running mean when the rollout is
    closed; so one threshold holds for the whole rollout, on every rank and in any order.
    """

    def __init__(self, coef: float) -> None:
        self.coef = coef
        self.rollouts, self.mean, self._first = 0, None, []
        self._sum, self._count = 0.0, 0

    @property
    def threshold(self) -> float | None:
        """The least standard deviation that is kept; None before the filter acts."""
        return None if self.mean is None else self.coef * self.mean

    def judge(self, signal: Signal) -> Signal:
        """The signal, marked as not kept where the filter leaves its group out; its spread enters
        the running mean either way."""
        if math.isfinite(signal.spread):  # a broken step must not break the mean for good
            self._sum, self._count = self._sum + signal.spread, self._count + 1
        kept = self.threshold is None or signal.spread >= self.threshold
        return signal if kept else replace(signal, kept=False)

    def close(self, device: torch.device) -> None:
        """Ends a rollout, on all ranks together."""
        total, count = sum_of_ranks([self._sum, float(self._count)], device)
        self._sum, self._count = 0.0, 0
        self.rollouts += 1
        mean = total / max(count, 1)
        if FIRST <= self.rollouts <= LAST:
            self._first.append(mean)
        if self.rollouts == LAST:
            self.mean = sum(self._first) / len(self._first)
        elif self.mean is not None:
            self.mean = DECAY * self.mean + (1 - DECAY) * mean

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; between rollouts nothing else is known."""
        return {"rollouts": self.rollouts, "mean": self.mean, "first": list(self._first)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
        self.rollouts, self.mean = state["rollouts"], state["mean"]
        self._first = list(state["first"])


# -- A micro-batch in parts ------------------------------------------------------------------------


def some(micro: MicroBatch, picks: Sequence[Pick]) -> MicroBatch:
    """The picked groups with their picked traces; the micro-batch itself if that is all of it."""
    verdicts, recalls = micro.verdicts, micro.recalls
    if sum(len(ks) for _, ks in picks) == micro.rows:
        return micro
    return MicroBatch(
        groups=tuple(micro.groups[g] for g, _ in picks),
        traces=tuple(_traces(micro.traces[g], ks) for g, ks in picks),
        verdicts=verdicts and tuple(_cut(verdicts[g], ks) for g, ks in picks),
        recalls=recalls and tuple(_recall(recalls[g], ks) for g, ks in picks),
    )


def _traces(traces: Traces, ks: list[int]) -> Traces:
    return Traces(*(tuple(of[k] for k in ks) if of else () for of in vars(traces).values()))


def _recall(recall: Recall, ks: list[int]) -> Recall:
    longest = int(recall.scores.trace_mask[ks].sum(-1).max())
    signal, scores = _cut(recall.signal, ks, longest), _cut(recall.scores, ks, longest)
    return replace(recall, signal=signal, scores=scores)


def _cut(numbers: Numbers, ks: list[int], longest: int | None = None) -> Numbers:
    """Those of these traces, of which none has more than ``longest`` tokens."""

    def cut(name: str, each: list[Tensor]) -> Tensor:
        return each[0][ks][:, :longest] if name in _BY_TOKEN else each[0][ks]

    return _made([numbers], cut)


def join(found: Sequence[Numbers], cuts: Sequence[list[int]]) -> Numbers:
    """Those of all traces of a group from those of its pieces."""
    back = sorted(range(sum(map(len, cuts))), key=[k for ks in cuts for k in ks].__getitem__)

    def joined(name: str, each: list[Tensor]) -> Tensor:
        if name in _BY_TOKEN:
            width = max(x.shape[1] for x in each)
            each = [pad(x, (0, width - x.shape[1])) for x in each]
        return torch.cat(each)[back]

    return _made(found, joined) if len(found) > 1 else found[0]


def _made(found: Sequence[Numbers], make: Callable[[str, list[Tensor]], Tensor]) -> Numbers:
    """The first of these, with what ``make`` makes of all that they have of each trace."""
    made: dict[str, Any] = {}
    for name, value in vars(found[0]).items():
        each: list[Any] = [getattr(one, name) for one in found]
        if name in _BY_TRACE and value is not None:
            made[name] = make(name, each)
        elif name in _INSIDE and value is not None:
            made[name] = _made(each, make)
    return replace(found[0], **made)
