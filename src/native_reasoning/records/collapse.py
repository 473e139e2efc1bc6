"""Is a run collapsing? One rule over its own metrics, with three states: docs/diagnostics.md.

*collapsed*, over the last ``WINDOW`` logged steps: traces are empty, are never closed any more, the
reference answers got much less likely, or updates were skipped. *drifting*: the same to a lesser
degree, or traces that make no difference to which question they are put (specificity). A run that
has collapsed counts as collapsed until exchanges say that traces are about their question again.

The bounds were set on seeds 0 to 2 of benchmarks/collapse.py and tried on others.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.errors import RunError, warn
from native_reasoning.records.metrics import COLLAPSE, LEAST, STATES

WINDOW = 10
#: Exchanges that have to say nothing, and how many there must have been.
SILENT, KNOWN = 3, 5
_WATCHED = ("empty", "closed", "answer_logp", "skipped_updates")
#: What on_collapse lower_lr leaves of the learning rate.
LOWERED = 0.3


@dataclass
class History:
    """What the rule looks at: metrics of the first logged step and of the last ones, and of each
    late exchange whether it said something."""

    first: dict[str, float] = field(default_factory=dict)
    last: list[dict[str, float]] = field(default_factory=list)
    exchanges: list[bool] = field(default_factory=list)
    measured: int = 0
    state: int = 0

    def add(self, logs: Mapping[str, Any]) -> None:
        """The metrics of one logged step."""
        row = {name: float(logs[name]) for name in _WATCHED if logs.get(name) is not None}
        self.first = self.first or row
        self.last = [*self.last, row][-WINDOW:]
        if any(name in logs for name in ("specificity", "gain_hard", "gain_middle", "gain_easy")):
            value, error = logs.get("specificity", 0.0), logs.get("specificity_se", 0.0)
            says = value > max(LEAST, 2 * error) and logs.get("empty", 0.0) < 0.5
            self.exchanges = [*self.exchanges, bool(says)][-SILENT:]
            self.measured += 1

    def mean(self, name: str) -> float | None:
        """Of the last logged steps, None until there are ``WINDOW`` of them."""
        values = [row[name] for row in self.last if name in row]
        return statistics.fmean(values) if len(values) == WINDOW else None


def judge(history: History) -> tuple[int, list[str]]:
    """The state (an index of ``STATES``) and, in words, why."""
    found = _in_window(history)
    silent = len(history.exchanges) == SILENT and not any(history.exchanges)
    if silent and history.measured >= KNOWN:
        told = "another question's trace was not shown to do worse"
        found.append((1, f"in {SILENT} exchanges in a row {told}"))
    state = max((level for level, _ in found), default=0)
    if history.state == 2 and state < 2 and history.measured and not all(history.exchanges):
        found.append((2, "it had collapsed, and traces do not tell questions apart again"))
        state = 2
    return state, [text for level, text in found if level == state]


def _in_window(history: History) -> list[tuple[int, str]]:
    """What the means of the last steps say, each with the state that it stands for."""
    found: list[tuple[int, str]] = []
    empty, closed, logp, skipped = map(history.mean, _WATCHED)
    if empty is not None and empty >= 0.6:
        found.append((2 if empty >= 0.95 else 1, f"{empty:.0%} of the traces are empty"))
    first = history.first.get("closed", 0.0)
    if closed is not None and first >= 0.5 and closed < first / 2:
        told = f"{closed:.0%} of the traces close themselves, at the beginning {first:.0%}"
        found.append((2 if closed <= 0.1 else 1, told))
    first = history.first.get("answer_logp")
    if logp is not None and first is not None and not logp > first - 0.3:  # or is no number
        told = f"reference answers have {logp:.2f} nats per token, at the beginning {first:.2f}"
        found.append((2 if logp < first - 1 else 1, told))
    if skipped is not None and skipped >= 0.3:
        told = f"{skipped:.0%} of the updates were not finite"
        found.append((2 if skipped >= 0.8 else 1, told))
    return found


class CollapseGuard(TrainerCallback):
    """Watches a run: says on stderr when the state changes, and does what ``on_collapse`` asks when
    it has collapsed: ``warn`` no more than that, ``stop`` saves and ends the run, ``lower_lr``
    multiplies the learning rate by ``LOWERED``, each time anew."""

    def __init__(self, on_collapse: str = "warn") -> None:
        self.on_collapse, self.history = on_collapse, History()
        self._why: list[str] = []
        self._act, self._stopped = False, 0

    def look(self, logs: Mapping[str, Any], step: int, *, tell: bool) -> dict[str, float]:
        """The state as a metric, after the metrics of one more logged step."""
        before = self.history.state
        self.history.add(logs)
        self.history.state, self._why = judge(self.history)
        self._act = self.history.state == 2 and before < 2
        if self.history.state != before and tell:
            why = f": {'; '.join(self._why)}" if self._why else " again"
            warn(f"step {step}: {STATES[self.history.state]}{why}")
        return {COLLAPSE: float(self.history.state)}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        act, self._act = self._act, False
        if act and self.on_collapse == "stop":
            control.should_save = control.should_training_stop = True
            self._stopped = state.global_step
        if act and self.on_collapse == "lower_lr":
            inner = getattr(lr_scheduler, "scheduler", lr_scheduler)
            inner.base_lrs = [LOWERED * rate for rate in inner.base_lrs]
            for group in optimizer.param_groups:
                group["lr"] *= LOWERED

    def raise_if_stopped(self) -> None:
        """Raises RunError after a run that was stopped by ``on_collapse stop``."""
        if self._stopped:
            raise RunError(
                f"the run had collapsed and was stopped at step {self._stopped}: "
                f"{'; '.join(self._why)}",
                why="more steps of it would have trained on traces that say nothing",
                fix="a smaller --learning-rate, or another --preset; docs/diagnostics.md. "
                "--resume --on-collapse warn goes on all the same",
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return vars(self.history)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
        self.history = History(**state)
