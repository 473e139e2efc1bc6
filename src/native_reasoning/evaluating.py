"""Evaluation while a model trains, and after it. ``Evaluating`` overrides ``evaluate`` of
transformers' Trainer, whose loop cannot generate."""

import time
from collections.abc import Sequence
from typing import Any

from native_reasoning.config import NRTConfig
from native_reasoning.evaluate.held_out import HeldOut, Outcome, held_out_rows, summarise
from native_reasoning.groups import read_groups, require
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.steps import StepInParts
from native_reasoning.template import Template
from native_reasoning.types import PromptGroup


class Evaluating(StepInParts):
    """A Trainer that answers held-out questions. Abstract: the subclass sets what is declared."""

    template: Template
    engine: HFEngine
    layouts: tuple[str, ...]
    context: int | None
    eval_groups: Sequence[PromptGroup]
    keep_columns: bool

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Accuracy with and without thinking, answer log-likelihood and uplift, with intervals.

        At most ``eval_samples`` questions; keys as in ``evaluate.held_out.summarise``, prefixed:
        shares from 0 to 1, nats per token, tokens. ``eval_dataset`` replaces the run's own.
        Of the run's own the traces are recorded too; metrics of another are logged with
        ``eval_other_data``, so that nobody takes them for the run's. Raises DataError where there
        is none, or it cannot be read.
        """
        own = eval_dataset is None
        groups = self.eval_groups if own else self._read(eval_dataset, self.args)[0]
        require(groups, "eval_dataset")
        began = time.perf_counter()
        outcomes = self.outcomes(groups[: self.args.eval_samples])
        metrics = {f"{metric_key_prefix}_{name}": x for name, x in summarise(outcomes).items()}
        seconds = {f"{metric_key_prefix}_seconds": time.perf_counter() - began}
        self.runlog.records.append_timings(self.state.global_step, seconds)
        if self.args.record_traces and own and metric_key_prefix == "eval":
            with self.clock.stage("records"):
                self.runlog.records.write_held_out(held_out_rows(self.step_of_weights, outcomes))
        self.log(metrics | ({} if own else {f"{metric_key_prefix}_other_data": 1.0}))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def outcomes(self, groups: Sequence[PromptGroup]) -> list[Outcome]:
        """What the policy answers to each question now; the ranks share the work."""
        with self.whole_model() as model:
            held_out = HeldOut(
                self.accelerator.unwrap_model(model),
                self.engine,
                self.template,
                self.args,
                layouts=self.layouts,
                context=self.context,
            )
            return held_out.run(groups)

    def _read(self, source: Any, args: NRTConfig) -> Any:
        return read_groups(source, self.template, args, self.context, self.keep_columns)
