"""What a run leaves behind of each step: means for metrics.jsonl, seconds for timings.jsonl, traces
and skipped rows for the run folder, warnings; updates that are not finite are dropped."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.model.ranks import largest_of_ranks, local
from native_reasoning.objective.types import Scores, Signal
from native_reasoning.records.collapse import CollapseGuard
from native_reasoning.records.folder import RunFolder, TraceRow
from native_reasoning.records.meter import Clock, Meter, means, trace_rows
from native_reasoning.records.metrics import one_kind
from native_reasoning.records.progress import TraceTables
from native_reasoning.rollout.window import MicroBatch
from native_reasoning.scoring.diagnostics import Finding, summary

#: Steps after each of which it may be said that the reward so far is one kind of token's.
FIRST = 5
#: Metrics of a step that samples and rewards nothing would only be zeros.
_OF_REWARDS = ("reward", "reward_baseline", "helped")


class Recorder(TrainerCallback):
    """Collects on every rank; what is written goes through ``records``, on rank 0 alone.

    ``clock`` is asked where the time went. ``finite`` drops updates that are not finite, and
    ``collapse`` says whether the run is healthy. ``rewarded``: traces are told apart.
    """

    def __init__(
        self, args: NRTConfig, template: Template, settings: ObjectiveSettings, *, rewarded: bool
    ) -> None:
        self.args, self.template = args, template
        self.rewarded, self.samples = rewarded, settings.traces == "sampled"
        #: Traces in a wrong format are worth nothing.
        self.strict = rewarded and settings.bad_format in ("zero", "mask")
        self.clock = Clock()
        self.finite = FiniteGuard(self.quarantine, scaled=args.fp16)
        self.collapse = CollapseGuard(args.on_collapse)
        every = args.diagnostics_steps if args.report_traces else 0
        tables = TraceTables(every, args.report_to or (), self.newest)
        self.callbacks = [self.finite, self.collapse, self, tables]
        self.open(RunFolder(str(args.output_dir), writes=False))

    def open(self, records: RunFolder) -> None:
        """A run begins, or goes on, that is written to ``records``."""
        self.records, self.meter = records, Meter()
        self._pending: list[TraceRow] = []
        #: What exchanging traces between the prompts of a step says (diagnostics.py).
        self.findings: list[Finding] = []
        self._newest: dict[int, list[TraceRow]] = {}  # by question
        self._told: set[str] = set()
        self._first: list[dict[str, float]] = []  # metrics of the first steps that judged traces
        self._step, self._minibatch, self._began, self._rollout = 0, (), 0.0, 0.0
        self._earlier: dict[str, float] = {}

    # -- a step ------------------------------------------------------------------------------------

    def begins(self, step: int) -> None:
        """Step ``step``, counted from 1, begins."""
        self._step, self._began, self._earlier = step, time.perf_counter(), self.clock.take()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clock.end("optimiser")

    def collected(self, minibatch: Sequence[MicroBatch]) -> None:
        """These are its micro-batches."""
        self._minibatch, self._rollout = minibatch, time.perf_counter() - self._began

    def note(
        self, group: PromptGroup, traces: Traces, scores: Scores, signal: Signal, *, keeps: bool
    ) -> None:
        """One group of the step. ``keeps``: its traces are written."""
        about = (group, traces, scores, signal, self.template)
        self.meter.add_group(*about)
        if not keeps:
            return
        rows = trace_rows(self._step, *about)
        if any(old[0].step != self._step for old in self._newest.values()):
            self._newest = {}
        self._newest[group.example.row_id] = rows
        self._pending += rows

    def newest(self) -> list[list[TraceRow]]:
        """This rank's traces of the latest step that sampled any, by question."""
        return list(self._newest.values())

    def write_traces(self, step: int) -> None:
        """Hands the traces of steps up to ``step`` of all ranks to the records."""
        done, self._pending = [row for row in self._pending if row.step <= step], []
        self.records.write_traces(gather_object(done), step)

    def quarantine(self, step: int) -> None:
        """The rows of the step, whose update is skipped, of all ranks, to the records."""
        rows = [
            {
                "row_id": group.example.row_id,
                "line": group.example.line,
                "prompt": group.example.question,
                "answer": group.example.answer,
                "traces": [self.template.text(ids) for ids in traces.ids],
            }
            for micro in self._minibatch
            for group, traces in micro.pairs
            if group.weight  # else it only fills up a rank
        ]
        for row in gather_object(rows):
            self.records.append_quarantine(step, row)

    def close_step(self, logs: dict[str, float], step: int) -> None:
        """Adds to ``logs`` the means since the last time, over all ranks; writes the times."""
        with self.clock.stage("waiting"):
            logs |= self.means()
        logs["skipped_updates"] = skipped = self.finite.take()
        logs["loss"] = math.nan if skipped else logs["loss"]
        if self.samples:
            logs |= self.collapse.look(logs, step, tell=self.args.process_index == 0)
        self.records.append_timings(step, self._seconds())

    def write(self, logs: dict[str, float], step: int, step_of_weights: int) -> None:
        """Metrics at the step of the weights; the times of a whole run at its last step."""
        if "train_runtime" in logs:
            self.records.append_timings(step, logs)
        else:
            self.records.append_metrics(step_of_weights, logs)

    def _seconds(self) -> dict[str, float]:
        """Times of the step that ends now, with the records that were written before it began."""
        stages, whole = self.clock.take(), time.perf_counter() - self._began
        other = whole - sum(stages.values())
        stages["records"] += self._earlier["records"]
        named = {**stages, "other": other, "step": whole + self._earlier["records"]}
        named["rollout"] = self._rollout
        return {f"{name}_seconds": value for name, value in named.items()}

    def means(self) -> dict[str, float]:
        """The means since they were asked for last, over all ranks."""
        values = means(gather_object([self.meter.sums()]))
        values |= summary(gather_object(self.findings))
        self.findings = []
        if not self.rewarded:
            values = {name: value for name, value in values.items() if name not in _OF_REWARDS}
        self._warn(values)
        return values

    def _warn(self, values: dict[str, Any]) -> None:
        """Of what looks like rewards that are all equal, or one kind of token's from the start."""
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


class FiniteGuard(TrainerCallback):
    """Drops an update whose loss or gradient is not finite, on all ranks together; the scheduler
    and the step counter go on.

    ``report`` is told the step of each, on every rank. After ``LIMIT`` of them in a row the run
    ends with a RunError. ``scaled``: a gradient scaler (float16) finds its scale by overflowing,
    and skips by itself; it gets ``SCALING`` more.
    """

    LIMIT = 10
    SCALING = 20  # 2^16, the first scale, halved to 1 and then some

    def __init__(self, report: Callable[[int], None], *, scaled: bool = False) -> None:
        self.limit, self.report = self.LIMIT + (self.SCALING if scaled else 0), report
        self.scaled = scaled
        self.in_a_row = 0
        self._skipped = 0
        self._finite: list[Tensor] = []

    def take(self) -> int:
        """How many updates were dropped since this was asked last."""
        taken, self._skipped = self._skipped, 0
        return taken

    def saw_loss(self, loss: Tensor) -> None:
        """The loss of a part of the step."""
        self._finite.append(loss.detach().isfinite().all())

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        grads = [local(p.grad) for p in model.parameters() if p.grad is not None]
        gradients = [grad.isfinite().all() for grad in grads]
        finite, self._finite = [*self._finite, *gradients], []
        broken = bool(finite) and not bool(torch.stack(finite).all())
        if not largest_of_ranks(int(broken), args.device):
            self.in_a_row = 0
            return
        self._skipped, self.in_a_row = self._skipped + 1, self.in_a_row + 1
        if not self.scaled:
            model.zero_grad(set_to_none=True)
        step = state.global_step + 1
        told = f"step {step}: loss or gradient not finite, update skipped"
        print(told, file=sys.stderr, flush=True)
        self.report(step)
        if self.in_a_row >= self.limit:
            raise RunError(
                f"{self.in_a_row} updates in a row were not finite, the last at step {step}",
                why="every update since would have been skipped too; the weights are those from "
                "before",
                fix="look at quarantine.jsonl for rows that do this; a smaller --learning-rate, "
                "--bf16 or full precision in place of --fp16",
            )

    def state(self) -> dict[str, int]:
        """What a checkpoint holds."""
        return {"in_a_row": self.in_a_row}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on from ``state``."""
        self.in_a_row = state["in_a_row"]
