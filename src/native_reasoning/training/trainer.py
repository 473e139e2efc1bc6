"""``NRTTrainer``: transformers' Trainer, with a rollout before each optimiser step.

Overrides, and nothing else: ``train`` (claims the run folder), ``get_train_dataloader`` (paces the
loop), ``get_batch_samples`` (rolls out), ``log`` (adds the step's means) and
``hyperparameter_search`` (refuses). Evaluation is in evaluating.py, what a saved model says of
itself in publishing.py, the loss of a micro-batch in step.py, what makes checkpoints appear whole
in checkpoints.py, the mathematics in objective/.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.trainer_utils import TrainOutput

from native_reasoning.config.checks import check_call, check_metric, check_sampling
from native_reasoning.config.errors import ConfigError, warn
from native_reasoning.config.nrt_config import NRTConfig, model_dtype
from native_reasoning.model.gathered import stand_in
from native_reasoning.model.policy import load_policy, warmup_warning
from native_reasoning.model.ranks import from_first_rank
from native_reasoning.objective.credit import objective_of
from native_reasoning.objective.custom import (
    RewardFunctions,
    check_optimizer,
    find_custom,
    given_names,
)
from native_reasoning.objective.types import Scores, Signal
from native_reasoning.records.clock import Clock, ClockCallback
from native_reasoning.records.collapse import CollapseGuard
from native_reasoning.records.folder import RunFolder
from native_reasoning.records.runlog import RunLog
from native_reasoning.records.trackers import TraceTables
from native_reasoning.rollout.generators import longest, training_engine
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.schedule import Schedule, data_hash, make_schedule, require
from native_reasoning.rollout.window import Window
from native_reasoning.scoring.capabilities import capabilities_of, checkpointing
from native_reasoning.scoring.judges import Judges
from native_reasoning.scoring.layouts import LAYOUTS
from native_reasoning.scoring.scorer import Scorer, install_scoring, rounding_of
from native_reasoning.training.callbacks import FiniteGuard, SignalCallback
from native_reasoning.training.checkpoints import Kept
from native_reasoning.training.collector import WindowMaker
from native_reasoning.training.limits import Limits
from native_reasoning.training.publishing import Publishing
from native_reasoning.training.resume import (
    alone,
    checkpoint_step,
    find_checkpoint,
    machine,
    open_run,
)
from native_reasoning.training.state import ObjectiveState

#: Entries of ``state.log_history``, which stays in memory and is in every checkpoint.
LOGS_KEPT = 200


class NRTTrainer(Publishing):
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
    window: Window | None = None
    _resumed: Path | None = None

    def __init__(
        self,
        model: str | Path | PreTrainedModel | None = None,
        args: NRTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        objective: Callable[[Scores], Signal] | None = None,
        reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        **others: Any,
    ) -> None:
        theirs = check_call(model, args, eval_dataset, others)
        assert model is not None and args is not None
        self.settings = objective_of(args.resolved_objective())
        made = (*theirs.get("optimizers", ()), *theirs.get("optimizer_cls_and_kwargs", ()))
        self.given = given_names(objective, reward_funcs, peft_config, made)
        objective, rewards = find_custom(args, objective, reward_funcs)
        if objective is None:
            check_sampling(args, self.settings, judged=bool(rewards))
        self.keep_columns = bool(rewards)
        policy = load_policy(model, args, processing_class, peft_config)
        self.template, self.context = policy.template, policy.context
        self.train_groups, self.train_report = self._read(train_dataset, args)
        self.eval_groups, self.eval_report, self.eval_sets = self._read_held_out(eval_dataset, args)
        warmup = warmup_warning(self.template, args) if self.train_groups else None
        if warmup and args.process_index == 0:
            warn(f"warning: {warmup}")
        install_scoring(policy.model)
        self.finite_guard = FiniteGuard(self._quarantine, scaled=args.fp16)
        self.signals, self.guard = SignalCallback(), CollapseGuard(args.on_collapse)
        self.memory = ObjectiveState(self.settings)
        self.clock = Clock()
        own = [self.finite_guard, self.guard, self.signals, self.memory, ClockCallback(self.clock)]
        super().__init__(
            model=policy.model,
            args=args,
            train_dataset=self.train_groups or None,
            eval_dataset=self.eval_sets or self.eval_groups or None,
            processing_class=policy.tokenizer,
            callbacks=[*own, *(callbacks or []), self._tables(args)],
            **theirs,
        )
        if self.optimizer is not None:
            check_optimizer(self.optimizer, policy.model)
        if args.metric_for_best_model is not None and self.compute_metrics is None:
            check_metric(args.metric_for_best_model, self.metric_names())
        self.remove_callback(PrinterCallback)  # it prints to stdout, which is for results
        self.engine = self._make_engine(policy.model)
        self.limits = Limits(args, self.engine)
        self.kept: dict[str, Kept] = {"limits": self.limits, "skipped_updates": self.finite_guard}
        self.kept["collapse"] = self.guard
        if self.memory.filter is not None:
            self.kept["filter"] = self.memory.filter
        self.maker = self._make_maker(policy.model, objective or self.settings, rewards)
        self.runlog = self._new_log(RunFolder(self.folder, writes=False))
        #: More of config.yaml; the command line puts the data paths here.
        self.recipe: dict[str, Any] = {}
        self._clock: dict[str, float] = {}

    def _make_engine(self, model: PreTrainedModel) -> HFEngine:
        """What samples, on a stand-in for a model that will be cut; and the ways to forward it."""
        lagging = self.settings.needs_ema
        self.whole_copy = stand_in(model, self.accelerator, lagging=lagging)
        #: Activation checkpointing drops caches, and hooks that make weights whole for one layer's
        #: forward do not expect another one.
        once = self.args.activation_checkpointing or self.whole_copy is not None
        with checkpointing(model, self.args):
            able = capabilities_of(
                model,
                self.template,
                layouts=[way for way in LAYOUTS if way != "shared" or not once],
                training=True,
                arithmetic=lambda: self.accelerator.autocast(),
                dtype=self._dtype(model),
                longest=longest(self.args, model),
            )
        self.layouts, self.left_out = able.layouts, able.left_out
        return HFEngine(
            model if self.whole_copy is None else self.whole_copy.model,
            self.template.stop_trace,
            self.template.vocabulary,
            batch_size=self.args.rollout_batch_size,
            autocast=lambda: self.accelerator.autocast(),
            **able.sampling,
        )

    def _dtype(self, model: PreTrainedModel) -> torch.dtype:
        """Of the products: autocast's, or that of the weights."""
        return model_dtype(self.args) if self.args.bf16 or self.args.fp16 else model.dtype

    def _make_maker(
        self,
        model: PreTrainedModel,
        objective: Callable[[Scores], Signal],
        rewards: RewardFunctions,
    ) -> WindowMaker:
        """What samples and scores; copies of the policy are made of ``model`` as it is now."""
        args, settings = self.args, self.settings
        scorer = Scorer(
            self.template,
            args.device,
            args.temperature,
            self.layouts,
            rounding_of(self._dtype(model)),
            model.config.get_text_config().hidden_size,
        )
        if settings.needs_frozen or settings.needs_ema:
            self.memory.judges = Judges(
                model, settings, scorer, autocast=lambda: self.accelerator.autocast()
            )
        sampler = training_engine(self.engine, args, self.template, self.accelerator)
        maker = WindowMaker(
            args,
            self.train_groups,
            sampler,
            scorer,
            objective,
            rewards,
            self.memory,
            self.limits,
        )
        maker.clock = self.clock
        return maker

    def _tables(self, args: NRTConfig) -> TraceTables:
        every = args.diagnostics_steps if args.report_traces else 0
        return TraceTables(every, lambda: self.callback_handler.callbacks, lambda: self.runlog)

    def _new_log(self, records: RunFolder) -> RunLog:
        supervised = self.maker.objective == self.settings and self.settings.reward == "none"
        rewarded = not supervised or bool(self.maker.rewards)
        strict = rewarded and self.settings.bad_format in ("zero", "mask")
        return RunLog(records, self.template, rewarded=rewarded, strict=strict)

    # -- The run -----------------------------------------------------------------------------------

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Trains to the end, or goes on from a checkpoint: True takes the newest of the run folder.

        Raises RunError if the folder holds a run and nothing is resumed, nothing can be, or another
        process trains into it.
        """
        require(self.train_groups, "train_dataset")
        with alone(self.folder):
            self.runlog = self._new_log(RunFolder(self.folder, writes=False))
            checkpoint = from_first_rank(lambda: self._open_run(resume_from_checkpoint))
            return self._train_from(checkpoint, **kwargs)

    def _train_from(self, checkpoint: Path | None, **kwargs: Any) -> TrainOutput:
        self.window, self._resumed = None, checkpoint
        path = str(checkpoint or "") or None
        if checkpoint is not None:
            self.go_on_from(checkpoint)
        if checkpoint is not None and checkpoint_step(checkpoint) >= self.total_steps:
            self.load_finished(checkpoint)  # nothing is trained again
            return TrainOutput(self.state.global_step, 0.0, {})
        try:
            output = super().train(resume_from_checkpoint=path, **kwargs)
        except BaseException:
            if self.args.world_size == 1:
                with suppress(OSError):  # the first error is told
                    self.runlog.write_traces(self.state.global_step)
            raise
        finally:
            self.signals.restore()
        self.runlog.write_traces(self.state.global_step)
        self.guard.raise_if_stopped()
        return output

    def _open_run(self, resume: str | Path | bool | None) -> Path | None:
        """What to go on from, and the run folder made ready for it; on the rank that writes."""
        checkpoint = find_checkpoint(resume, self.folder)
        if checkpoint is not None:
            self.load_kept(checkpoint)  # nothing is cut back before it is known that it can be
        model = self.accelerator.unwrap_model(self.model)
        settings = {"model": model.config.name_or_path, **self.recipe, **self.args.resolved()}
        settings |= self.given
        report = () if self.train_report is None else self.train_report.lines()
        records = open_run(
            self.folder,
            checkpoint,
            settings,
            {
                "data_report": list(report),
                "boundary": asdict(self.template.boundary),
                "layouts": list(self.layouts),
                "left_out": list(self.left_out),
                "machine": machine(self.args.world_size, self.memory.first_policy),
            },
            data_hash=data_hash(self.train_groups),
            seed=self.args.seed,
            finished=checkpoint is not None and checkpoint_step(checkpoint) >= self.total_steps,
        )
        self.runlog = self._new_log(records)
        return checkpoint

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * self.schedule.steps_per_epoch)

    @property
    def schedule(self) -> Schedule:
        """Which rows each optimiser step takes."""
        return make_schedule(len(self.train_groups), self.args)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Only paces the loop: the rows of a step are a function of the step (schedule.py)."""
        count = self.schedule.steps_per_epoch * self.args.gradient_accumulation_steps
        return DataLoader(range(count), batch_size=1)  # type: ignore[arg-type]

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ConfigError: this trainer trains one model."""
        raise ConfigError(
            "NRTTrainer has no hyperparameter_search",
            why="a trial needs a model, a run folder and a trainer of its own",
            fix="in Python, a loop that makes NRTConfig(output_dir=...) and NRTTrainer(...) anew "
            "for each value; then nrt report RUN RUN ... sets the runs beside each other",
        )

    # -- Rollout -----------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """The step's micro-batches, sampled now if the step opens a rollout."""
        for _ in range(num_batches):
            next(epoch_iterator)
        self._clock = {"began": time.perf_counter(), **self.clock.take()}
        self.plan = self.schedule.step(self.state.global_step)
        if self.window is None or self.window.rollout != self.plan.rollout:
            if self._resumed is not None and self._window_is_open():
                self.window = self.maker.reopen(self._resumed, self.schedule, self.plan)
            else:
                with self.whole_model() as model:
                    self.window = self.maker.make(
                        self.schedule,
                        self.plan,
                        model,
                        beforehand=self.limits.splits(self.args.per_device_train_batch_size),
                        trainer_state=self.state,
                    )
        self.memory.rollout = self.window.rollout
        minibatch = self.window.minibatches[self.plan.minibatch]
        with self.clock.stage("waiting"):
            self.mean_tokens = self.maker.mean_tokens(minibatch, self.traces_per_step)
        self.diagnose(minibatch)
        self._clock["rollout"] = time.perf_counter() - self._clock["began"]
        self.runlog.mark()
        last = len(minibatch) - 1
        return [{"place": i, "last": i == last} for i in range(last + 1)], None

    def _window_is_open(self) -> bool:
        """Whether this step trains on traces that an earlier one sampled."""
        return self.schedule.step(self.state.global_step).rollout < self.state.global_step

    # -- What is written ---------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the step's means; to the run folder with it, metrics at the step of the weights."""
        step = self.state.global_step
        if "train_runtime" in logs:
            self.runlog.records.append_timings(step, logs)
            super().log(logs, start_time)
            return
        if "loss" in logs:
            with self.clock.stage("waiting"):
                logs |= self.runlog.means()
            logs["skipped_updates"] = skipped = self.finite_guard.take()
            logs["loss"] = math.nan if skipped else logs["loss"]
            if self.maker.samples:
                logs |= self.guard.look(logs, step, tell=self.is_world_process_zero())
            self.runlog.records.append_timings(step, self._seconds())
        with self.clock.stage("records"):
            super().log(logs, start_time)
            self.runlog.records.append_metrics(self.step_of_weights, logs)
        del self.state.log_history[:-LOGS_KEPT]

    def _seconds(self) -> dict[str, float]:
        """Times of the step that ends now, with the records that were written before it began."""
        stages, whole = self.clock.take(), time.perf_counter() - self._clock["began"]
        other = whole - sum(stages.values())
        stages["records"] += self._clock["records"]
        named = {**stages, "other": other, "step": whole + self._clock["records"]}
        named["rollout"] = self._clock["rollout"]
        return {f"{name}_seconds": value for name, value in named.items()}

    def _quarantine(self, step: int) -> None:
        assert self.window is not None
        micros = self.window.minibatches[self.plan.minibatch]
        self.runlog.quarantine(step, [pair for micro in micros for pair in micro.pairs])

    # -- Checkpoints (checkpoints.py) --------------------------------------------------------------

    def before_checkpoint(self) -> None:
        """Traces and metrics up to here are on the disk before the checkpoint is."""
        self.runlog.write_traces(self.state.global_step)
        self.runlog.records.sync()

    def load_kept(self, checkpoint: Path) -> None:
        """With the lagging copy, if the objective asks one."""
        super().load_kept(checkpoint)
        if self.memory.judges is not None:
            self.memory.judges.load(checkpoint)

    def add_to_checkpoint(self, folder: Path) -> None:
        """The lagging copy; the open window, if the next step goes on with it."""
        if self.memory.judges is not None and self.args.should_save:
            self.memory.judges.save(folder)
        if self._window_is_open():
            assert self.window is not None
            self.window.save(folder, self.args.process_index)
