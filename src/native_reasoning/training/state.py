"""What an objective remembers from step to step: a lagging policy, a filter's running mean."""

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.errors import RunError
from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.objective.filters import StdFilter
from native_reasoning.scoring.judges import EMA, Judges

FILTER = "filter.json"


class ObjectiveState(TrainerCallback):
    """Brings the copies and the filter up to date at the end of each step, and keeps them in the
    checkpoints. ``rollout`` is the step (from 0) whose traces are trained on."""

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.filter = StdFilter(settings.filter_coef) if settings.filter == "ema_std" else None
        self.judges: Judges | None = None
        self.rollout = -1

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
        if self.filter is not None and self.rollout == state.global_step - 1:
            self.filter.close(args.device)

    @property
    def first_policy(self) -> str | None:
        """A fingerprint of the first policy, None where it is not asked."""
        return None if self.judges is None else self.judges.fingerprint()

    def save(self, folder: Path) -> None:
        """Into an unfinished checkpoint."""
        if self.judges is not None:
            self.judges.save(folder)
        if self.filter is not None:
            (folder / FILTER).write_text(json.dumps(self.filter.state()), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """From a checkpoint. Raises RunError where it was written without what is needed now."""
        needed = [EMA] if self.judges is not None and self.judges.ema is not None else []
        needed += [FILTER] if self.filter is not None else []
        for name in needed:
            if not (folder / name).is_file():
                raise RunError(
                    f"{folder} has no {name}",
                    why="this objective goes on with it, and the run was begun with another one",
                    fix="resume with the old objective, or start a new run with the checkpoint as "
                    "--model",
                )
        if self.judges is not None:
            self.judges.load(folder)
        if self.filter is not None:
            self.filter.restore(json.loads((folder / FILTER).read_text(encoding="utf-8")))
