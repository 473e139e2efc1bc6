"""Did thinking help? One number with its interval, and the sentences that go with it."""

import math
from dataclasses import dataclass

import pandas as pd

from native_reasoning.evaluation.grading import Interval
from native_reasoning.records.collapse import READ, replay
from native_reasoning.records.metrics import COLLAPSE, LEAST, METRICS, STATES, one_kind
from native_reasoning.report.runs import LATE, Run, numbers

#: Under so many questions an interval is only rough.
FEW = 30
#: Under this share of right answers, with and without thinking, accuracy measures nothing.
LEAST_ACCURACY = 0.02
#: Difference of the shares of answers that were cut, with and without thinking, that is told.
CUT_APART = 0.1
#: Nats per token by which answers without thinking may get less likely before it is said.
WORSE = 0.05
GAIN, UPLIFT = "eval_accuracy_gain", "eval_uplift"
RIGHT = ["eval_accuracy", "eval_accuracy_no_think"]
HEADLINES = {
    "helped": "Thinking helped",
    "hurt": "Thinking hurt",
    "even": "No difference between thinking and not thinking was found",
    "unknown": "Nothing can be said yet",
}


@dataclass(frozen=True)
class Conclusion:
    """``state`` is a key of ``HEADLINES``; ``measure`` says what was measured, and ``interval`` is
    its mean with 95 %, None if nothing was. As people read them: ``value`` (``+87.4``), ``unit``
    (``points``), ``range`` (``+84.2 to +90.4``). ``notes`` are sentences, the most important first.
    """

    state: str
    measure: str
    interval: Interval | None
    value: str
    unit: str
    range: str
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The conclusion in words."""
        return HEADLINES[self.state]

    @property
    def number(self) -> str:
        """Value and unit."""
        return f"{self.value} {self.unit}".strip()


def nought(text: str) -> str:
    """A number as people write it: no sign before 0.000, a minus and not a hyphen."""
    return text[1:] if not text.strip("+-0.") else text.replace("-", "−")


def _text(name: str, value: float) -> str:
    return nought(METRICS[name].text(value))


def _range(name: str, interval: Interval) -> str:
    return f"{_text(name, interval.low)} to {_text(name, interval.high)}"


def _whole(name: str, interval: Interval) -> str:
    """``+0.100 nats per token (+0.050 to +0.200)``."""
    return f"{_text(name, interval.mean)} {METRICS[name].unit} ({_range(name, interval)})"


def verdict(run: Run) -> Conclusion:
    """Of the last evaluation's accuracy, with thinking less without; where answers are hardly ever
    right, or are free text, of its uplift; without evaluations, of the uplift on the last ten
    recorded steps' own questions. Which of them is never chosen by what they say."""
    evaluations = [numbers(row) for _, row in run.evaluations.iterrows()]
    last = evaluations[-1] if evaluations else pd.Series(dtype=float)
    asked = int(last.get("eval_questions", 0))
    measure, uplift = "", "log-probability of a reference token, after a trace less after none"
    name, interval, notes = "", None, list[str]()
    if {*RIGHT, GAIN, "eval_questions"} <= {*last.index} and last[RIGHT].max() >= LEAST_ACCURACY:
        measure = f"accuracy with thinking less accuracy without, on {asked} held-out questions"
        name, interval = GAIN, _logged(last, GAIN, asked)
        notes = [_accuracy(evaluations), *_other(interval, last)]
    elif asked and UPLIFT in last:
        name, measure = UPLIFT, f"{uplift}, on {asked} held-out questions"
        interval = _logged(last, UPLIFT, asked)
    elif (found := run.uplift()) is not None:
        name, interval, notes = "uplift", found, _met_before(run)
        measure = f"{uplift}, on the {found.n} training questions of the last ten recorded steps"
    state, texts = "unknown", ("–", "", "")
    if interval is None or not math.isfinite(interval.low + interval.high):
        interval, notes = None, [_why_unknown(run, measure)]
    else:
        state = "helped" if interval.low > 0 else "hurt" if interval.high < 0 else "even"
        texts = (_text(name, interval.mean), METRICS[name].unit, _range(name, interval))
    notes += [
        *_cut(last),
        *_change(GAIN if name == GAIN else UPLIFT, evaluations),
        *_guard(run),
        *_variety(run),
        *_about(run),
        *_baseline(run),
        *_kinds(run),
    ]
    if interval is not None and interval.n < FEW:
        notes.append(f"Only {interval.n} questions: the interval is rough.")
    return Conclusion(state, measure, interval, *texts, tuple(notes))


def _logged(row: pd.Series, name: str, n: int = 0) -> Interval:
    low, high = row.get(f"{name}_low", row[name]), row.get(f"{name}_high", row[name])
    return Interval(float(row[name]), float(low), float(high), n)


def _why_unknown(run: Run, measure: str) -> str:
    if measure:
        return "What was measured is not a finite number."
    if run.metrics.empty:
        return "No step has been logged yet."
    if answers_alone(run):
        return "This run trains on answers alone: it writes no traces."
    return "There are neither evaluations nor recorded traces to measure it with."


def answers_alone(run: Run) -> bool:
    """Whether a run has no traces because it trains on answers alone."""
    empty = run.column("empty")
    return not run.traces.num_rows and not empty.empty and empty.iloc[-1] == 1


def _met_before(run: Run) -> list[str]:
    """How many questions of the last recorded steps were met in earlier ones as well."""
    met = run.traces.select(["step", "row_id"]).to_pandas()
    first = met.groupby("row_id")["step"].min()
    late = met[met["step"].isin(sorted(met["step"].unique())[-LATE:])]
    last = late.groupby("row_id")["step"].max()
    again = int((last > first[last.index]).sum())
    return [f"{again} of them had been trained on before."] if again else []


def _accuracy(evaluations: list[pd.Series]) -> str:
    first, last = evaluations[0], evaluations[-1]
    thinking, plain = (_text(name, last[name]) for name in RIGHT)
    told = (
        f"{thinking} of {int(last['eval_questions'])} held-out questions are answered right after "
        f"thinking, {plain} without."
    )
    if len(evaluations) > 1 and {*RIGHT} <= {*first.index}:
        before = " and ".join(_text(name, first[name]) for name in RIGHT)
        told += f" At step {first.name} it was {before}."
    return told


def _cut(last: pd.Series) -> list[str]:
    """Whether answers without thinking were cut more often, so that thinking only seems better."""
    cut, plain = (float(last.get(name, 0.0)) for name in ("eval_cut", "eval_cut_no_think"))
    if abs(plain - cut) < CUT_APART:
        return []
    length = last.get("eval_max_answer_length")
    return [
        f"Answers were cut{f' at {length:.0f} tokens' if length else ''}: "
        f"{_text('eval_cut', plain)} of those without thinking, {_text('eval_cut', cut)} of those "
        "after it. A larger --eval-max-answer-length compares fairly."
    ]


def _other(gain: Interval, last: pd.Series) -> list[str]:
    """Where accuracy decides, and uplift on the same questions points the other way."""
    if UPLIFT not in last:
        return []
    uplift = _logged(last, UPLIFT)
    against = (gain.low > 0 and uplift.high < 0) or (gain.high < 0 and uplift.low > 0)
    told = f"Uplift on the same questions points the other way: {_whole(UPLIFT, uplift)}."
    return [told] if against else []


def _change(name: str, evaluations: list[pd.Series]) -> list[str]:
    """Whether training changed what thinking is worth: the first evaluation beside the last."""
    known = [row for row in evaluations if name in row]
    if len(known) < 2:
        return []
    first, last = (_logged(known[i], name) for i in (0, -1))
    change = "no difference to the end can be shown"
    if last.low > first.high:
        change = "training made it worth more"
    elif last.high < first.low:
        change = "training made it worth less"
    return [f"At step {known[0].name} thinking was worth {_whole(name, first)}: {change}."]


def _about(run: Run) -> list[str]:
    """Whether traces are about their question: the last exchange that has a standard error."""
    values, errors = run.column("specificity"), run.column("specificity_se")
    known = values.index.intersection(errors.index)
    if known.empty:
        return []
    value, error = values[known[-1]], errors[known[-1]]
    if value > 2 * error:
        said = "Traces are about their question: another question's does worse"
    elif value < -2 * error:
        said = "Another question's trace does better: something is wrong"
    elif value + 2 * error > LEAST:
        said = "Whether traces are about their question cannot be told"
    else:
        said = "Another question's trace does as well: what helps, if anything, is their tone"
    told = f"{_text('specificity', value)} ± {error:.3f} {METRICS['specificity'].unit}"
    return [f"{said} (specificity {told}, step {known[-1]})."]


def _baseline(run: Run) -> list[str]:
    """Whether uplift grew because answers without thinking got worse."""
    baseline = run.column("answer_logp_no_think")
    tenth = max(len(baseline) // 10, 1)
    change = baseline.iloc[-tenth:].mean() - baseline.iloc[:tenth].mean()
    lifted = run.column("uplift").iloc[-tenth:].mean()
    if len(baseline) < 2 or change > -WORSE or not lifted > 0:
        return []
    return [
        f"Without thinking, reference tokens lost {-change:.2f} nats during training: "
        f"{min(-change, lifted):.2f} of the {lifted:.2f} nats of uplift are a worse start, not a "
        "better end."
    ]


def _kinds(run: Run) -> list[str]:
    """Whether the reward of the last steps is one kind of token's."""
    names = [str(name) for name in run.metrics.columns if "_share_" in str(name)]
    late = {name: run.column(name).iloc[-LATE:] for name in names if len(run.column(name))}
    told = one_kind({name: float(values.mean()) for name, values in late.items()})
    steps = max(map(len, late.values()), default=0)
    return [f"Over the last {steps} steps {sentence}." for sentence in told.values()]


def _guard(run: Run) -> list[str]:
    states = run.column(COLLAPSE)
    if states.empty:
        return []
    now, worst = int(states.iloc[-1]), int(states.max())
    before = f"; it had said {STATES[worst]} before" if worst > now else ""
    rows = pd.DataFrame({name: run.column(name) for name in READ})
    logged = [{str(k): float(x) for k, x in row.dropna().items()} for _, row in rows.iterrows()]
    again, why = [(now, []), *replay(logged)][-1]
    causes = "; ".join(map(str, why)) if again == now else ""  # else another version's rule
    told = f": {causes}" if causes else ""
    return [f"The collapse guard says {STATES[now]}{before}{told}."]


def _variety(run: Run) -> list[str]:
    """How different traces were at the first step, and are over the last ones."""
    if COLLAPSE not in run.metrics:  # no traces are sampled
        return []
    told: list[str] = []
    for name in ("trace_entropy", "distinct", "flat_groups", "narrow_groups"):
        values = run.column(name)
        if len(values):
            first, late = _text(name, values.iloc[0]), _text(name, values.iloc[-LATE:].mean())
            told.append(f"{METRICS[name].title} {first} to {late}")
    if not told:
        return []
    return [f"Variety of traces, from the first step to the last {LATE}: {', '.join(told)}."]
