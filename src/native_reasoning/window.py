"""One rollout and everything that was read off it: traces, and with several updates, scores.

On-policy a window is one optimiser step and its scores come from the training forward. With several
updates per rollout the scores are taken once, when the traces are sampled, and the open window is
part of every checkpoint.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from native_reasoning.config import NRTConfig
from native_reasoning.custom import RewardFunctions, check_signal, name_of
from native_reasoning.groups import PlannedStep, Schedule, rank_share
from native_reasoning.objective import Objective
from native_reasoning.ranks import sum_of_ranks
from native_reasoning.rollout.answers import sample_answers
from native_reasoning.rollout.engine import NoiseKey, RolloutEngine, Sampling
from native_reasoning.rollout.hf import inference
from native_reasoning.scoring import Scorer
from native_reasoning.state import ObjectiveState
from native_reasoning.types import Judgement, PromptGroup, Scores, Signal, Traces, Verdict
from native_reasoning.verdicts import judge


@dataclass(frozen=True, eq=False)
class Recall:
    """What is remembered of a group from the time it was sampled: its signal, log π(z) (K, L) under
    the weights that sampled it, and under the first policy where the loss needs it."""

    signal: Signal
    trace: Tensor
    reference: Tensor | None = None


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Groups that are forwarded together. ``verdicts`` is None where no text is looked at,
    ``recalls`` on-policy."""

    groups: tuple[PromptGroup, ...]
    traces: tuple[Traces, ...]
    verdicts: tuple[Verdict, ...] | None = None
    recalls: tuple[Recall, ...] | None = None


@dataclass(frozen=True, eq=False)
class Window:
    """This rank's part of the rollout of step ``rollout``: ``minibatches[i]`` are the micro-batches
    of one optimiser step."""

    rollout: int
    minibatches: tuple[tuple[MicroBatch, ...], ...]

    def save(self, path: Path) -> None:
        """``path``.json has traces and row ids, ``path``.safetensors the tensors."""
        layout, tensors = [], {}
        for i, minibatch in enumerate(self.minibatches):
            layout.append([])
            for j, micro in enumerate(minibatch):
                layout[-1].append(
                    [_describe(*pair) for pair in zip(micro.groups, micro.traces, strict=True)]
                )
                for g, recall in enumerate(micro.recalls or ()):
                    verdict = micro.verdicts[g] if micro.verdicts else None
                    named = _tensors(recall, verdict)
                    tensors |= {f"{i}.{j}.{g}.{k}": v for k, v in named.items()}
        text = json.dumps({"rollout": self.rollout, "minibatches": layout})
        path.with_suffix(".json").write_text(text, encoding="utf-8")
        save_file(tensors, path.with_suffix(".safetensors"))

    @classmethod
    def load(
        cls, path: Path, groups: Sequence[PromptGroup], filler: PromptGroup, device: torch.device
    ) -> "Window":
        """The window that ``save`` wrote. ``groups`` are the training groups by row id."""
        state = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = load_file(path.with_suffix(".safetensors"), device=str(device))
        minibatches = []
        for i, layout in enumerate(state["minibatches"]):
            micros = []
            for j, cells in enumerate(layout):
                places = [f"{i}.{j}.{g}." for g in range(len(cells))]
                verdicts = [_verdict(tensors, place) for place in places]
                micros.append(
                    MicroBatch(
                        groups=tuple(
                            filler if c["row"] is None else groups[c["row"]] for c in cells
                        ),
                        traces=tuple(
                            Traces(
                                ids=tuple(map(tuple, c["ids"])),
                                closed=tuple(c["closed"]),
                                ended=tuple(c["ended"]),
                                answers=tuple(map(tuple, c["answers"])),
                            )
                            for c in cells
                        ),
                        verdicts=tuple(v for v in verdicts if v is not None) or None,
                        recalls=tuple(_recall(tensors, place) for place in places),
                    )
                )
            minibatches.append(tuple(micros))
        return cls(state["rollout"], tuple(minibatches))


def _describe(group: PromptGroup, traces: Traces) -> dict:
    row = group.example.row_id if group.weight else None
    return {"row": row, **vars(traces)}


def _tensors(recall: Recall, verdict: Verdict | None) -> dict[str, Tensor]:
    """Everything that is remembered, as tensors by name; what is None is left out."""
    named = {"trace": recall.trace, "reference": recall.reference, **vars(recall.signal)}
    named |= {} if verdict is None else vars(verdict)
    return {
        name: torch.as_tensor(
            value, dtype=torch.float64 if isinstance(value, float) else None
        ).clone(memory_format=torch.contiguous_format)  # two of them may be one tensor
        for name, value in named.items()
        if value is not None
    }


def _recall(tensors: dict[str, Tensor], prefix: str) -> Recall:
    def get(field: Any) -> Any:
        value = tensors.get(prefix + field.name)
        return value if value is None or field.type not in (bool, float) else field.type(value)

    signal = Signal(**{field.name: get(field) for field in fields(Signal)})
    return Recall(signal, tensors[prefix + "trace"], tensors.get(prefix + "reference"))


def _verdict(tensors: dict[str, Tensor], prefix: str) -> Verdict | None:
    named = {field.name: tensors.get(prefix + field.name) for field in fields(Verdict)}
    return None if named["complete"] is None else Verdict(**named)  # type: ignore[arg-type]


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

    def make(
        self, schedule: Schedule, plan: PlannedStep, model: nn.Module, **context: Any
    ) -> Window:
        """Rolls out ``plan.rollout``; with several updates, scores it under ``model`` too.
        ``context`` is handed to the reward functions."""
        args = self.args
        shares = [
            rank_share(rows, args.process_index, args.world_size, args.per_device_train_batch_size)
            for rows in schedule.rollout(plan.rollout)
        ]
        rows = [r for s in shares for batch in s for r in batch]
        groups = [self._filler() if r is None else self.groups[r] for r in rows]
        sampled = iter(self._sample([g for g in groups if g.weight], plan.rollout))
        traces = [next(sampled) if group.weight else self._empty() for group in groups]
        every = iter(zip(groups, traces, self._verdicts(groups, traces, context), strict=True))
        minibatches = [tuple(_micro_batch([next(every) for _ in b]) for b in s) for s in shares]
        if len(minibatches) * args.num_iterations > 1:
            minibatches = [
                tuple(self._remember(micro, plan, model) for micro in m) for m in minibatches
            ]
        return Window(plan.rollout, tuple(minibatches))

    def reopen(self, path: Path) -> Window:
        """The window that was open when a checkpoint was written."""
        return Window.load(path, self.groups, self._filler(), self.args.device)

    def scores(self, micro: MicroBatch, model: nn.Module) -> list[Scores]:
        """Scores of a micro-batch under ``model``, with gradients if they are on."""
        scores = self.scorer(model, micro.groups, micro.traces)
        if micro.verdicts is not None:
            pairs = zip(scores, micro.verdicts, strict=True)
            scores = [replace(one, verdict=verdict) for one, verdict in pairs]
        if micro.recalls is not None:  # its signal is made; the loss may still need π_0
            pairs = zip(scores, micro.recalls, strict=True)
            return [replace(s, frozen=Judgement(s.baseline, trace=r.reference)) for s, r in pairs]
        if self.state.judges is None:
            return scores
        return self.state.judges.attach(scores, micro.groups, micro.traces)

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
        zeros = {"trace_weights": None, "kept": True}
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

    def _remember(self, micro: MicroBatch, plan: PlannedStep, model: nn.Module) -> MicroBatch:
        with inference(model):
            scores = self.scores(micro, model)
        recalls = []
        for s, signal in zip(scores, self.signals(micro, scores, plan), strict=True):
            recalls.append(Recall(signal, s.trace, None if s.frozen is None else s.frozen.trace))
        return replace(micro, recalls=tuple(recalls))

    def _sample(self, groups: list[PromptGroup], step: int) -> list[Traces]:
        if not self.samples:
            return [self._empty() for _ in groups]
        a = self.args
        sampling = Sampling(a.num_generations, a.max_trace_length, a.temperature, a.top_p)
        key = NoiseKey(a.seed, step)
        traces = self.engine.rollout(groups, sampling, key)
        if not self.settings.samples_answers:
            return traces
        sampling = replace(sampling, max_tokens=a.max_answer_length)
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


def _micro_batch(cells: list[tuple[PromptGroup, Traces, Verdict | None]]) -> MicroBatch:
    verdicts = tuple(verdict for _, _, verdict in cells if verdict is not None)
    return MicroBatch(
        groups=tuple(group for group, _, _ in cells),
        traces=tuple(traces for _, traces, _ in cells),
        verdicts=verdicts or None,
    )
