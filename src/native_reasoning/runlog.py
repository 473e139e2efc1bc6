"""What a run notes of each step: means for metrics.jsonl, traces for the run folder, warnings."""

import sys
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from accelerate.utils import gather_object

from native_reasoning.diagnostics import Finding, summary
from native_reasoning.losses import LossTerms
from native_reasoning.meter import (
    Meter,
    Mismatch,
    means,
    mismatch,
    mismatch_means,
    trace_rows,
)
from native_reasoning.names import one_kind
from native_reasoning.records import RunFolder
from native_reasoning.tables import TraceRow
from native_reasoning.template import Template
from native_reasoning.types import PromptGroup, Scores, Signal, Traces

#: Steps after each of which it may be said that the reward so far is one kind of token's.
FIRST = 5
#: Metrics of a step that samples and rewards nothing would only be zeros.
_OF_REWARDS = ("reward", "reward_baseline", "helped")


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
                "are too improbable for reward prob without scaling. Shorter answers, --scale std, "
                "or reward geometric_mean",
            )
        if self.strict and values.get("sampled_complete", values.get("closed")) == 0:
            self._tell(
                "format",
                "no trace of this step is in the right format, and this preset gives such traces "
                "nothing, so nothing is learned. A longer --max-trace-length, or "
                "--format-loss-coef 0.3, which teaches the closing tag",
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
