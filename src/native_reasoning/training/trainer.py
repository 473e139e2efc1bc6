"""``NRTTrainer``: transformers' Trainer, with a rollout before each optimiser step.

Overrides, and nothing else: each hands over to what the constructor has made. ``collector`` samples
what a step trains on (collector.py), ``objective`` scores and judges it (judging.py), ``step``
makes the loss of it (step.py), ``recorder`` writes down what there was (recorder.py), checkpoints
appear whole (checkpoints.py), ``evaluator`` asks held-out questions (evaluating.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_utils import PredictionOutput, TrainOutput

from native_reasoning.config.checks import check_call, refuse_call
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.model.policy import context_of, load_policy
from native_reasoning.objective.verdicts import (
    AnyObjective,
    check_optimizer,
    find_judging,
    given_names,
)
from native_reasoning.rollout.schedule import Schedule, name_of, read_groups, require
from native_reasoning.training.checkpoints import Checkpoints, state_of
from native_reasoning.training.collector import Collector
from native_reasoning.training.evaluating import Evaluator, question_sets
from native_reasoning.training.forwards import Forwards
from native_reasoning.training.judging import RunObjective
from native_reasoning.training.recorder import Recorder
from native_reasoning.training.step import Step

#: Entries of ``state.log_history``, which stays in memory and is in every checkpoint.
LOGS_KEPT = 200


class NRTTrainer(Trainer):
    """Trains ``model`` to reason from question–answer pairs.

    ``model`` is a hub id, a folder or a causal language model. ``train_dataset`` and
    ``eval_dataset`` are anything that ``load_examples`` reads (a path, a datasets.Dataset, a pandas
    frame, a list of dicts) or ``Examples``; ``eval_dataset`` may be a dict of such sets, each of
    which is evaluated. ``objective`` replaces the preset's rewards and advantages: any
    callable Scores -> Signal. ``reward_funcs`` have TRL's signature and are added to the reward.
    ``peft_config``, peft's LoraConfig, replaces what ``use_peft`` and ``lora_…`` say.
    ``processing_class`` is the tokenizer, that of the model's folder if it is None; ``callbacks``
    are transformers', as are ``optimizers`` and ``optimizer_cls_and_kwargs``.
    ``compute_metrics`` gets an ``EvalPrediction`` of NumPy arrays of text, with an item for each
    sampled trace of each question: ``predictions`` are the answers after it, ``label_ids`` the
    references, ``inputs`` the questions. The dict of numbers that it returns is added to the
    metrics of an evaluation.

    Raises ConfigError, DataError, TemplateError or PolicyError before training starts, RunError at
    ``train()`` if the run folder is taken.
    """

    loss_is_scaled_for_ga = True
    args: NRTConfig

    def __init__(
        self,
        model: str | Path | PreTrainedModel | None = None,
        args: NRTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        objective: AnyObjective | None = None,
        reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        **others: Any,
    ) -> None:
        theirs = check_call(model, args, eval_dataset, others)
        assert model is not None and args is not None
        asked = find_judging(args, objective, reward_funcs)
        settings = args.resolved_objective()
        policy = load_policy(model, args, processing_class, peft_config)
        self._given = {
            "model": name_of(model) or policy.model.config.name_or_path,
            "data": name_of(train_dataset),
            "eval_data": name_of(eval_dataset),
            **given_names(objective, reward_funcs, peft_config, theirs),
        }
        read = partial(
            read_groups,
            template=policy.template,
            config=args,
            context=context_of(policy.model),
            keep_columns=bool(asked.rewards),
        )
        self.template, self._base = policy.template, policy.base
        self.train_groups, self.train_report = read(train_dataset)
        sets, self.eval_report = question_sets(eval_dataset, partial(read, held_out=True))
        self.eval_groups = sets.get("", ())
        train: Any = self.train_groups or None
        held_out: Any = self.eval_groups or (sets if any(sets.values()) else None)
        self.recorder = Recorder(args, policy.template, settings, rewarded=asked.rewarded)
        super().__init__(
            model=policy.model,
            args=args,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=policy.tokenizer,
            callbacks=[*self.recorder.callbacks, *(callbacks or [])],
            **theirs,
        )
        if self.optimizer is not None:
            check_optimizer(self.optimizer, policy.model)
        self.forwards = f = Forwards(policy, args, settings, self.accelerator)
        self.objective = RunObjective(args, asked.objective, f.scorer, f.judges)
        of_rollouts = (asked.rewards, self.objective, f.memory, self.recorder.clock)
        self.collector = Collector(args, self.train_groups, f.sampler, *of_rollouts)
        self.step = Step(args, self.collector, self.objective, self.recorder, self.accelerator)
        self.checkpoints = Checkpoints(self, args, f, self.objective, self.collector, self.recorder)
        self.evaluator = Evaluator(self, args, sets, read, f, self.checkpoints, self.recorder)
        for callback in (self.checkpoints.signals, self.checkpoints, self.objective):
            self.add_callback(callback)
        self.remove_callback(PrinterCallback)  # it prints to stdout, which is for results

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.checkpoints.folder

    @property
    def schedule(self) -> Schedule:
        """Which rows each optimiser step takes."""
        return self.collector.schedule

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.collector.total_steps

    def whole_model(self) -> AbstractContextManager[Any]:
        """The model for forwards without gradients, of which each rank may make its own number."""
        return self.forwards.whole(self.model_wrapped)

    # -- The run -----------------------------------------------------------------------------------

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Trains to the end, or goes on from a checkpoint: True takes the newest of the run folder.

        Raises RunError if the folder holds a run and nothing is resumed, nothing can be, or another
        process trains into it.
        """
        require(self.train_groups, "train_dataset")
        with self.checkpoints.opened(resume_from_checkpoint, *self.about()) as checkpoint:
            if checkpoint is not None and self.checkpoints.is_finished(checkpoint):
                return self._load_finished(checkpoint)  # nothing is trained again
            path = None if checkpoint is None else str(checkpoint)
            with self.checkpoints.training():
                return super().train(resume_from_checkpoint=path, **kwargs)

    def _load_finished(self, checkpoint: Path) -> TrainOutput:
        """The state of a run that has come to its end, and the weights that it ended with."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = state_of(checkpoint)
        self.state.best_model_checkpoint = self.checkpoints.best
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        return TrainOutput(self.state.global_step, 0.0, {})

    def about(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings of config.yaml, and what else it says of the run."""
        settings = {**self.args.resolved(), **self._given}
        about = {
            "data_report": [] if self.train_report is None else list(self.train_report.lines()),
            "model_hash": self._base,
            "boundary": asdict(self.template.boundary),
            "layouts": list(self.forwards.layouts),
            "left_out": list(self.forwards.left_out),
        }
        return settings, about

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Only paces the loop: the rows of a step are a function of the step (schedule.py)."""
        count = self.schedule.steps_per_epoch * self.args.gradient_accumulation_steps
        return DataLoader(range(count), batch_size=1)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """The step's micro-batches, sampled now if the step opens a rollout. Where all are one, it
        is the last: transformers' loop wants as many as it accumulates."""
        for _ in range(num_batches):
            next(epoch_iterator)
        self.recorder.begins(self.state.global_step + 1)
        micros = self.step.collect(self.state, self.whole_model)
        self.recorder.collected(micros)
        nothing = [None] * (num_batches - len(micros))
        return [{"micro": micro} for micro in (*nothing, *micros)], None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> Tensor:  # type: ignore[override]
        """Forward and backward of a micro-batch."""
        if inputs["micro"] is None:
            return torch.zeros((), device=self.args.device)
        return self.step.train(inputs["micro"], model, super().training_step)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kw: Any
    ) -> Tensor:
        """The share of the step's loss that a micro-batch, or a part of it, has."""
        return self.step.loss(inputs["micro"], model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the step's means; to the run folder with it, metrics at the step of the weights."""
        if "loss" in logs:
            self.recorder.close_step(logs, self.state.global_step)
        with self.recorder.clock.stage("records"):
            super().log(logs, start_time)
            self.recorder.write(logs, self.state.global_step, self.checkpoints.step_of_weights)
        del self.state.log_history[:-LOGS_KEPT]

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ConfigError: a trial needs a model, a run folder and a trainer of its own."""
        refuse_call("hyperparameter_search")

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ConfigError: a saved model is uploaded by the hub's own command."""
        refuse_call("push_to_hub")

    # -- Evaluation --------------------------------------------------------------------------------

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
        found: dict[str, float] = {}
        for prefix, metrics in self.evaluator.evaluate(eval_dataset, metric_key_prefix):
            self.log(metrics | ({} if eval_dataset is None else {f"{prefix}_other_data": 1.0}))
            about = (self.args, self.state, self.control, metrics)
            self.control = self.callback_handler.on_evaluate(*about)
            found |= metrics
        return found

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
        found = self.evaluator.predict(test_dataset, metric_key_prefix)
        about = (self.args, self.state, self.control, found.metrics)
        self.control = self.callback_handler.on_predict(*about)
        return found

    # -- Checkpoints -------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """An ordinary model folder (weights, tokenizer, chat template, end tokens) in
        ``output_dir``, by default the run folder; all ranks call it."""
        if self.forwards.copy is None:
            super().save_model(output_dir, _internal_call)
            return
        with self.whole_model():
            self._save(output_dir)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        self.checkpoints.save_files(Path(output_dir or self.folder), state_dict)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.checkpoints.save(partial(super()._save_checkpoint, model, trial))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            self.checkpoints.save_optimizer(Path(output_dir))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.checkpoints.load_optimizer(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not self.checkpoints.load_weights(resume_from_checkpoint, model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        if not self.checkpoints.load_weights(best):
            super()._load_best_model()
        self.checkpoints.went_back(best)
