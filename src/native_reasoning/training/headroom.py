"""Is there anything to reinforce? Asked of a model and its questions before any training.

Of N questions, K traces each are sampled as the first steps of training would, an answer after each
and one after none. A reference has *hard* tokens, those under a half without a trace, e^{b_i} < ½;
its end of turn is none of them. What a trace z is worth here is v(z): the probability of all hard
tokens together, or where references are too long to be compared their mean probability::

    head-room = mean over questions of  max_k v(z_k) − max(mean_k v(z_k), v(none), max_k v(z'_k))

z' are the K traces of another question, the last term a mean over ``OTHERS`` of these. So the best
trace has to be better than the average one, which is what reinforcing changes, and than the best of
as many traces that know nothing of the question: any trace may lift a reference by its format, and
the best of K lifts it by luck. The control is a hard one. A model may be misled by a strange trace
into an answer of which it is sure, and the best of K such answers is often right.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from native_reasoning.config.errors import ConfigError
from native_reasoning.config.nrt_config import NRTConfig, as_flags, warmup_settings
from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.evaluation.grading import accuracy, bootstrap_interval, comparable
from native_reasoning.evaluation.held_out import answer_length
from native_reasoning.model.forward import inference
from native_reasoning.objective.types import Scores, Signal
from native_reasoning.records.meter import Meter, means
from native_reasoning.records.metrics import BOUNDS, LEAST, one_kind
from native_reasoning.rollout.engine import NoiseKey, Sampling, sample_answers
from native_reasoning.rollout.noise import EVALUATION
from native_reasoning.rollout.window import Cell, MicroBatch, micro_batches

#: Share of right answers from which there is nothing to learn.
CAN = 0.9
#: Nats of a reference token that are left where there is nothing to learn, of long references.
LEFT = 0.05
#: Share of traces that close themselves, below which the format comes first.
CLOSED = 0.5
#: Share of groups of equal rewards from which nothing can be reinforced.
FLAT = 0.9
#: Probability without a trace below which a token is hard.
HARD = 0.5
#: Other questions whose traces are tried on a question.
OTHERS = 3
#: Metrics of a training step that are told too.
OF_TRACES = frozenset(
    (
        "closed",
        "ended",
        "distinct",
        "flat_groups",
        "helped",
        "uplift",
        "trace_entropy",
        "trace_length",
    )
)
#: How a verdict begins.
VERDICTS = (
    *("worth training", "format first", "nothing to reinforce", "nothing to learn"),
    "not decided",
)


@dataclass(frozen=True)
class Asked:
    """One question. ``right`` (K) are its answers after K traces, ``right_no_think`` the one after
    none, 1.0 or 0.0. ``own`` (K) and ``none`` are v after its own traces and after none, ``other``
    the mean over other questions of the best of theirs; ``known`` is the mean of b_i (nats)."""

    right: tuple[float, ...]
    right_no_think: float
    own: tuple[float, ...]
    other: float
    none: float
    known: float

    @property
    def headroom(self) -> float:
        """What the best trace is worth beyond the average, none, and another question's best."""
        return max(self.own) - max(fmean(self.own), self.none, self.other)


# -- Sampling and scoring --------------------------------------------------------------------------


def ask(trainer: Any, count: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """The numbers of ``summarise`` for the first ``count`` questions that ``trainer`` (NRTTrainer)
    would train on, and the ``Verdict``. ``tell`` hears how far it is. Raises ConfigError for fewer
    than two."""
    groups = _first_groups(trainer, count)
    if min(count, len(groups)) < 2:
        raise ConfigError(
            f"--sample {count} of {len(trainer.train_groups)} rows",
            why="traces are tried on other questions too, so two are the fewest",
            fix="--sample 32, and more rows than one",
        )
    short = fmean(comparable(group.example.answer) for group in groups) >= 0.5
    with trainer.whole_model() as model:
        cells: list[Cell] = []
        size = trainer.args.per_device_train_batch_size
        for i in range(0, len(groups), size):
            tell(f"sampling traces of {len(groups)} questions: {i}")
            cells += trainer.collector.cells(groups[i : i + size], 0, trainer.state)
        tell(f"answering {len(groups)} questions")
        graded = _graded(trainer, model, cells)
        tell(f"scoring {len(groups)} questions")
        recalled, others = _scored(trainer, model, cells)
    meter, asked = Meter(), []
    for cell, (scores, signal), other, right in zip(cells, recalled, others, graded, strict=True):
        meter.add_group(cell.group, cell.traces, scores, signal, trainer.template)
        asked.append(_asked(scores, other, right, short=short))
    found = summarise(asked, means([meter.sums()]), short=short)
    new = trainer.template.boundary.mode == "new" and not trainer.args.format_warmup_steps
    return {**asdict(judge(found, trainer.args, new=new)), **found}


def _first_groups(trainer: Any, count: int) -> list[PromptGroup]:
    """The questions that training takes first, each once."""
    schedule, rows = trainer.collector.schedule, dict[int, None]()
    for step in range(schedule.steps_per_epoch):
        rows |= dict.fromkeys(row for row in schedule.step(step).rows if row is not None)
        if len(rows) >= count:
            break
    return [trainer.train_groups[row] for row in [*rows][:count]]


def _graded(trainer: Any, model: Any, cells: Sequence[Cell]) -> list[tuple[float, ...]]:
    """Of each question whether the answers after its K traces are right, and the one after none."""
    a, template, groups = trainer.args, trainer.template, [cell.group for cell in cells]
    sampling = Sampling(1, answer_length(groups, a), a.temperature, a.top_p)
    right: list[tuple[float, ...]] = [()] * len(cells)
    empty = [Traces((template.empty_trace(),), (True,))] * len(cells)
    with inference(model):
        for step, traces in ((2, [cell.traces for cell in cells]), (4, empty)):
            key = NoiseKey(a.seed, step, EVALUATION)
            engine = trainer.forwards.engine
            samples = sample_answers(engine, template, groups, traces, sampling, key)
            for i, (group, after) in enumerate(zip(groups, samples, strict=True)):
                row = group.example
                said = [row.graded(template.text(s.ids), s.stopped == "ended") for s in after]
                marks = [max(accuracy(text, ref) for ref in row.references) for text in said]
                right[i] += tuple(marks)
    return right


def _scored(
    trainer: Any, model: Any, cells: Sequence[Cell]
) -> tuple[list[tuple[Scores, Signal]], list[list[Scores]]]:
    """Of each question its scores and the signal that the objective makes of them, and its scores
    after the traces of ``OTHERS``, with other references where there are any."""
    objective, plan = trainer.objective, trainer.collector.schedule.step(0)
    answers = [cell.group.example.answer for cell in cells]
    own, others = [], []
    for i, cell in enumerate(cells):
        (micro,) = micro_batches([cell], [(i,)])
        for recall in objective.remember(micro, plan, model, fresh=True).recalls or ():
            own.append((recall.scores, recall.signal))
        after = [*range(i + 1, len(cells)), *range(i)]
        after.sort(key=lambda j: answers[j] == answers[i])  # else in their order
        swapped = []
        for j in after[:OTHERS]:
            theirs = replace(cells[j].traces, answers=(), sampler_logps=())
            with inference(model):
                swapped.append(objective.in_parts(MicroBatch((cell.group,), (theirs,)), model)[0])
        others.append(swapped)
    return own, others


def _asked(
    scores: Scores, others: Sequence[Scores], right: tuple[float, ...], *, short: bool
) -> Asked:
    """``right``: of the answers after each trace, and after none."""
    b = scores.baseline.tolist()
    hard = [i for i, logp in enumerate(b[:-1]) if logp < math.log(HARD)]

    def worth(logps: Sequence[float]) -> float:
        chosen = [logps[i] for i in hard]
        return math.exp(sum(chosen)) if short else fmean(map(math.exp, chosen or [0.0]))

    return Asked(
        right=right[:-1],
        right_no_think=right[-1],
        own=tuple(map(worth, scores.answer.tolist())),
        other=fmean(max(map(worth, other.answer.tolist())) for other in others),
        none=worth(b),
        known=fmean(b[:-1] or b),
    )


# -- The verdict -----------------------------------------------------------------------------------


def summarise(
    asked: Sequence[Asked], metrics: Mapping[str, float], *, short: bool
) -> dict[str, Any]:
    """Means over questions, with 95 % intervals as ``…_low`` and ``…_high``; ``metrics`` are those
    of a training step on the same traces. ``short``: answers can be compared, v is a
    probability."""
    values = {
        "accuracy_no_think": [q.right_no_think for q in asked],
        "accuracy": [fmean(q.right) for q in asked],
        "pass_at_k": [max(q.right) for q in asked],
        "best_beats_none": [float(max(q.own) > q.none) for q in asked],
        "worth": [fmean(q.own) for q in asked],
        "worth_best": [max(q.own) for q in asked],
        "worth_none": [q.none for q in asked],
        "worth_other": [q.other for q in asked],
        "headroom": [q.headroom for q in asked],
        "known": [q.known for q in asked],
    }
    shares = {"accuracy_no_think", "accuracy", "pass_at_k", "best_beats_none"}
    found: dict[str, Any] = {
        "questions": len(asked),
        "traces": len(asked[0].right),
        "compared": short,
    }
    for name, cells in values.items():
        interval = bootstrap_interval(cells, bounds=BOUNDS["share"] if name in shares else None)
        found[name] = interval.mean
        found[f"{name}_low"], found[f"{name}_high"] = interval.low, interval.high
    kept = [name for name in metrics if name in OF_TRACES or "_share_" in name]
    return found | {name: metrics[name] for name in kept}


@dataclass(frozen=True)
class Verdict:
    """One of ``VERDICTS``, the sentence that says which number decided it, and what to set."""

    verdict: str
    reason: str
    settings: Mapping[str, Any]


def judge(found: Mapping[str, Any], config: NRTConfig, *, new: bool) -> Verdict:
    """What the numbers of ``summarise`` come to. ``new``: nothing has taught the model its think
    tokens.

    In this order: it can do it already; the reward is one kind of token's, no trace helps where
    traces do not close themselves, or right answers are worded in another way; the interval of the
    head-room reaches from 0 to ``LEAST`` and beyond, or ends below; flat groups.
    """
    worth, first, nothing, learn, undecided = VERDICTS
    short, rows = found["compared"], found["questions"]
    what = "the answer" if short else "a hard token of the answer"
    room = (
        f"the best of {found['traces']} makes {what} {told(found, 'headroom')} more probable than "
        "the average one, none, or the best of another question's"
    )
    shown = found["headroom_low"] > 0 and found["headroom"] >= LEAST
    settings: Mapping[str, Any] = {}
    if can := _can(found, short=short):
        verdict, reason = learn, f"it can do it already, {can}"
    elif wrong := _format(found, config, new=new, short=short, shown=shown):
        verdict, (reason, settings) = first, wrong
    elif not shown and found["headroom_high"] >= LEAST:
        verdict, reason = undecided, f"{rows} rows leave it open, --sample {4 * rows}; {room}"
    elif not shown:
        verdict, reason = nothing, f"no trace of this model helps on these questions; {room}"
    elif found["flat_groups"] >= FLAT:
        verdict, alike = nothing, f"{found['flat_groups']:.0%}"
        reason = f"this preset pays all traces of a question alike in {alike} of the groups"
    else:
        verdict, reason = worth, f"of its traces {room}"
    return Verdict(verdict, f"{verdict}: {reason}", settings)


def told(found: Mapping[str, Any], name: str) -> str:
    """A probability with its interval: ``0.08 (0.03 to 0.14)``."""
    return f"{found[name]:.2f} ({found[f'{name}_low']:.2f} to {found[f'{name}_high']:.2f})"


def _can(found: Mapping[str, Any], *, short: bool) -> str | None:
    """Why there is nothing to learn, if so."""
    if not short:
        known = max(found["known"], found["known"] + found["uplift"])
        return f"a reference token lacks {-known:.3f} nats" if known > -LEFT else None
    name = max(("accuracy_no_think", "accuracy"), key=lambda name: found[name])
    if found[name] < CAN:
        return None
    how = "without a trace" if name == "accuracy_no_think" else "after a trace"
    low, high = found[f"{name}_low"], found[f"{name}_high"]
    return f"{found[name]:.0%} ({low:.0%} to {high:.0%}) are right {how}"


def _format(
    found: Mapping[str, Any], config: NRTConfig, *, new: bool, short: bool, shown: bool
) -> tuple[str, Mapping[str, Any]] | None:
    """Why the format comes first, and what to set, if so."""
    strict = config.resolved_objective().bad_format in ("zero", "mask")
    warmup = warmup_settings(config)
    for kind, why in one_kind(found).items():
        return why, {"objective.reward_span": "answer"} if kind == "end" else warmup
    if new and not shown:
        why = "the think tokens are new, and no trace is shown to help yet"
        return f"{why}: {as_flags(warmup)}", warmup
    if found["closed"] < CLOSED and (strict or not shown):
        cut = 1 - found["closed"] - found["ended"] > found["ended"]  # others end the turn
        cure = {"max_trace_length": 4 * config.max_trace_length} if cut else warmup
        why = f"{found['closed']:.0%} of the traces close themselves"
        return f"{why}{', the limit cuts the others' if cut else ''}: {as_flags(cure)}", cure
    if short and found["accuracy"] >= 2 * found["worth"] + 0.1:
        why = (
            f"{found['accuracy']:.0%} of the answers after a trace are right, and the reference's "
            f"own words have a probability of {found['worth']:.2f}"
        )
        return f"{why}: {as_flags(warmup)}", warmup
    return None
