"""One rollout and everything that was read off it: traces, and with several updates, scores.

On-policy a window is one optimiser step and its scores come from the training forward. With several
updates per rollout the scores are taken once, when the traces are sampled, and the open window is
part of every checkpoint.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from native_reasoning.config import NRTConfig
from native_reasoning.groups import PlannedStep, Rows, Schedule, rank_share
from native_reasoning.rollout.engine import NoiseKey, RolloutEngine, Sampling
from native_reasoning.rollout.hf import inference
from native_reasoning.scoring import Packed, pack, unpack
from native_reasoning.template import Template
from native_reasoning.types import PromptGroup, Scores, Signal, Traces


@dataclass(frozen=True, eq=False)
class Recall:
    """What is remembered of a group from the time it was sampled: its signal, and log π(z) (K, L)
    under the weights that sampled it."""

    signal: Signal
    trace: Tensor


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Groups that are forwarded together. ``recalls`` is None on-policy."""

    groups: tuple[PromptGroup, ...]
    traces: tuple[Traces, ...]
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
                    tensors |= {f"{i}.{j}.{g}.{k}": v for k, v in _tensors(recall).items()}
        text = json.dumps({"rollout": self.rollout, "minibatches": layout})
        path.with_suffix(".json").write_text(text, encoding="utf-8")
        save_file(tensors, path.with_suffix(".safetensors"))

    @classmethod
    def load(
        cls, path: Path, groups: tuple[PromptGroup, ...], filler: PromptGroup, device: torch.device
    ) -> "Window":
        """The window that ``save`` wrote. ``groups`` are the training groups by row id."""
        state = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = load_file(path.with_suffix(".safetensors"), device=str(device))
        minibatches = []
        for i, layout in enumerate(state["minibatches"]):
            micros = []
            for j, cells in enumerate(layout):
                micros.append(
                    MicroBatch(
                        groups=tuple(
                            filler if c["row"] is None else groups[c["row"]] for c in cells
                        ),
                        traces=tuple(
                            Traces(
                                tuple(map(tuple, c["ids"])), tuple(c["closed"]), tuple(c["ended"])
                            )
                            for c in cells
                        ),
                        recalls=tuple(_recall(tensors, f"{i}.{j}.{g}.") for g in range(len(cells))),
                    )
                )
            minibatches.append(tuple(micros))
        return cls(state["rollout"], tuple(minibatches))


def _describe(group: PromptGroup, traces: Traces) -> dict:
    row = group.example.row_id if group.weight else None
    return {"row": row, "ids": traces.ids, "closed": traces.closed, "ended": traces.ended}


def _tensors(recall: Recall) -> dict[str, Tensor]:
    signal = recall.signal
    named = {
        "trace": recall.trace,
        "rewards": signal.rewards,
        "baseline_reward": signal.baseline_reward,
        "advantages": signal.advantages,
        "answer_weights": signal.answer_weights,
        "flat": torch.tensor(signal.flat),
        "clamped": torch.tensor(signal.clamped, dtype=torch.float64),
    }
    if signal.helped is not None:
        named["helped"] = signal.helped
    return {name: value.contiguous() for name, value in named.items()}


def _recall(tensors: dict[str, Tensor], prefix: str) -> Recall:
    def get(name: str) -> Tensor:
        return tensors[prefix + name]

    signal = Signal(
        rewards=get("rewards"),
        baseline_reward=get("baseline_reward"),
        advantages=get("advantages"),
        answer_weights=get("answer_weights"),
        helped=tensors.get(f"{prefix}helped"),
        flat=bool(get("flat")),
        clamped=float(get("clamped")),
    )
    return Recall(signal, get("trace"))


class WindowMaker:
    """Samples and scores windows of one run, this rank's share of them.

    ``engine`` samples, ``objective`` makes signals, ``share`` and ``rounding`` are scoring.py's.
    """

    def __init__(
        self,
        args: NRTConfig,
        template: Template,
        groups: tuple[PromptGroup, ...],
        engine: RolloutEngine,
        objective: Callable[[Scores], Signal],
        *,
        share: bool,
        rounding: float,
    ) -> None:
        self.args, self.template, self.groups = args, template, groups
        self.engine, self.objective = engine, objective
        self.share, self.rounding = share, rounding
        self.samples = args.objective().traces == "sampled"

    def make(self, schedule: Schedule, plan: PlannedStep, model: nn.Module) -> Window:
        """Rolls out ``plan.rollout``; with several updates, scores it under ``model`` too."""
        args = self.args
        shares = [
            rank_share(rows, args.process_index, args.world_size, args.per_device_train_batch_size)
            for rows in schedule.rollout(plan.rollout)
        ]
        real = [self.groups[r] for s in shares for rows in s for r in rows if r is not None]
        sampled = iter(self._sample(real, plan.rollout))
        minibatches = [tuple(self._micro_batch(rows, sampled) for rows in s) for s in shares]
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
        packed = self._pack(micro)
        return unpack(packed, model(score=packed.batch), self.template, self.rounding)

    def signal(self, scores: Scores, plan: PlannedStep) -> Signal:
        """The objective's signal, in the format warm-up without its trace term."""
        signal = self.objective(scores)
        if plan.rollout >= self.args.format_warmup_steps:
            return signal
        return replace(signal, advantages=torch.zeros_like(signal.advantages))

    def _remember(self, micro: MicroBatch, plan: PlannedStep, model: nn.Module) -> MicroBatch:
        with inference(model):
            scores = self.scores(micro, model)
        return replace(micro, recalls=tuple(Recall(self.signal(s, plan), s.trace) for s in scores))

    def _pack(self, micro: MicroBatch) -> Packed:
        return pack(
            micro.groups,
            micro.traces,
            self.template,
            self.args.device,
            temperature=self.args.temperature,
            share=self.share,
        )

    def _sample(self, groups: list[PromptGroup], step: int) -> list[Traces]:
        if not self.samples:
            return [self._empty() for _ in groups]
        a = self.args
        sampling = Sampling(a.num_generations, a.max_trace_length, a.temperature, a.top_p)
        return self.engine.rollout(groups, sampling, NoiseKey(a.seed, step))

    def _micro_batch(self, rows: Rows, sampled: Iterator[Traces]) -> MicroBatch:
        groups = [self._filler() if r is None else self.groups[r] for r in rows]
        traces = [self._empty() if r is None else next(sampled) for r in rows]
        return MicroBatch(tuple(groups), tuple(traces))

    def _empty(self) -> Traces:
        return Traces((self.template.empty_trace(),), (True,))

    def _filler(self) -> PromptGroup:
        return replace(self.groups[0], weight=0.0)
