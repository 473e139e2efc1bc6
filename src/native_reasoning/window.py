"""One rollout and everything that was read off it: traces, and where they are taken then, scores.

On-policy a window is one optimiser step and its scores come from the training forward. With several
updates per rollout, or where groups are trained on in parts (parts.py), the scores are taken once,
when the traces are sampled; the open window is part of every checkpoint.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from native_reasoning.types import PromptGroup, Scores, Signal, Traces, Verdict


@dataclass(frozen=True, eq=False)
class Recall:
    """What is remembered of a group from the time it was sampled: its signal, and its scores under
    the weights that sampled it, without gradients. ``fresh``: these are the weights that are
    trained, so that no importance ratio is taken."""

    signal: Signal
    scores: Scores
    fresh: bool = False

    @property
    def old(self) -> Tensor | None:
        """log π(z) (K, L) for the importance ratio, None where it is 1."""
        return None if self.fresh else self.scores.trace


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Groups that are forwarded together. ``verdicts`` is None where no text is looked at,
    ``recalls`` where the scores come from the training forward."""

    groups: tuple[PromptGroup, ...]
    traces: tuple[Traces, ...]
    verdicts: tuple[Verdict, ...] | None = None
    recalls: tuple[Recall, ...] | None = None

    @property
    def pairs(self) -> list[tuple[PromptGroup, Traces]]:
        """Each group with its traces."""
        return list(zip(self.groups, self.traces, strict=True))

    @property
    def rows(self) -> int:
        """Traces of all groups."""
        return sum(len(traces.ids) for traces in self.traces)


class Cell(NamedTuple):
    """One group of a rollout, on its way into a micro-batch; ``scores`` where they are known."""

    group: PromptGroup
    traces: Traces
    scores: Scores | None
    verdict: Verdict | None

    def length(self) -> int:
        """Tokens of its longest row."""
        return len(self.group.prompt_ids) + max(self.traces.lengths) + len(self.group.answer_ids)


def micro_batch(cells: Sequence[Cell]) -> MicroBatch:
    """The groups as they are forwarded together."""
    verdicts = tuple(cell.verdict for cell in cells if cell.verdict is not None)
    return MicroBatch(
        groups=tuple(cell.group for cell in cells),
        traces=tuple(cell.traces for cell in cells),
        verdicts=verdicts or None,
    )


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
                layout[-1].append([_describe(*pair) for pair in micro.pairs])
                for g, recall in enumerate(micro.recalls or ()):
                    tensors |= {f"{i}.{j}.{g}.{k}": v for k, v in _tensors(recall).items()}
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
                recalls = tuple(_recall(tensors, f"{i}.{j}.{g}.") for g in range(len(cells)))
                verdicts = [r.scores.verdict for r in recalls]
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
                                sampler_logps=tuple(map(tuple, c.get("sampler_logps", ()))),
                            )
                            for c in cells
                        ),
                        verdicts=tuple(v for v in verdicts if v is not None) or None,
                        recalls=recalls,
                    )
                )
            minibatches.append(tuple(micros))
        return cls(state["rollout"], tuple(minibatches))


def _describe(group: PromptGroup, traces: Traces) -> dict:
    row = group.example.row_id if group.weight else None
    return {"row": row, **vars(traces)}


def _tensors(recall: Recall) -> dict[str, Tensor]:
    """Everything that is remembered, as tensors by name; what is None is left out, and so is what
    copies of the policy said, but for log π(z) of the first policy, which the loss needs."""
    scores = {**vars(recall.scores)}
    verdict, frozen, _ = (scores.pop(name) for name in ("verdict", "frozen", "ema"))
    named = {f"signal.{name}": value for name, value in vars(recall.signal).items()}
    named |= {f"scores.{name}": value for name, value in scores.items()}
    named |= {f"verdict.{name}": value for name, value in vars(verdict).items()} if verdict else {}
    named |= {"reference": None if frozen is None else frozen.trace, "fresh": recall.fresh}
    return {
        name: torch.as_tensor(
            value, dtype=torch.float64 if isinstance(value, float) else None
        ).clone(memory_format=torch.contiguous_format)  # two of them may be one tensor
        for name, value in named.items()
        if value is not None
    }


def _recall(tensors: dict[str, Tensor], prefix: str) -> Recall:
    def read(kind: Any, name: str, without: Sequence[str] = ()) -> dict[str, Any]:
        found = {f.name: (f.type, tensors.get(f"{prefix}{name}.{f.name}")) for f in fields(kind)}
        return {
            key: value if value is None or form not in (bool, float) else form(value)
            for key, (form, value) in found.items()
            if key not in without
        }

    verdict = read(Verdict, "verdict")
    scores = Scores(
        **read(Scores, "scores", without=("verdict", "frozen", "ema")),
        verdict=None if verdict["complete"] is None else Verdict(**verdict),
    )
    if (reference := tensors.get(prefix + "reference")) is not None:
        scores = scores.with_reference(reference)
    return Recall(Signal(**read(Signal, "signal")), scores, bool(tensors[prefix + "fresh"]))
