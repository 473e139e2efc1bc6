"""Held-out questions: accuracy with and without thinking, and what a trace does to the answer.

Four answers per question: after sampled traces and after none, each decoded by sampling (at the
training temperature: the policy itself) and greedily. The reference answer is scored after the
sampled traces and after none; *uplift* is the difference, in nats per token. Of an answer that ran
into the limit its first lines are graded (``Example.graded``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from statistics import fmean
from typing import Any

from accelerate.utils import gather_object
from transformers import PreTrainedModel

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import PromptGroup
from native_reasoning.evaluation.grading import (
    accuracy,
    bootstrap_interval,
    exact_match,
    majority,
    numeric_match,
    token_f1,
)
from native_reasoning.model.forward import inference
from native_reasoning.objective.types import uplift
from native_reasoning.records.folder import HeldOutRow
from native_reasoning.records.metrics import BOUNDS, MEASURED, METRICS
from native_reasoning.rollout.engine import NoiseKey, Sample, Sampling, Stop, traces_of
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.noise import EVALUATION
from native_reasoning.scoring.scorer import Scorer

#: Questions of an evaluation whose traces are kept in the run folder: the first.
RECORDED = 100
#: Questions that are asked at once at most, so that one hears how far it is.
TOLD = 100
#: What ``summarise`` may name.
NAMES = {"questions"} | {
    metric.name.removeprefix("eval_") + end for metric in MEASURED for end in ("", "_low", "_high")
}
#: Fewest tokens at which an evaluation cuts answers by itself.
SHORTEST = 16


def answer_length(groups: Sequence[PromptGroup], args: NRTConfig) -> int:
    """Tokens at which answers to these questions are cut: ``eval_max_answer_length``, else twice
    the longest reference with its end of turn, at least ``SHORTEST``, at most
    ``max_answer_length``."""
    if args.eval_max_answer_length is not None:
        return args.eval_max_answer_length
    longest = max((group.answer_size for group in groups), default=0)
    return min(args.max_answer_length, max(SHORTEST, 2 * longest))


@dataclass(frozen=True)
class Outcome:
    """One question: what was answered, in text, and how the reference scored.

    ``question`` and ``reference`` are the row's (``others``: more references, which count for what
    is right and are not scored), ``row_id`` its number among the rows that were
    kept. ``answers`` and ``traces`` are the sampled ones (k of each), ``trace_lengths`` their
    tokens, ``trace_logps`` log π of all of these together (nats) and ``closed`` whether the model
    closed them itself; answers are what is graded of them; ``answer_greedy`` follows the most
    likely trace, ``answer_no_think`` and ``answer_no_think_greedy`` no trace. ``answer_logps``
    (k, T) is l, the log-probability of each reference token after each of these traces,
    ``baseline_logps`` (T) is b, that after none, in nats; ``answer_tokens`` (T) are the same tokens
    as text. ``cut`` (k) and ``cut_no_think`` say which sampled answers ran into the limit.
    """

    row_id: int
    question: str
    reference: str
    traces: tuple[str, ...]
    trace_lengths: tuple[int, ...]
    trace_logps: tuple[float, ...]
    closed: tuple[bool, ...]
    answers: tuple[str, ...]
    answer_greedy: str
    answer_no_think: str
    answer_no_think_greedy: str
    answer_logps: tuple[tuple[float, ...], ...]
    baseline_logps: tuple[float, ...]
    answer_tokens: tuple[str, ...]
    cut: tuple[bool, ...]
    cut_no_think: bool
    others: tuple[str, ...] = ()

    def best(self, measure: Callable[[str, str], Any], answer: str) -> float:
        """The measure of an answer beside the reference that suits it best."""
        return max(measure(answer, reference) for reference in (self.reference, *self.others))

    @property
    def logps(self) -> tuple[float, ...]:
        """The mean log-probability of a reference token after each trace (nats per token)."""
        return tuple(map(fmean, self.answer_logps))

    @property
    def logp_no_think(self) -> float:
        """The same after none."""
        return fmean(self.baseline_logps)


#: For each group, the prompts that are sampled from, each with the number of its random numbers, or
#: None for the most likely tokens.
_Asked = Sequence[Sequence[tuple[Sequence[int], int | None]]]


class HeldOut:
    """Evaluates groups on a model that ``install_scoring`` has prepared.

    ``model`` is the unwrapped module; ``engine`` samples from the same weights, ``scorer`` scores.
    ``args`` has the length of traces, temperature, seed and how many traces to sample. An answer is
    cut at ``length`` tokens (``answer_length``).
    """

    def __init__(
        self, model: PreTrainedModel, engine: HFEngine, scorer: Scorer, args: NRTConfig, length: int
    ) -> None:
        self.model, self.engine, self.scorer = model, engine, scorer
        self.template, self.args, self.length = scorer.template, args, length

    def run(self, groups: Sequence[PromptGroup], tell: Callable[[int], None]) -> list[Outcome]:
        """One outcome per group, by row; the ranks share the work and all have the whole.

        ``tell`` hears how many questions are answered, of all ranks as if they were equally fast.
        """
        ranks = self.args.world_size
        mine = groups[self.args.process_index :: ranks]
        outcomes: list[Outcome] = []
        for places in self._chunks(mine):
            tell(min(places[0] * ranks, len(groups)))
            outcomes += self._chunk([mine[i] for i in places])
        return sorted(gather_object(outcomes), key=lambda outcome: outcome.row_id)

    def _chunks(self, groups: Sequence[PromptGroup]) -> list[list[int]]:
        """The groups, by number, that are asked at once: as many as the engine takes, and no more
        than ``TOLD`` from one word of how far it is to the next."""
        copies = self.args.eval_num_generations + 1
        prompts = [group.prompt_ids for group in groups]
        found = self.engine.batches(prompts, copies, self.args.max_trace_length)
        return [few[i : i + TOLD] for few in found for i in range(0, len(few), TOLD)]

    def _chunk(self, groups: Sequence[PromptGroup]) -> list[Outcome]:
        s = self.args
        k, drawn = s.eval_num_generations, [*range(s.eval_num_generations), None]
        asked = [[(group.prompt_ids, number) for number in drawn] for group in groups]
        sampled = self._sample(groups, asked, s.max_trace_length, 0, self.engine.stop)
        traces = [traces_of(samples[:k]) for samples in sampled]
        asked = []
        for group, samples in zip(groups, sampled, strict=True):
            each, none = traces_of(samples), (self.template.empty_trace(), True)
            after = [*zip(each.ids, each.closed, strict=True), none, none]
            prompts = [self.template.answer_prompt(group.prompt_ids, *trace) for trace in after]
            asked.append([*zip(prompts, [*drawn, k, None], strict=True)])
        answers = self._sample(groups, asked, self.length, 1, self.template.stop_answer)
        with inference(self.model), self.engine.autocast():
            scored = self.scorer.of_pairs(self.model, [*zip(groups, traces, strict=True)])
        return [
            Outcome(
                row_id=group.example.row_id,
                question=group.example.question,
                reference=group.example.answer,
                others=group.example.others,
                traces=tuple(self.template.text(ids) for ids in traces[i].ids),
                trace_lengths=traces[i].lengths,
                trace_logps=tuple(scores.trace.sum(-1).tolist()),
                closed=traces[i].closed,
                answers=tuple(self._text(group, sample) for sample in answers[i][:k]),
                answer_greedy=self._text(group, answers[i][k]),
                answer_no_think=self._text(group, answers[i][k + 1]),
                answer_no_think_greedy=self._text(group, answers[i][k + 2]),
                answer_logps=tuple(map(tuple, scores.answer.tolist())),
                baseline_logps=tuple(scores.baseline.tolist()),
                answer_tokens=self.template.token_texts(group.answer_ids),
                cut=tuple(sample.stopped == "limit" for sample in answers[i][:k]),
                cut_no_think=answers[i][k + 1].stopped == "limit",
            )
            for i, (group, scores) in enumerate(zip(groups, scored, strict=True))
        ]

    def _sample(
        self, groups: Sequence[PromptGroup], asked: _Asked, length: int, step: int, stop: Stop
    ) -> list[list[Sample]]:
        """What follows each of the prompts of each group. ``step`` keeps its random numbers
        apart."""
        prompts, numbers = zip(*chain(*asked), strict=True)
        rows = [g.example.row_id for g, each in zip(groups, asked, strict=True) for _ in each]
        sampling = Sampling(1, length, self.args.temperature, self.args.top_p)
        key = NoiseKey(self.args.seed, step, EVALUATION)
        found = iter(self.engine.sample(prompts, rows, sampling, key, stop, numbers))
        return [[next(found)[0] for _ in each] for each in asked]

    def _text(self, group: PromptGroup, sample: Sample) -> str:
        return group.example.graded(self.template.text(sample.ids), sample.stopped == "ended")


def held_out_rows(step: int, outcomes: Sequence[Outcome]) -> list[HeldOutRow]:
    """The first ``RECORDED`` questions as rows of the run folder, one for each sampled trace."""
    return [
        HeldOutRow(
            step=step,
            row_id=o.row_id,
            k=k,
            prompt=o.question,
            trace=trace,
            answer=o.reference,
            sampled_answer=o.answers[k],
            answer_no_think=o.answer_no_think,
            closed=o.closed[k],
            length=o.trace_lengths[k],
            correct=o.best(accuracy, o.answers[k]),
            correct_no_think=o.best(accuracy, o.answer_no_think),
            answer_logps=o.answer_logps[k],
            baseline_logps=o.baseline_logps,
            answer_tokens=o.answer_tokens,
        )
        for o in outcomes[:RECORDED]
        for k, trace in enumerate(o.traces)
    ]


def question_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Every question as a line of the run folder: its ``row_id``, a hash of question and reference
    (``asked``), by which runs know that they were asked the same, and its ``scores`` to six
    decimals."""
    return [
        {
            "row_id": o.row_id,
            "asked": sha256(repr((o.question, o.reference)).encode()).hexdigest()[:16],
            **{name: round(value, 6) for name, value in scores(o).items()},
        }
        for o in outcomes
    ]


def scores(o: Outcome) -> dict[str, float]:
    """The numbers of one question, those of sampled traces averaged over them.

    ``accuracy`` is the mean over the K sampled answers, which is pass@1; from two traces on,
    ``accuracy_maj`` is that of the most common answer and ``pass_at_k`` says whether any is right
    (pass@K, 2107.03374). ``accuracy_gain`` is ``accuracy`` less ``accuracy_no_think``.
    ``numeric_match`` is there where the reference holds a number.
    """
    k = len(o.answers)
    graded = [o.best(accuracy, answer) for answer in o.answers]
    right = sum(graded) / k
    right_no_think = o.best(accuracy, o.answer_no_think)
    found = {
        "accuracy": right,
        "accuracy_greedy": o.best(accuracy, o.answer_greedy),
        "accuracy_no_think": right_no_think,
        "accuracy_no_think_greedy": o.best(accuracy, o.answer_no_think_greedy),
        "accuracy_gain": right - right_no_think,
        "exact_match": sum(o.best(exact_match, a) for a in o.answers) / k,
        "token_f1": sum(o.best(token_f1, a) for a in o.answers) / k,
        "answer_logp": sum(o.logps) / k,
        "answer_logp_no_think": o.logp_no_think,
        "uplift": uplift(sum(o.logps) / k, o.logp_no_think),
        "trace_length": sum(o.trace_lengths) / k,
        "trace_entropy": -sum(o.trace_logps) / sum(o.trace_lengths),
        "closed": sum(o.closed) / k,
        "cut": sum(o.cut) / k,
        "cut_no_think": float(o.cut_no_think),
    }
    if k > 1:
        found["accuracy_maj"] = o.best(accuracy, majority(o.answers))
        found["pass_at_k"] = max(graded)
    if all(numeric_match("", reference) is not None for reference in (o.reference, *o.others)):
        found["numeric_match"] = sum(o.best(numeric_match, a) for a in o.answers) / k
    return found


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means of ``scores``, over the questions that have each, with 95 % intervals as ``…_low`` and
    ``…_high`` (bootstrap over questions); the interval of ``accuracy_gain`` is a paired one."""
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, value in scores(outcome).items():
            values.setdefault(name, []).append(value)
    found: dict[str, Any] = {"questions": len(outcomes)}
    for name, cells in values.items():
        interval = bootstrap_interval(cells, bounds=BOUNDS.get(METRICS[f"eval_{name}"].unit))
        found[name] = interval.mean
        found[f"{name}_low"], found[f"{name}_high"] = interval.low, interval.high
    return found
