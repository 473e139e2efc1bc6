"""What held-out outcomes and the curves of training say of a run of the lab."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from lab.tasks import Family, digit_strings, running_sums
from native_reasoning.evaluation.grading import exact_match
from native_reasoning.evaluation.held_out import Outcome
from native_reasoning.objective.types import uplift

#: Accuracy, or probability of the hard tokens, from which a run counts as having learnt.
LEARNT = 0.9
#: Share of empty traces from which it counts as emptied.
COLLAPSED = 0.9
#: Steps that a point of a curve is the mean of, and points that its end is.
POINT, END = 10, 2


def measure(outcomes: Sequence[Outcome], family: Family) -> dict[str, float]:
    """Means over held-out questions, each with one sampled trace.

    ``accuracy``: the share of hard digits that are right, trace and answer sampled at temperature
    1; ``accuracy_greedy``: both greedy; ``…_no_think``: after an empty trace. ``exact``: the whole
    answer is the reference. ``useful``: the trace is the running sum. ``uplift`` is in nats per
    token, ``uplift_hard`` over the hard tokens alone.
    """
    hard = family.hard

    def share(right: Callable[[Outcome], float]) -> float:
        return round(fmean(right(o) for o in outcomes), 4)

    def gain(o: Outcome, places: Sequence[int]) -> float:
        return fmean(uplift(o.answer_logps[0][i], o.baseline_logps[i]) for i in places)

    return {
        "questions": len(outcomes),
        "accuracy": share(lambda o: digits_right(o.answers[0], o.reference)),
        "accuracy_greedy": share(lambda o: digits_right(o.answer_greedy, o.reference)),
        "accuracy_no_think": share(lambda o: digits_right(o.answer_no_think, o.reference)),
        "exact": share(lambda o: exact_match(o.answers[0], o.reference)),
        "useful": share(lambda o: _useful(o)),
        "uplift": share(lambda o: gain(o, range(len(o.baseline_logps)))),
        "uplift_hard": share(lambda o: gain(o, hard)),
        "trace_length": share(lambda o: o.trace_lengths[0]),
        "closed": share(lambda o: o.closed[0]),
        "distinct": round(len({o.traces[0] for o in outcomes}) / len(outcomes), 4),
    }


def digits_right(answer: str, reference: str) -> float:
    """The share of the reference's digits that stand in the answer, first to first and so on.

    >>> digits_right("it is 3 and 5", "it is 3 and 4")
    0.5
    """
    wanted, given = _digits(reference), _digits(answer)
    return sum(a == b for a, b in zip(wanted, given, strict=False)) / len(wanted)


def state_of(result: dict[str, Any]) -> str:
    """How a run ended: "learnt", "collapsed" (to empty traces) or "neither".

    Learnt where the accuracy on (the first set of) held-out problems is at least ``LEARNT``, else
    collapsed where at least ``COLLAPSED`` of the traces at the end of training are empty.
    """
    held_out, *_ = result["held_out"].values()
    if held_out["accuracy"] >= LEARNT:
        return "learnt"
    empty = result["curves"].get("empty")
    return "collapsed" if empty and fmean(empty[-END:]) >= COLLAPSED else "neither"


def first_point(values: Sequence[float], bound: float, start: int = 0) -> int | None:
    """The first point from ``start`` on that reaches the bound.

    >>> first_point([0.1, 0.95, 0.2], 0.9)
    1
    """
    return next((i for i, v in enumerate(values) if i >= start and v >= bound), None)


def _useful(o: Outcome) -> float:
    return float(o.traces[0].split() == running_sums(digit_strings(o.question)))


def _digits(text: str) -> list[str]:
    return [word for word in text.split() if word.isdigit()]
