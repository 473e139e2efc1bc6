"""What an objective remembers from step to step: a lagging policy, a filter's running mean."""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.objective.filters import StdFilter
from native_reasoning.scoring.judges import Judges


class ObjectiveState(TrainerCallback):
    """Brings the copies and the filter up to date at the end of each step. ``rollout`` is the step
    (from 0) whose traces are trained on."""

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
