"""Evaluation while a model trains, and after it. ``Evaluating`` overrides ``evaluate`` and
``predict`` of transformers' Trainer, whose loop cannot generate."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput, denumpify_detensorize

from native_reasoning.config import NRTConfig
from native_reasoning.data import DataReport
from native_reasoning.errors import ConfigError, DataError, RunError, warn
from native_reasoning.evaluate.held_out import (
    RECORDED,
    HeldOut,
    Outcome,
    answer_length,
    held_out_rows,
    metric_names,
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
    #: Evaluation sets by name, where several were given.
    eval_sets: Mapping[str, Sequence[PromptGroup]]
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
        shares from 0 to 1, nats per token, tokens, and ``max_answer_length``, where answers were
        cut; then those of ``compute_metrics``, which take the place of ours of the same name.
        ``eval_dataset`` replaces the run's own. Sets in a dict are evaluated one by one, with keys
        ``eval_NAME_accuracy``.
        Of the run's own the traces are recorded too, unless there are several; metrics of another
        are logged with ``eval_other_data``, so that nobody takes them for the run's. Raises
        DataError where there is none, or it cannot be read, ConfigError where ``compute_metrics``
        returns no dict.
        """
        own = eval_dataset is None
        groups, sets = self.eval_groups, self.eval_sets
        if not own:
            groups, _, sets = self._read_held_out(eval_dataset, self.args)
        if not sets:
            return self._evaluate_one(groups, metric_key_prefix, own)
        found: dict[str, float] = {}
        for name, some in sets.items():
            found |= self._evaluate_one(some, f"{metric_key_prefix}_{name}", own)
        return found

    def _evaluate_one(
        self, groups: Sequence[PromptGroup], metric_key_prefix: str, own: bool
    ) -> dict[str, float]:
        require(groups, "eval_dataset")
        groups = groups[: self.args.eval_samples]
        began = time.perf_counter()
        outcomes = self.outcomes(groups)
        metrics = self._measured_as(outcomes, groups, metric_key_prefix)
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

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Traces and answers to all rows of ``test_dataset``, one set of rows in any form that is
        read. Nothing is logged.

        ``predictions`` are the rows' ``Outcome``s (``traces``, ``answers``, ``answer_no_think``,
        and how the reference scored), ``label_ids`` their references as text, ``metrics`` those of
        ``evaluate`` under this prefix. Rows that are left out have no outcome: stderr says which.
        Raises DataError as ``evaluate`` does.
        """
        groups, report = self._read(test_dataset, self.args)
        require(groups, "test_dataset")
        if report is not None and report.dropped and self.is_world_process_zero():
            warn("\n".join(report.lines()))
        outcomes = self.outcomes(groups)
        metrics = self._measured_as(outcomes, groups, metric_key_prefix)
        self.control = self.callback_handler.on_predict(
            self.args, self.state, self.control, metrics
        )
        references: Any = [outcome.reference for outcome in outcomes]
        predictions: Any = outcomes
        return PredictionOutput(predictions, references, metrics)

    def _measured_as(
        self, outcomes: Sequence[Outcome], groups: Sequence[PromptGroup], prefix: str
    ) -> dict[str, Any]:
        """The metrics of outcomes, ours and those of ``compute_metrics``, under a prefix."""
        length = answer_length(groups, self.args)
        found = {**summarise(outcomes), "max_answer_length": length}
        if self.compute_metrics is not None:
            pairs = [(a, o.reference, o.question) for o in outcomes for a in o.answers]
            columns: list[Any] = [
                np.array(column, dtype=object) for column in zip(*pairs, strict=True)
            ]
            own: Any = self.compute_metrics(EvalPrediction(*columns))
            if not isinstance(own, Mapping):
                raise ConfigError(
                    f"compute_metrics returned a {type(own).__name__}",
                    why="what it returns is added to the metrics of an evaluation",
                    fix="return a dict of numbers by name",
                )
            own = {str(name).removeprefix(f"{prefix}_"): x for name, x in own.items()}
            theirs = {name + end for name in own for end in ("", "_low", "_high")}
            found = {name: x for name, x in found.items() if name not in theirs}
            plain: Any = denumpify_detensorize(own)
            found |= plain
        return {f"{prefix}_{name}": value for name, value in found.items()}

    def metric_names(self) -> set[str]:
        """The metrics of an evaluation on the run's own questions, without ``eval_``."""
        count, traces = self.args.eval_samples, self.args.eval_num_generations
        return {
            prefix + name
            for prefix, groups in (
                [(f"{name}_", some) for name, some in self.eval_sets.items()]
                or [("", self.eval_groups)]
            )
            for name in metric_names((g.example.answer for g in groups[:count]), traces)
        }

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
                )
                return held_out.run(groups, tell)
        finally:
            tell(len(groups))

    def _read(
        self, source: Any, args: NRTConfig
    ) -> tuple[Sequence[PromptGroup], DataReport | None]:
        return read_groups(source, self.template, args, self.context, self.keep_columns)

    def _read_held_out(
        self, source: Any, args: NRTConfig
    ) -> tuple[Sequence[PromptGroup], DataReport | None, dict[str, Sequence[PromptGroup]]]:
        """One set with its report, or those of a dict by name. Raises DataError."""
        if not isinstance(source, Mapping):
            return (*self._read(source, args), {})
        if not source:
            raise DataError(
                "eval_dataset is an empty dict",
                why="there are no held-out questions to ask",
                fix="give a set for each name, or leave eval_dataset out",
            )
        if "train" in source and type(source) is not dict:  # a DatasetDict, handed over whole
            others = [str(name) for name in source if name != "train"] or ["test"]
            raise DataError(
                f"eval_dataset has a split train beside {', '.join(others)}",
                why="its questions are those of training, or nobody said which they are",
                fix=f"eval_dataset=data[{others[0]!r}], or a plain dict of the sets to ask",
            )
        return (), None, {str(name): self._read(some, args)[0] for name, some in source.items()}
