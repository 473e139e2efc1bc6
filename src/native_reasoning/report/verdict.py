"""Did thinking help? One number with its interval, and the sentences that go with it."""

import math
from dataclasses import dataclass

import pandas as pd

from native_reasoning.evaluate.metrics import Interval
from native_reasoning.names import COLLAPSE, STATES
from native_reasoning.runs import Run

#: Under so many questions an interval is only rough.
FEW = 30
#: Under this share of right answers, with and without thinking, accuracy measures nothing.
LEAST_ACCURACY = 0.02
#: Nats per token by which answers without thinking may get less likely before it is said.
WORSE = 0.05
HEADLINES = {
    "helped": "Thinking helped",
    "hurt": "Thinking hurt",
    "even": "No difference between thinking and not thinking was found",
    "unknown": "Nothing can be said yet",
}


@dataclass(frozen=True)
class Verdict:
    """``state`` is a key of ``HEADLINES``; ``measure`` says in words what ``interval`` is of, in
    ``unit``; None if nothing was measured. ``notes`` are sentences, the most important first."""

    state: str
    measure: str
    unit: str
    interval: Interval | None
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The verdict in words."""
        return HEADLINES[self.state]

    @property
    def value(self) -> str:
        """The number as people read it, without its unit: ``+87.4``."""
        return "–" if self.interval is None else self._text(self.interval.mean)

    @property
    def number(self) -> str:
        """The number: ``+87.4 points``."""
        return self.value if self.interval is None else f"{self.value} {self.unit}"

    @property
    def range(self) -> str:
        """Its interval: ``+84.2 to +90.4``."""
        if self.interval is None:
            return ""
        return f"{self._text(self.interval.low)} to {self._text(self.interval.high)}"

    def _text(self, value: float) -> str:
        return nought(f"{100 * value:+.1f}" if self.unit == "points" else f"{value:+.3f}")


def nought(text: str) -> str:
    """A number as people write it: no sign before 0.000, a minus and not a hyphen."""
    return text[1:] if not text.strip("+-0.") else text.replace("-", "−")


def verdict(run: Run) -> Verdict:
    """Of the last evaluation's accuracy, with thinking less without; where answers are hardly ever
    right, or are free text, of its uplift; without evaluations, of the uplift on the last ten
    recorded steps' own questions. Which of them is never chosen by what they say."""
    state, measure, unit, interval = "unknown", "", "", None
    last = run.evaluations.iloc[-1].dropna() if len(run.evaluations) else pd.Series(dtype=float)
    asked = int(last.get("eval_questions", 0))
    if _accurate(last):
        measure = f"accuracy with thinking less accuracy without, on {asked} held-out questions"
        unit, interval = "points", _logged(last, "eval_accuracy_gain", asked)
    elif asked and "eval_uplift" in last:
        measure = "log-probability of a reference token, after a trace less after none, on "
        measure += f"{asked} held-out questions"
        unit, interval = "nats per token", _logged(last, "eval_uplift", asked)
    elif (found := run.uplift()) is not None:
        measure = "log-probability of a reference token, after a trace less after none, on "
        measure += f"the {found.n} training questions of the last ten recorded steps"
        unit, interval = "nats per token", found
    if interval is not None and not math.isfinite(interval.low + interval.high):
        interval = None
    if interval is not None:
        state = "helped" if interval.low > 0 else "hurt" if interval.high < 0 else "even"
    notes = [
        *_accuracy(run, last, asked),
        *_change(run, unit),
        *_about(run),
        *_baseline(run),
        *_guard(run),
    ]
    if interval is not None and interval.n < FEW:
        notes.append(f"Only {interval.n} questions: the interval is rough.")
    if interval is None:
        notes.insert(0, _why_unknown(run, measure))
    return Verdict(state, measure, unit, interval, tuple(notes))


def _accurate(last: pd.Series) -> bool:
    names = ["eval_accuracy", "eval_accuracy_no_think"]
    known = {*names, "eval_accuracy_gain", "eval_questions"} <= {*last.index}
    return known and last[names].max() >= LEAST_ACCURACY


def _logged(row: pd.Series, name: str, n: int) -> Interval:
    low, high = row.get(f"{name}_low", row[name]), row.get(f"{name}_high", row[name])
    return Interval(float(row[name]), float(low), float(high), n)


def _why_unknown(run: Run, measure: str) -> str:
    if measure:
        return "What was measured is not a finite number."
    if run.metrics.empty:
        return "No step has been logged yet."
    if "empty" in run.metrics and run.metrics["empty"].iloc[-1] == 1:
        return "This run trains on answers alone: it writes no traces."
    return "There are neither evaluations nor recorded traces to measure it with."


def _accuracy(run: Run, last: pd.Series, asked: int) -> list[str]:
    if not _accurate(last):
        return []
    told = (
        f"{_percent(last['eval_accuracy'])} of {asked} held-out questions are answered right after "
        f"thinking, {_percent(last['eval_accuracy_no_think'])} without."
    )
    first = run.evaluations.iloc[0].dropna()
    if len(run.evaluations) > 1 and {"eval_accuracy", "eval_accuracy_no_think"} <= {*first.index}:
        told += (
            f" At step {run.evaluations.index[0]} it was {_percent(first['eval_accuracy'])} and "
            f"{_percent(first['eval_accuracy_no_think'])}."
        )
    return [told]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _change(run: Run, unit: str) -> list[str]:
    """Whether training changed what thinking is worth: the first evaluation beside the last."""
    name = "eval_accuracy_gain" if unit == "points" else "eval_uplift"
    known = run.evaluations[run.evaluations[name].notna()] if name in run.evaluations else ()
    if len(known) < 2:
        return []
    first, last = (_logged(known.iloc[i], name, 0) for i in (0, -1))
    change = "no difference to the end can be shown"
    if last.low > first.high:
        change = "training made it worth more"
    elif last.high < first.low:
        change = "training made it worth less"
    before = Verdict("even", "", unit, first, ())
    return [
        f"At step {known.index[0]} thinking was worth {before.number} ({before.range}): {change}."
    ]


def _about(run: Run) -> list[str]:
    """Whether traces are about their question: the last exchange that has a standard error."""
    names = ["specificity", "specificity_se"]
    if not {*names} <= {*run.metrics} or (known := run.metrics[names].dropna()).empty:
        return []
    value, error = map(float, known.iloc[-1])
    told = f"(specificity {nought(f'{value:+.3f}')} ± {error:.3f} nats per token, "
    told += f"step {known.index[-1]})."
    if value > 2 * error:
        return [f"Traces are about their question: another question's does worse {told}"]
    if value < -2 * error:
        return [f"Another question's trace does better: something is wrong {told}"]
    return [f"Another question's trace does as well: what helps, if anything, is their tone {told}"]


def _baseline(run: Run) -> list[str]:
    """Whether uplift grew because answers without thinking got worse."""
    baseline = run.column("answer_logp_no_think")
    tenth = max(len(baseline) // 10, 1)
    change = baseline.iloc[-tenth:].mean() - baseline.iloc[:tenth].mean()
    lifted = run.column("uplift").iloc[-tenth:].mean()
    if len(baseline) < 2 or change > -WORSE or not lifted > 0:
        return []
    return [
        f"Without thinking, reference tokens lost {-change:.2f} nats during training: so much of "
        "the uplift is a worse start, not a better end."
    ]


def _guard(run: Run) -> list[str]:
    states = run.column(COLLAPSE)
    if states.empty:
        return []
    now, worst = int(states.iloc[-1]), int(states.max())
    before = f"; it had said {STATES[worst]} before" if worst > now else ""
    return [f"The collapse guard says {STATES[now]}{before}."]
