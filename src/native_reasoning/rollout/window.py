"""One rollout and everything that was read off it: traces, and where they are taken then, scores.

On-policy a window is one optimiser step and its scores come from the training forward. With several
updates per rollout, or where groups are trained on in parts (parts.py), the scores are taken once,
when the traces are sampled; the open window is part of every checkpoint.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.objective.types import Scores, Signal, Verdict
from native_reasoning.rollout.schedule import Rows

#: A rank's file in a checkpoint, with .json and .safetensors.
FILE = "rollout_window_{}"


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
    """One group of a rollout, on its way into a micro-batch; ``recall`` where it was remembered
    before."""

    group: PromptGroup
    traces: Traces
    verdict: Verdict | None = None
    recall: Recall | None = None

    def length(self) -> int:
        """Tokens of its longest row."""
        return len(self.group.prompt_ids) + max(self.traces.lengths) + len(self.group.answer_ids)


def in_batches(cells: Sequence[Cell], share: Sequence[Rows]) -> list[list[Cell]]:
    """As many at a time as ``share`` has rows, those of like lengths together, so that little is
    padded."""
    cuts = iter(sorted(cells, key=Cell.length))
    return [[next(cuts) for _ in batch] for batch in share]


def micro_batch(cells: Sequence[Cell]) -> MicroBatch:
    """The groups as they are forwarded together."""
    verdicts = tuple(cell.verdict for cell in cells if cell.verdict is not None)
    recalls = tuple(cell.recall for cell in cells if cell.recall is not None)
    return MicroBatch(
        groups=tuple(cell.group for cell in cells),
        traces=tuple(cell.traces for cell in cells),
        verdicts=verdicts or None,
        recalls=recalls or None,
    )


@dataclass(frozen=True, eq=False)
class Window:
    """This rank's part of the rollout of step ``rollout``: ``minibatches[i]`` are the micro-batches
    of one optimiser step."""

    rollout: int
    minibatches: tuple[tuple[MicroBatch, ...], ...]

    def save(self, folder: Path, rank: int) -> None:
        """``rollout_window_RANK``: .json has traces and row ids, .safetensors the tensors."""
        path = folder / FILE.format(rank)
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
        cls,
        folder: Path,
        rank: int,
        shares: Sequence[Sequence[Rows]],
        groups: Sequence[PromptGroup],
        filler: PromptGroup,
        device: torch.device,
    ) -> "Window":
        """This rank's part of the window that any number of ranks saved into ``folder``.
        ``shares[i]`` has the row ids of its micro-batches in mini-batch i; ``groups`` are the
        training groups by row id, ``filler`` is where that is None."""
        wanted = {row for share in shares for batch in share for row in batch}
        kept: dict[int | None, Cell] = {}
        rollout = -1
        for path in _files(folder, rank):
            rollout, cells = _read(path, wanted, device)
            for row, traces, recall in cells:
                group = filler if row is None else groups[row]
                kept[row] = Cell(group, traces, recall.scores.verdict, recall)
            if kept.keys() == wanted:  # its own file alone, where the ranks are as they were
                break
        minibatches = []
        for share in shares:
            cells = [kept[row] for batch in share for row in batch]
            minibatches.append(tuple(map(micro_batch, in_batches(cells, share))))
        return cls(rollout, tuple(minibatches))


def _files(folder: Path, rank: int) -> list[Path]:
    """The .json of every rank, this one's first."""
    files = sorted(folder.glob(FILE.format("*") + ".json"))
    return sorted(files, key=lambda path: path.stem != FILE.format(rank))


def _read(
    path: Path, wanted: Collection[int | None], device: torch.device
) -> tuple[int, list[tuple[int | None, Traces, Recall]]]:
    """The step that a rank's file was sampled at, and what it knows of the rows that are wanted."""
    state = json.loads(path.read_text(encoding="utf-8"))
    tensors = load_file(path.with_suffix(".safetensors"))  # does not take the device "cpu:0"
    found = [
        (cell["row"], _traces(cell), _recall(tensors, f"{i}.{j}.{g}.", device))
        for i, layout in enumerate(state["minibatches"])
        for j, cells in enumerate(layout)
        for g, cell in enumerate(cells)
        if cell["row"] in wanted
    ]
    return state["rollout"], found


def _traces(cell: dict[str, Any]) -> Traces:
    return Traces(
        ids=tuple(map(tuple, cell["ids"])),
        closed=tuple(cell["closed"]),
        ended=tuple(cell["ended"]),
        answers=tuple(map(tuple, cell["answers"])),
        sampler_logps=tuple(map(tuple, cell.get("sampler_logps", ()))),
    )


def _describe(group: PromptGroup, traces: Traces) -> dict[str, Any]:
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


def _recall(everything: dict[str, Tensor], prefix: str, device: torch.device) -> Recall:
    tensors = {k: v.to(device) for k, v in everything.items() if k.startswith(prefix)}

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
