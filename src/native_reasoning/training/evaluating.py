"""Evaluation while a model trains, and after it: transformers' loop cannot generate."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import PredictionOutput, denumpify_detensorize

from native_reasoning.config.checks import check_metric
from native_reasoning.config.errors import ConfigError, warn
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data import DataReport
from native_reasoning.data.rows import PromptGroup
from native_reasoning.evaluation.held_out import (
    NAMES,
    HeldOut,
    Outcome,
    answer_length,
    held_out_rows,
    question_rows,
    summarise,
)
from native_reasoning.rollout.schedule import require
from native_reasoning.training.checkpoints import Checkpoints
from native_reasoning.training.forwards import Forwards
from native_reasoning.training.recorder import Recorder

Groups = Sequence[PromptGroup]
#: Rows of any form in token ids, and the report of what was left out.
Read = Callable[[Any], tuple[Groups, DataReport | None]]


def question_sets(source: Any, read: Read) -> tuple[dict[str, Groups], DataReport | None]:
    """Held-out rows by what the names of their metrics begin with: those of a dict by ``_NAME``,
    one set by "", with the report of reading it. Raises DataError."""
    if isinstance(source, Mapping):
        return {f"_{name}": read(rows)[0] for name, rows in source.items()}, None
    groups, report = read(source)
    return {"": groups}, report


class Evaluator:
    """Asks held-out questions: those of the run (``sets``), or others.

    ``trainer`` is transformers' part of the trainer: its model, callbacks and processes. Raises
    ConfigError where ``metric_for_best_model`` is none of what is measured.
    """

    def __init__(
        self,
        trainer: Trainer,
        args: NRTConfig,
        sets: Mapping[str, Groups],
        read: Read,
        forwards: Forwards,
        checkpoints: Checkpoints,
        recorder: Recorder,
    ) -> None:
        self.trainer, self.args, self.sets, self.read = trainer, args, sets, read
        self.forwards, self.checkpoints, self.recorder = forwards, checkpoints, recorder
        #: Evaluations of the run's own questions, by the step of the weights.
        self.made: dict[int, Mapping[str, Any]] = {}
        if args.metric_for_best_model is not None and trainer.compute_metrics is None:
            check_metric(args.metric_for_best_model, self.names())

    def names(self) -> set[str]:
        """The metrics of an evaluation on the run's own questions, without ``eval_``."""
        return {f"{named}_{name}".removeprefix("_") for named in self.sets for name in NAMES}

    def evaluate(self, source: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each set of ``source``, or of the run's own where that is None: its prefix and metrics.
        The run's own answers are recorded, unless there are several sets. Raises DataError."""
        sets = self.sets if source is None else question_sets(source, self.read)[0]
        for name, groups in sets.items():
            yield prefix + name, self._evaluate_one(groups, prefix + name, own=source is None)

    def _evaluate_one(self, groups: Groups, prefix: str, *, own: bool) -> dict[str, Any]:
        require(groups, "eval_dataset")
        groups, records = groups[: self.args.eval_samples], self.recorder.records
        began = time.perf_counter()
        outcomes = self.outcomes(groups)
        metrics = self._measured_as(outcomes, groups, prefix)
        seconds = {f"{prefix}_seconds": time.perf_counter() - began}
        records.append_timings(self.trainer.state.global_step, seconds)
        if own and prefix == "eval":
            step = self.checkpoints.step_of_weights
            self.made[step] = metrics
            records.append_questions(step, question_rows(outcomes))
            if self.args.record_traces:
                with self.recorder.clock.stage("records"):
                    records.write_held_out(held_out_rows(step, outcomes))
        return metrics

    def predict(self, source: Any, prefix: str) -> PredictionOutput:
        """Outcomes, references and metrics of all rows. Raises DataError."""
        groups, report = self.read(source)
        require(groups, "test_dataset")
        if report is not None and report.dropped and self.args.process_index == 0:
            warn("\n".join(report.lines()))
        outcomes: Any = self.outcomes(groups)
        references: Any = [outcome.reference for outcome in outcomes]
        return PredictionOutput(outcomes, references, self._measured_as(outcomes, groups, prefix))

    def _measured_as(
        self, outcomes: Sequence[Outcome], groups: Sequence[PromptGroup], prefix: str
    ) -> dict[str, Any]:
        """The metrics of outcomes, ours and those of ``compute_metrics``, under a prefix."""
        length = answer_length(groups, self.args)
        found = {**summarise(outcomes), "max_answer_length": length}
        compute: Any = self.trainer.compute_metrics
        if compute is not None:
            pairs = [(a, o.reference, o.question) for o in outcomes for a in o.answers]
            columns: Any = [np.array(column, dtype=object) for column in zip(*pairs, strict=True)]
            own: Any = compute(EvalPrediction(*columns))
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

    def outcomes(self, groups: Groups) -> list[Outcome]:
        """What the policy answers to each question now; the ranks share the work.

        Callbacks hear how far it is as ``on_prediction_step``, with ``questions``, ``answered`` of
        them, and ``max_answer_length``.
        """
        length, t, forwards = answer_length(groups, self.args), self.trainer, self.forwards

        def tell(answered: int) -> None:
            t.callback_handler.call_event(
                "on_prediction_step",
                self.args,
                t.state,
                t.control,
                questions=len(groups),
                answered=answered,
                max_answer_length=length,
            )

        forwards.memory.find_without_training(groups)
        try:
            with forwards.whole(t.model_wrapped) as model:
                plain: Any = t.accelerator.unwrap_model(model)
                asked = HeldOut(plain, forwards.engine, forwards.scorer, self.args, length)
                return asked.run(groups, tell)
        finally:
            tell(len(groups))
