"""What a run notes of each step: means for metrics.jsonl that are exact across micro-batches,
traces for the run folder, and warnings.

A sampler with kernels of its own is compared with the trainer on the tokens that it sampled. For a
token drawn from the sampler's π_s, with d = log π − log π_s under the same weights,

    mismatch_kl    mean of e^d − 1 − d, an estimate of KL(π_s ‖ π) that is never negative (k3)
    mismatch_max   the largest |d|

Both are 0 where the trainer's own model samples, and nothing is logged then. Nothing else reads
what the sampler says: rewards and gradients come from the trainer's weights.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.objective.losses import LossTerms, kl_k3
from native_reasoning.objective.types import Scores, Signal
from native_reasoning.records.folder import RunFolder
from native_reasoning.records.metrics import KINDS, one_kind
from native_reasoning.records.tables import TraceRow
from native_reasoning.scoring.diagnostics import Finding, summary

#: Steps after each of which it may be said that the reward so far is one kind of token's.
FIRST = 5
#: Metrics of a step that samples and rewards nothing would only be zeros.
_OF_REWARDS = ("reward", "reward_baseline", "helped")
#: Tokens below which a trace counts as short.
SHORT = 16


class Meter:
    """Adds up sums and counts of a step; ``means`` gives and forgets them."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, name: str, total: Tensor | float, count: float) -> None:
        """``total`` summed over ``count`` things."""
        cell = self._sums[name]
        cell[0] += float(total)
        cell[1] += count

    def add_group(
        self,
        group: PromptGroup,
        traces: Traces,
        scores: Scores,
        signal: Signal,
        template: Template,
    ) -> None:
        """The numbers of one group: rewards per trace, nats per answer token, lengths, shares."""
        k, t = scores.answer.shape
        empty = sum(template.is_empty(ids) for ids in traces.ids)
        helped = signal.rewards > signal.baseline_reward if signal.helped is None else signal.helped
        gain = scores.answer.detach() - scores.baseline.detach()
        self.add("reward", signal.rewards.sum(), k)
        self.add("reward_baseline", signal.baseline_reward, 1)
        self.add("helped", helped.sum(), k)
        self.add("answer_logp", scores.answer.detach().sum() / t, k)
        self.add("uplift", gain.sum() / t, k)
        self.add("trace_length", sum(traces.lengths), k)
        self.add("closed", sum(traces.closed), k)
        self.add("short", sum(length < SHORT for length in traces.lengths), k)
        self.add("trace_entropy", -scores.trace.detach().sum(), float(scores.trace_mask.sum()))
        self.add("empty", empty, k)
        self.add("ended", sum(end is not None for _, end in traces.stops()), k)
        self.add("distinct", len(set(traces.stops())), k)
        self.add("flat_groups", float(signal.flat), 1)
        self.add("clamped_baseline", signal.clamped, 1)
        self.add("underflow", signal.underflow, 1)
        self.add("kept_groups", float(signal.kept), 1)
        self.add("answer_weight", signal.answer_weights.sum(), k)
        if signal.token_rewards is not None and not signal.flat:
            self._add_kinds(signal.token_rewards.double(), group, template)
        if scores.answer_length is not None:
            assert scores.verdict is not None
            self.add("sampled_correct", scores.verdict.correct.sum(), k)
            self.add("sampled_complete", scores.verdict.complete.sum(), k)
            self.add("sampled_answer_length", scores.answer_length.sum(), k)
        if scores.verdict is not None and scores.verdict.added is not None:
            self.add("added_reward", scores.verdict.added.sum(), k)

    def _add_kinds(self, rewards: Tensor, group: PromptGroup, template: Template) -> None:
        """Of token rewards (K, T) the share of each of ``KINDS``: in their sum over the step, and
        in each group's variance over its traces, cov(part, whole) / var(whole), whose shares add up
        to 1 over all kinds."""
        texts = template.token_texts(group.answer_ids)
        space = torch.tensor([not text.strip() for text in texts], device=rewards.device)
        end = torch.zeros_like(space)
        end[-1], space[-1] = True, False
        whole = rewards.sum(-1)
        apart = whole - whole.mean()
        for name, where in zip(KINDS, (end, space), strict=True):
            part = (rewards * where).sum(-1)
            if whole.any():
                self.add(f"reward_share_{name}", part.sum(), float(whole.sum()))
            if apart.any():
                share = (part * apart).sum() / apart.square().sum()
                self.add(f"spread_share_{name}", share, 1)

    def add_loss(self, terms: LossTerms, weight: float) -> None:
        """The terms, already divided by N: they are added up, not averaged."""
        for name in ("trace", "answer", "format", "kl"):
            term = getattr(terms, name).detach()
            self.add(f"loss_{name}", term * weight, 0)

    def copy(self) -> "Meter":
        """One that goes on from here by itself."""
        made = Meter()
        made._sums.update({name: list(cell) for name, cell in self._sums.items()})
        return made

    def sums(self) -> dict[str, list[float]]:
        """Name -> [sum, count] so far, and a fresh start."""
        taken, self._sums = dict(self._sums), defaultdict(lambda: [0.0, 0.0])
        return taken


def means(parts: list[dict[str, list[float]]]) -> dict[str, float]:
    """Means over the ranks' sums; a name with count 0 (a loss term) is a plain sum."""
    out = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        total = sum(part[name][0] for part in parts if name in part)
        count = sum(part[name][1] for part in parts if name in part)
        out[name] = total / count if count else total
    return out


@dataclass(frozen=True)
class Mismatch:
    """Of one group: its sampled tokens, their sum of e^d − 1 − d, and the largest |d|."""

    tokens: int
    kl: float
    largest: float


def mismatch(traces: Traces, scores: Scores) -> Mismatch | None:
    """None where the sampler said nothing of its own. ``scores`` are under the weights that sampled
    and begin with the trace's tokens."""
    said = traces.sampler_logps
    if not any(said):
        return None
    assert tuple(map(len, said)) == traces.lengths
    own = torch.cat([scores.trace[k, : len(row)] for k, row in enumerate(said)]).detach().double()
    theirs = torch.tensor([logp for row in said for logp in row], dtype=own.dtype).to(own.device)
    gap = (own - theirs).abs().max()
    return Mismatch(len(own), float(kl_k3(theirs, own).sum()), float(gap))


def mismatch_means(found: Sequence[Mismatch]) -> dict[str, float]:
    """Metrics of the groups of all ranks; none where there is none."""
    if not found:
        return {}
    tokens = sum(one.tokens for one in found)
    return {
        "mismatch_kl": sum(one.kl for one in found) / tokens,
        "mismatch_max": max(one.largest for one in found),
    }


def trace_rows(
    step: int,
    group: PromptGroup,
    traces: Traces,
    scores: Scores,
    signal: Signal,
    template: Template,
) -> list[TraceRow]:
    """The group's traces as rows of the run folder. ``step`` counts from 1, as in metrics.jsonl.

    With several updates per rollout all of it is from when the trace was sampled.
    """
    tokens = template.token_texts(group.answer_ids)
    baseline = scores.baseline.tolist()
    return [
        TraceRow(
            step=step,
            row_id=group.example.row_id,
            k=k,
            prompt=group.example.question,
            trace=template.text(ids),
            answer=group.example.answer,
            sampled_answer=template.text(traces.answered()[k]),
            closed=traces.closed[k],
            ended=end is not None,
            length=traces.lengths[k],
            reward=signal.rewards[k].item(),
            baseline_reward=signal.baseline_reward.item(),
            advantage=signal.advantages[k].item(),
            answer_logps=scores.answer[k].tolist(),
            baseline_logps=baseline,
            answer_tokens=tokens,
        )
        for k, (ids, end) in enumerate(traces.stops())
    ]


class RunLog:
    """Collects on every rank; what is written goes through ``records``, on rank 0 alone.

    ``rewarded``: traces are told apart. ``strict``: those in a wrong format are worth nothing.
    """

    def __init__(
        self, records: RunFolder, template: Template, *, rewarded: bool, strict: bool
    ) -> None:
        self.records, self.template = records, template
        self.rewarded, self.strict = rewarded, strict
        self.meter = Meter()
        self._pending: list[TraceRow] = []
        self._findings: list[Finding] = []
        self._mismatches: list[Mismatch] = []
        #: A trace of the latest step, the one with the largest advantage of its group.
        self.latest: TraceRow | None = None
        self._newest: dict[int, list[TraceRow]] = {}  # by question
        self._told: set[str] = set()
        self._marked = (Meter(), 0, 0)
        self._first: list[dict[str, float]] = []  # metrics of the first steps that judged traces

    def note(
        self,
        group: PromptGroup,
        traces: Traces,
        scores: Scores,
        signal: Signal,
    ) -> None:
        """One group of the step."""
        self.meter.add_group(group, traces, scores, signal, self.template)
        if (found := mismatch(traces, scores)) is not None:
            self._mismatches.append(found)

    def note_findings(self, findings: Iterable[Finding]) -> None:
        """What exchanging traces between the prompts of a step says (diagnostics.py)."""
        self._findings += findings

    def note_loss(self, terms: LossTerms, weight: float) -> None:
        """Loss terms of a group or of a part of it; ``weight`` divides them by N."""
        self.meter.add_loss(terms, weight)

    def mark(self) -> None:
        """A step begins: ``rewind`` goes back to here."""
        self._marked = (self.meter.copy(), len(self._pending), len(self._mismatches))

    def rewind(self) -> None:
        """Forgets what was noted since ``mark``."""
        meter, pending, mismatches = self._marked
        self.meter = meter.copy()
        del self._pending[pending:]
        del self._mismatches[mismatches:]

    def note_traces(
        self, step: int, group: PromptGroup, traces: Traces, scores: Scores, signal: Signal
    ) -> None:
        """The group's traces, to be written; ``step`` counts from 1."""
        rows = trace_rows(step, group, traces, scores, signal, self.template)
        self.latest = max(rows, key=lambda row: row.advantage)
        if any(old[0].step != step for old in self._newest.values()):
            self._newest = {}
        self._newest[group.example.row_id] = rows
        self._pending += rows

    def newest(self) -> list[list[TraceRow]]:
        """This rank's traces of the latest step that sampled any, by question."""
        return list(self._newest.values())

    def write_traces(self, step: int) -> None:
        """Hands the traces of steps up to ``step`` of all ranks to the records."""
        done = [row for row in self._pending if row.step <= step]
        self._pending = [row for row in self._pending if row.step > step]
        self.records.add_traces(gather_object(done))
        self.records.flush_traces(step)

    def quarantine(self, step: int, pairs: Iterable[tuple[PromptGroup, Traces]]) -> None:
        """The rows of an update that was skipped, of all ranks, to the records."""
        rows = [
            {
                "row_id": group.example.row_id,
                "line": group.example.line,
                "prompt": group.example.question,
                "answer": group.example.answer,
                "traces": [self.template.text(ids) for ids in traces.ids],
            }
            for group, traces in pairs
            if group.weight  # else it only fills up a rank
        ]
        for row in gather_object(rows):
            self.records.append_quarantine(step, row)

    def means(self) -> dict[str, float]:
        """The means since they were asked for last, over all ranks."""
        values = means(gather_object([self.meter.sums()]))
        values |= summary(gather_object(self._findings))
        values |= mismatch_means(gather_object(self._mismatches))
        self._findings, self._mismatches = [], []
        if not self.rewarded:
            values = {name: value for name, value in values.items() if name not in _OF_REWARDS}
        self._warn(values)
        self._warn_of_kinds(values)
        return values

    def _warn(self, values: dict[str, Any]) -> None:
        """Of what looks like rewards that are all equal."""
        if share := values.get("underflow", 0.0):
            self._tell(
                "underflow",
                f"{share:.0%} of this step's rewards are below e^-87 and underflow: whole answers "
                "are too improbable for reward prob without scaling. Shorter answers, "
                "--objective.scale std, or --objective.reward geometric_mean",
            )
        if self.strict and values.get("sampled_complete", values.get("closed")) == 0:
            self._tell(
                "format",
                "no trace of this step is in the right format, and this preset gives such traces "
                "nothing, so nothing is learned. A longer --max-trace-length, or "
                "--objective.format-loss-coef 0.3, which teaches the closing tag",
            )

    def _warn_of_kinds(self, values: dict[str, float]) -> None:
        """Of a reward that is one kind of token's from the start."""
        if len(self._first) == FIRST or "spread_share_end" not in values:
            return
        self._first.append(values)
        names = [name for name in values if "_share_" in name]
        so_far = {name: fmean(step.get(name, 0.0) for step in self._first) for name in names}
        for kind, told in one_kind(so_far).items():
            self._tell(kind, told)

    def _tell(self, what: str, text: str) -> None:
        """A warning, once a run."""
        if what not in self._told and self.records.writes:
            self._told.add(what)
            print(f"warning: {text}", file=sys.stderr, flush=True)
