"""Is a run collapsing? One rule over its own metrics, with three states: docs/diagnostics.md.

*Gone*, over the last ``WINDOW`` logged steps: traces are empty, traces are not closed any more,
reference answers got much less likely, or updates were skipped.

*Sure and wrong*: traces have lost their variety (entropy, distinct ones, groups whose rewards
differ) and are not right. Variety alone says nothing. A run that learns loses it too, because it
becomes sure of what is right; then reward and the answers' likelihood keep what they gained. So it
counts where both have given back a part of their best gain, in means of ``RECENT`` steps, or where
another question's trace does as well.

*drifting* comes before *collapsed*. A run that has collapsed counts as collapsed until exchanges
say that traces are about their question again. benchmarks/collapse.py has the seeds that the bounds
were set on, and others.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.errors import RunError, warn
from native_reasoning.records.metrics import COLLAPSE, LEAST, METRICS, STATES

WINDOW = 10
#: Exchanges that have to say nothing, and how many there must have been.
SILENT, KNOWN = 3, 5
#: Steps whose mean is "now".
RECENT = 3
#: Shares of their best gains that must have been given back where traces are wrong.
BACK = {"answer_logp": 0.25, "reward": 0.5}
#: Nats per token that reference answers may lose.
FALLEN = 0.3
#: What says how different traces are, and from which value on half of it is a loss.
_VARIETY = {"trace_entropy": 0.0, "distinct": 0.5, "narrow_groups": 0.5}
_WATCHED = ("empty", "closed", "skipped_updates", *_VARIETY, *BACK)
_EXCHANGED = ("specificity", "gain_hard", "gain_middle", "gain_easy")
#: Every metric that the rule reads.
READ = (*_WATCHED, *_EXCHANGED, "specificity_se")
#: What on_collapse lower_lr leaves of the learning rate.
LOWERED = 0.3
#: What to set, each tried where the cause was seen (docs/results.md).
_SLOWER = "set --learning-rate to a third or less, or --on-collapse lower_lr"
_CLIP = "set --preset nrt-ws, or --objective.clip relu --objective.baseline current"
_LONGER = "look at the traces: docs/collapse.md"


class Finding(NamedTuple):
    """One cause: the state that it stands for, its name, what was seen, and what to set."""

    state: int
    name: str
    seen: str
    fix: str

    def __str__(self) -> str:
        return f"{self.seen}; {self.fix}"


@dataclass
class History:
    """What the rule looks at: metrics of the first logged step and of the last ones, the best
    means of ``RECENT`` steps, and of each late exchange whether it said something.

    ``specificity`` is the largest so far; ``silent`` says that the last exchange came when variety
    was gone, and that another question's trace did as well there.
    """

    first: dict[str, float] = field(default_factory=dict)
    last: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    exchanges: list[bool] = field(default_factory=list)
    measured: int = 0
    specificity: float = 0.0
    silent: bool = False
    state: int = 0

    def add(self, logs: Mapping[str, Any]) -> None:
        """The metrics of one logged step."""
        row = {name: float(logs[name]) for name in _WATCHED if logs.get(name) is not None}
        self.first = self.first or row
        self.last = [*self.last, row][-WINDOW:]
        for name in BACK:
            now = self.mean(name, RECENT)
            if now is not None and math.isfinite(now):
                self.best[name] = max(now, self.best.get(name, now))
        if any(name in logs for name in _EXCHANGED):
            self._add_exchange(logs)

    def _add_exchange(self, logs: Mapping[str, Any]) -> None:
        value, error = logs.get("specificity", 0.0), logs.get("specificity_se", 0.0)
        says = value > max(LEAST, 2 * error) and logs.get("empty", 0.0) < 0.5
        self.exchanges = [*self.exchanges, bool(says)][-SILENT:]
        self.measured += 1
        self.specificity = max(self.specificity, value)
        busy, as_well = logs.get("empty", 0.0) < 0.5, value <= self.specificity / 2
        self.silent = bool(self.lost_variety()) and busy and as_well and not says

    def mean(self, name: str, steps: int = WINDOW) -> float | None:
        """Of the last logged steps, None until there are so many of them."""
        values = [row[name] for row in self.last[-steps:] if name in row]
        return statistics.fmean(values) if len(values) == steps else None

    def lost_variety(self) -> list[str]:
        """Which of entropy, distinct traces, and groups that are not narrow is at most half of what
        it was at the first step, in words."""
        found: list[str] = []
        for name, least in _VARIETY.items():
            first, now = self.first.get(name), self.mean(name, RECENT)
            if first is None or now is None:
                continue
            told = f"{METRICS[name].label} {METRICS[name].text(first)} to {METRICS[name].text(now)}"
            if name == "narrow_groups":
                first, now = 1 - first, 1 - now
            if now <= first / 2 and first >= least:
                found.append(told)
        return found

    def worse(self, name: str) -> bool:
        """Whether a metric has given back its share (``BACK``) of its best gain since the first
        step. Of a likelihood, a gain counts as at least a quarter of the first step's nats: less is
        noise."""
        first, now, best = self.first.get(name), self.mean(name, RECENT), self.best.get(name)
        if first is None or now is None or best is None:
            return False
        best = max(best, first)
        gain = max(best - first, abs(first) / 4 if name == "answer_logp" else 0.0)
        return not now > best - BACK[name] * gain  # or is no number

    def no_better(self, name: str) -> bool:
        """Whether a metric is, over the window, no better than at the first step."""
        first, now = self.first.get(name), self.mean(name)
        return first is not None and now is not None and not now > first


def judge(history: History) -> tuple[int, list[Finding]]:
    """The state (an index of ``STATES``) and why."""
    found = [*_in_window(history), *_sure_and_wrong(history)]
    quiet = len(history.exchanges) == SILENT and not any(history.exchanges)
    if quiet and history.measured >= KNOWN:
        told = f"in {SILENT} exchanges in a row another question's trace was not shown to do worse"
        found.append(Finding(1, "specificity", told, _SLOWER))
    state = max((one.state for one in found), default=0)
    if history.state == 2 and state < 2 and history.measured and not all(history.exchanges):
        told = "it had collapsed, and traces do not tell questions apart again"
        found, state = [Finding(2, "specificity", told, _SLOWER)], 2
    return state, [one for one in found if one.state == state]


def _in_window(history: History) -> list[Finding]:
    """What the means of the last steps say."""
    found: list[Finding] = []
    empty, closed, skipped = map(history.mean, ("empty", "closed", "skipped_updates"))
    if empty is not None and empty >= 0.8:
        told = f"{empty:.0%} of the traces are empty"
        found.append(Finding(2 if empty >= 0.95 else 1, "empty", told, _CLIP))
    first = history.first.get("closed", 0.0)
    if closed is not None and first >= 0.5 and closed < first / 2:
        told = f"{closed:.0%} of the traces close themselves, at the beginning {first:.0%}"
        found.append(Finding(2 if closed <= 0.1 else 1, "closed", told, _LONGER))
    found += _unlikely(history)
    if skipped is not None and skipped >= 0.3:
        told = f"{skipped:.0%} of the updates were not finite"
        found.append(Finding(2 if skipped >= 0.8 else 1, "skipped", told, _SLOWER))
    return found


def _unlikely(history: History) -> list[Finding]:
    """Whether the reference answers got much less likely: at once, or over the window. A quarter
    more nats are enough where the reward fell too, for traces may also lose their way without
    becoming alike."""
    first = history.first.get("answer_logp")
    now, late = (history.mean("answer_logp", steps) for steps in (RECENT, WINDOW))
    if first is None or now is None:
        return []
    fell = not now > 2 * first - FALLEN  # or is no number
    both = not now > 1.25 * first and history.worse("reward")
    fallen = late is not None and not late > first - FALLEN
    if not (fell or both or fallen):
        return []
    told = f"reference answers have {now:.2f} nats per token, at the beginning {first:.2f}"
    if both:
        told += f"; reward {_change(history, 'reward')}"
    state = 2 if late is not None and late < first - 1 else 1
    return [Finding(state, "likelihood", told, _SLOWER)]


def _sure_and_wrong(history: History) -> list[Finding]:
    """Whether the traces have lost their variety without being right."""
    lost = history.lost_variety()
    worse = all(map(history.worse, BACK))
    if not lost or not (worse or history.silent):
        return []
    no_better = all(map(history.no_better, BACK))
    state = 2 if no_better or (worse and history.silent) else 1
    why = [f"{name} {_change(history, name)}" for name in BACK] if worse else []
    why += ["another question's trace does as well"] if history.silent else []
    seen = f"traces have lost their variety ({', '.join(lost)}) and are not right: "
    return [Finding(state, "variety", seen + ", ".join(why), _SLOWER)]


def _change(history: History, name: str) -> str:
    """``0.12, 0.31 before``: the mean of the last steps and the best of them so far."""
    now, text = history.mean(name, RECENT), METRICS[name].text
    assert now is not None
    return f"{text(now)}, {text(max(history.best[name], history.first[name]))} before"


def replay(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, list[Finding]]]:
    """State and why after each logged step, from the metrics of a run."""
    history, told = History(), []
    for row in rows:
        history.add(row)
        history.state, found = judge(history)
        told.append((history.state, found))
    return told


class CollapseGuard(TrainerCallback):
    """Watches a run: says on stderr when the state changes, and does what ``on_collapse`` asks when
    it has collapsed: ``warn`` no more than that, ``stop`` saves and ends the run, ``lower_lr``
    multiplies the learning rate by ``LOWERED``, each time anew."""

    def __init__(self, on_collapse: str = "warn") -> None:
        self.on_collapse, self.history = on_collapse, History()
        self._why: list[Finding] = []
        self._act, self._stopped = False, 0

    def look(self, logs: Mapping[str, Any], step: int, *, tell: bool) -> dict[str, float]:
        """The state as a metric, after the metrics of one more logged step."""
        before = self.history.state
        self.history.add(logs)
        self.history.state, self._why = judge(self.history)
        self._act = self.history.state == 2 and before < 2
        if self.history.state != before and tell:
            why = f": {'; '.join(map(str, self._why))}" if self._why else " again"
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
                f"{'; '.join(one.seen for one in self._why)}",
                why="more steps of it would have trained on traces that say nothing",
                fix=f"{', '.join(dict.fromkeys(one.fix for one in self._why))}; docs/collapse.md. "
                "--resume --on-collapse warn goes on all the same",
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return vars(self.history)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
        self.history = History(**state)
