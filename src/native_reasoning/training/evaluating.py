"""Evaluation while a model trains, and after it: transformers' loop cannot generate."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import PredictionOutput, denumpify_detensorize

from native_reasoning.config.checks import check_metric
from native_reasoning.config.errors import ConfigError, DataError, RunError, warn
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data import DataReport
from native_reasoning.data.rows import PromptGroup
from native_reasoning.evaluation.held_out import (
    NAMES,
    RECORDED,
    HeldOut,
    Outcome,
    answer_length,
    held_out_rows,
    summarise,
)
from native_reasoning.model.ranks import from_first_rank
from native_reasoning.records.folder import read_held_out, read_metrics
from native_reasoning.rollout.schedule import require
from native_reasoning.training.checkpoints import Checkpoints
from native_reasoning.training.forwards import Forwards
from native_reasoning.training.recorder import Recorder

Groups = Sequence[PromptGroup]
#: Rows of any form in token ids, and the report of what was left out.
Read = Callable[[Any], tuple[Groups, DataReport | None]]


@dataclass(frozen=True)
class Questions:
    """Held-out rows: ``groups`` with the ``report`` of reading them, or ``sets`` by name."""

    groups: Groups = ()
    report: DataReport | None = None
    sets: Mapping[str, Groups] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Any, read: Read) -> "Questions":
        """One set, or those of a dict. Raises DataError."""
        if not isinstance(source, Mapping):
            return cls(*read(source))
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
        return cls(sets={str(name): read(some)[0] for name, some in source.items()})

    def named(self, prefix: str) -> dict[str, Groups]:
        """Each set by the prefix of its metrics."""
        if not self.sets:
            return {prefix: self.groups}
        return {f"{prefix}_{name}": some for name, some in self.sets.items()}


class Evaluator:
    """Asks held-out questions: those of the run (``questions``), or others.

    ``trainer`` is transformers' part of the trainer: its model, callbacks and processes. Raises
    ConfigError where ``metric_for_best_model`` is none of what is measured.
    """

    def __init__(
        self,
        trainer: Trainer,
        args: NRTConfig,
        questions: Questions,
        read: Read,
        forwards: Forwards,
        checkpoints: Checkpoints,
        recorder: Recorder,
    ) -> None:
        self.trainer, self.args, self.questions, self.read = trainer, args, questions, read
        self.forwards, self.checkpoints, self.recorder = forwards, checkpoints, recorder
        #: The last evaluation of the run's own questions, and the step of its weights.
        self._made: tuple[int, Mapping[str, Any]] | None = None
        if args.metric_for_best_model is not None and trainer.compute_metrics is None:
            check_metric(args.metric_for_best_model, self.names())

    def names(self) -> set[str]:
        """The metrics of an evaluation on the run's own questions, without ``eval_``."""
        prefixes = self.questions.named("eval")
        return {f"{prefix}_{name}".removeprefix("eval_") for prefix in prefixes for name in NAMES}

    def evaluate(self, source: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each set of ``source``, or of the run's own where that is None: its prefix and metrics.
        The run's own answers are recorded, unless there are several sets. Raises DataError."""
        questions = self.questions if source is None else Questions.of(source, self.read)
        for name, groups in questions.named(prefix).items():
            yield name, self._evaluate_one(groups, name, own=source is None)

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
            self._made = (step, metrics)
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
            columns: list[Any] = [
                np.array(column, dtype=object) for column in zip(*pairs, strict=True)
            ]
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

    def made(self) -> Mapping[str, Any] | None:
        """What ``evaluate`` would find, where the run has found it already: of these weights and of
        the same questions, in this process or in one whose run goes on. On all ranks."""
        if self._made is not None and self._made[0] == self.checkpoints.step_of_weights:
            return self._made[1]
        return from_first_rank(self._recorded)

    def _recorded(self) -> Mapping[str, Any] | None:
        """The last line of metrics.jsonl at the step of the weights, if the recorded questions say
        that it is about what would be asked now."""
        step, folder = self.checkpoints.step_of_weights, self.recorder.records.path
        groups = self.questions.groups[: self.args.eval_samples]
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

        try:
            with forwards.whole(t.model_wrapped) as model:
                plain: Any = t.accelerator.unwrap_model(model)
                asked = HeldOut(plain, forwards.engine, forwards.scorer, self.args, length)
                return asked.run(groups, tell)
        finally:
            tell(len(groups))
