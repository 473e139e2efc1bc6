"""One rollout and everything that was read off it: traces, and where they are taken then, scores.

On-policy a window is one optimiser step and its scores come from the training forward. With several
updates per rollout, or where groups are trained on in parts, the scores are taken once, when the
traces are sampled; the open window is part of every checkpoint.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from native_reasoning.config.errors import RunError
from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.objective.types import Judgement, Scores, Signal, Verdict
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


def micro_batches(cells: Sequence[Cell], share: Sequence[Rows]) -> list[MicroBatch]:
    """As many groups at a time as ``share`` has rows, those of like lengths together, so that
    little is padded."""
    cuts = iter(sorted(cells, key=Cell.length))
    return [_together([next(cuts) for _ in batch]) for batch in share]


def _together(cells: Sequence[Cell]) -> MicroBatch:
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
        tensors: dict[str, Tensor] = {}
        cells = [
            {
                "row": group.example.row_id if group.weight else None,
                "traces": vars(traces),
                "recall": _as_json(recall, tensors),
            }
            for minibatch in self.minibatches
            for micro in minibatch
            for (group, traces), recall in zip(micro.pairs, micro.recalls or (), strict=True)
        ]
        path = folder / FILE.format(rank)
        text = json.dumps({"rollout": self.rollout, "cells": cells})
        path.with_suffix(".json").write_text(text, encoding="utf-8")
        save_file(tensors, path.with_suffix(".safetensors"))

    @classmethod
    def load(
        cls,
        folder: Path,
        rank: int,
        shares: Sequence[Sequence[Rows]],
        group_of: Callable[[int | None], PromptGroup],
        device: torch.device,
    ) -> "Window":
        """This rank's part of the window that any number of ranks saved into ``folder``.
        ``shares[i]`` has the row ids of its micro-batches in mini-batch i; ``group_of`` has the
        group of a row, and what fills up a batch where that is None. Raises RunError where the
        window has other rows."""
        wanted = {row for share in shares for batch in share for row in batch}
        kept: dict[int | None, Cell] = {}
        rollout = -1
        files, own = sorted(folder.glob(FILE.format("*") + ".json")), FILE.format(rank)
        for path in sorted(files, key=lambda path: path.stem != own):
            state = _read(path, device)
            rollout = state["rollout"]
            for cell in state["cells"]:
                row, recall = cell["row"], _recall(cell["recall"])
                kept[row] = Cell(
                    group_of(row), _traces(cell["traces"]), recall.scores.verdict, recall
                )
            if kept.keys() >= wanted:  # its own file alone, where the ranks are as they were
                break
        if not kept.keys() >= wanted:
            raise RunError(
                f"the open rollout in {folder} has not the rows of this step",
                why="it was sampled with other settings",
                fix="resume with those of the run: data_seed, steps_per_generation, and "
                "per_device_train_batch_size × gradient_accumulation_steps × processes",
            )
        cells = [[kept[row] for batch in share for row in batch] for share in shares]
        return cls(rollout, tuple(map(tuple, map(micro_batches, cells, shares))))


def _read(path: Path, device: torch.device) -> Any:
    """What ``save`` wrote, with its tensors."""
    tensors = load_file(path.with_suffix(".safetensors"))  # does not take the device "cpu:0"

    def tensor(value: dict[str, Any]) -> Any:
        return tensors[value["tensor"]].to(device) if value.keys() == {"tensor"} else value

    return json.loads(path.read_text(encoding="utf-8"), object_hook=tensor)


def _as_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What JSON can hold of a dataclass; ``tensors`` gets its tensors, and keeps them by number."""
    if isinstance(value, Tensor):
        name = str(len(tensors))  # two of them may be one tensor
        tensors[name] = value.clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if is_dataclass(value):
        return {name: _as_json(part, tensors) for name, part in vars(value).items()}
    return value


def _traces(state: dict[str, Any]) -> Traces:
    nested = ("ids", "answers", "sampler_logps")
    values = {k: tuple(map(tuple, v) if k in nested else v) for k, v in state.items()}
    return Traces(**cast(dict[str, Any], values))


def _recall(state: dict[str, Any]) -> Recall:
    scores = state["scores"]
    for name, kind in (("verdict", Verdict), ("frozen", Judgement), ("ema", Judgement)):
        scores[name] = scores[name] and kind(**scores[name])
    return Recall(Signal(**state["signal"]), Scores(**scores), state["fresh"])
