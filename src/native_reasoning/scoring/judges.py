"""Copies of the policy that an objective asks: the first policy, and one that lags behind.

The first policy is the model as the trainer was given it, before any checkpoint: so a resumed run
has the same one without keeping it. The lagging one is part of every checkpoint.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from native_reasoning.config.errors import RunError
from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.model.adapters import written_into
from native_reasoning.model.forward import inference
from native_reasoning.model.ranks import whole
from native_reasoning.objective.types import Judgement, Scores
from native_reasoning.scoring.scorer import Scorer

EMA = "ema.safetensors"


class Judges:
    """The copies that ``settings`` need, of a model that ``install_scoring`` has prepared.

    ``scorer`` scores as the trainer does, ``autocast`` gives the context in which it computes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: ObjectiveSettings,
        scorer: Scorer,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.settings, self.scorer, self.autocast = settings, scorer, autocast
        self.frozen = _copy(model) if settings.needs_frozen else None
        self.ema = _copy(model) if settings.needs_ema else None
        self.trained = {name for name, p in model.named_parameters() if p.requires_grad}

    def attach(
        self, scores: Sequence[Scores], groups: Sequence[PromptGroup], traces: Sequence[Traces]
    ) -> list[Scores]:
        """The scores of these groups with what each copy says of the same rows."""
        out, s = list(scores), self.settings
        empty = [Traces((self.scorer.template.empty_trace(),), (True,))] * len(groups)
        if self.frozen is not None:
            whole = s.needs_reference
            said = self._ask(self.frozen, groups, traces if whole else empty)
            judged = [Judgement(j.baseline, trace=j.trace if whole else None) for j in said]
            out = [replace(one, frozen=j) for one, j in zip(out, judged, strict=True)]
        if self.ema is not None:
            whole = s.scored_by == "ema"
            bare = [replace(t, answers=()) for t in traces]  # only the reference's rows are read
            said = self._ask(self.ema, groups, bare if whole else empty)
            judged = [Judgement(j.baseline, answer=j.answer if whole else None) for j in said]
            out = [replace(one, ema=j) for one, j in zip(out, judged, strict=True)]
        return out

    def _ask(
        self, model: PreTrainedModel, groups: Sequence[PromptGroup], traces: Sequence[Traces]
    ) -> list[Scores]:
        """One forward without gradients."""
        with inference(model), self.autocast():
            return self.scorer(model, groups, traces)

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """After optimiser step ``step``, counted from 1: every ``ema_steps`` the EMA is mixed with
        the policy, ``ema_decay`` of it staying."""
        if self.ema is None or step % self.settings.ema_steps:
            return
        for old, new in zip(self.ema.parameters(), model.parameters(), strict=True):
            if new.requires_grad:
                old.lerp_(whole(new).to(old.dtype), 1 - self.settings.ema_decay)

    def save(self, folder: Path) -> None:
        """The lagging copy, into a checkpoint."""
        if self.ema is not None:
            named = self.ema.named_parameters()
            kept = {n: p.detach().contiguous() for n, p in named if n in self.trained}
            save_file(kept, folder / EMA)

    def load(self, folder: Path) -> None:
        """The lagging copy that ``save`` wrote. Raises RunError where a checkpoint has none."""
        if self.ema is not None:
            if not (folder / EMA).is_file():
                raise RunError(
                    f"{folder} has no {EMA}",
                    why="this objective goes on with it, and the run was begun with another one",
                    fix="resume with the old objective, or start a new run with the checkpoint as "
                    "--model",
                )
            saved = load_file(folder / EMA)
            with torch.no_grad():
                for name, parameter in self.ema.named_parameters():
                    if name in self.trained:
                        parameter.copy_(saved[name])


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of what is trained; what is not (all but an adapter) is the model's own, except tables
    that trained rows are written into."""
    tables = written_into(model)
    fixed = (p for p in model.parameters() if not p.requires_grad)
    shared: dict[int, object] = {id(p): p for p in fixed if id(p) not in tables}
    made = copy.deepcopy(model, shared)
    return made.requires_grad_(False).eval()
