"""Evaluation while a model trains, and after it. ``Evaluating`` overrides ``evaluate`` of
transformers' Trainer, whose loop cannot generate."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from native_reasoning.config import NRTConfig
from native_reasoning.errors import RunError
from native_reasoning.evaluate.held_out import (
    RECORDED,
    HeldOut,
    Outcome,
    answer_length,
    held_out_rows,
    summarise,
)
from native_reasoning.groups import read_groups, require
from native_reasoning.ranks import from_first_rank
from native_reasoning.records import read_held_out, read_metrics
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
    #: The last evaluation of the run's own questions by this process, and the step of its weights.
    _evaluated: tuple[int, Mapping[str, Any]] | None = None

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Accuracy with and without thinking, answer log-likelihood and uplift, with intervals.

        At most ``eval_samples`` questions; keys as in ``evaluate.held_out.summarise``, prefixed:
        shares from 0 to 1, nats per token, tokens; ``max_answer_length`` is where answers were cut.
        ``eval_dataset`` replaces the run's own.
        Of the run's own the traces are recorded too; metrics of another are logged with
        ``eval_other_data``, so that nobody takes them for the run's. Raises DataError where there
        is none, or it cannot be read.
        """
        own = eval_dataset is None
        groups = self.eval_groups if own else self._read(eval_dataset, self.args)[0]
        require(groups, "eval_dataset")
        groups = groups[: self.args.eval_samples]
        began = time.perf_counter()
        outcomes = self.outcomes(groups)
        found = {**summarise(outcomes), "max_answer_length": answer_length(groups, self.args)}
        metrics: dict[str, Any] = {
            f"{metric_key_prefix}_{name}": value for name, value in found.items()
        }
        seconds = {f"{metric_key_prefix}_seconds": time.perf_counter() - began}
        self.runlog.records.append_timings(self.state.global_step, seconds)
        if own and metric_key_prefix == "eval":
            self._evaluated = (self.step_of_weights, metrics)
            if self.args.record_traces:
                rows = held_out_rows(self.step_of_weights, outcomes)
                with self.clock.stage("records"):
                    self.runlog.records.write_held_out(rows)
        self.log(metrics | ({} if own else {f"{metric_key_prefix}_other_data": 1.0}))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def evaluation_made(self) -> Mapping[str, Any] | None:
        """What ``evaluate`` would find, where the run has found it already: of these weights and of
        the same questions, in this process or in one whose run goes on. On all ranks."""
        if self._evaluated is not None and self._evaluated[0] == self.step_of_weights:
            return self._evaluated[1]
        return from_first_rank(self._evaluation_recorded)

    def _evaluation_recorded(self) -> Mapping[str, Any] | None:
        """The last line of metrics.jsonl at the step of the weights, if the recorded questions say
        that it is about what would be asked now."""
        step, folder = self.step_of_weights, self.runlog.records.path
        groups = self.eval_groups[: self.args.eval_samples]
        asked = {
            "eval_questions": len(groups),
            "eval_max_answer_length": answer_length(groups, self.args),
        }
        expected = [
            {"row_id": e.row_id, "k": k, "prompt": e.question, "answer": e.answer}
            for e in (group.example for group in groups[:RECORDED])
            for k in range(self.args.eval_num_generations)
        ]
        try:
            rows = read_held_out(folder).filter(pc.field("step") == step)
            if rows.select(["row_id", "k", "prompt", "answer"]).to_pylist() != expected:
                return None
            lines = [x for x in read_metrics(folder) if x["step"] == step]
        except RunError:  # of a damaged file
            return None
        whole = [x for x in lines if not {"eval_other_data", "non_finite"} & set(x)]
        made = [x for x in whole if asked.items() <= x.items()]
        return made[-1] if made else None

    def outcomes(self, groups: Sequence[PromptGroup]) -> list[Outcome]:
        """What the policy answers to each question now; the ranks share the work.

        Callbacks hear how far it is as ``on_prediction_step``, with ``questions``, ``answered`` of
        them, and ``max_answer_length``.
        """
        length = answer_length(groups, self.args)

        def tell(answered: int) -> None:
            self.callback_handler.call_event(
                "on_prediction_step",
                self.args,
                self.state,
                self.control,
                questions=len(groups),
                answered=answered,
                max_answer_length=length,
            )

        try:
            with self.whole_model() as model:
                held_out = HeldOut(
                    self.accelerator.unwrap_model(model),
                    self.engine,
                    self.template,
                    self.args,
                    length,
                    layouts=self.layouts,
                    context=self.context,
                )
                return held_out.run(groups, tell)
        finally:
            tell(len(groups))

    def _read(self, source: Any, args: NRTConfig) -> Any:
        return read_groups(source, self.template, args, self.context, self.keep_columns)
