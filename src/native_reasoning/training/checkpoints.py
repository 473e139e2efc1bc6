"""Checkpoints that appear whole or not at all: written in a staging folder, synced, renamed."""

import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from native_reasoning.config.errors import warn
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.model.adapters import has_adapter, load_adapter, merged, save_adapter
from native_reasoning.model.policy import load_model
from native_reasoning.model.ranks import fill, from_first_rank, in_shards, load_state, save_shards
from native_reasoning.records.card import write_card
from native_reasoning.records.disk import CHECKSUMS, damage, put_aside, seal, sync, write_atomically
from native_reasoning.records.folder import CONFIG, RunFolder
from native_reasoning.rollout.schedule import data_hash
from native_reasoning.training.collector import Collector
from native_reasoning.training.forwards import Forwards
from native_reasoning.training.judging import RunObjective
from native_reasoning.training.recorder import Recorder
from native_reasoning.training.resume import (
    SignalCallback,
    alone,
    checkpoints,
    find_checkpoint,
    machine,
    open_run,
    step_in_name,
)

#: Does not match transformers' ``checkpoint-*``, so that an unfinished one is never resumed from.
STAGING = ".saving"
#: In a checkpoint: what parts of the run keep besides tensors, by their names.
KEPT = "kept.json"


def publish(staged: Path, final: Path) -> None:
    """Moves a finished folder to its name, after its files are safe on the disk and known by their
    checksums. One that is there already stays if it holds the same files, else it is set aside."""
    seal(staged)
    if final.exists():
        mine = (staged / CHECKSUMS).read_bytes()
        if not damage(final) and (final / CHECKSUMS).read_bytes() == mine:
            return
        put_aside(final)
    os.replace(staged, final)
    sync(final.parent)


def state_of(checkpoint: Path) -> TrainerState:
    """transformers' state of the trainer when a checkpoint was saved."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


class Checkpoints(TrainerCallback):
    """Checkpoints and saved models of a run: opened, written whole, read again.

    ``trainer`` is transformers' part of the trainer: its model, optimizer, state and processes.
    ``signals`` is a callback of it.
    """

    def __init__(
        self,
        trainer: Trainer,
        args: NRTConfig,
        forwards: Forwards,
        objective: RunObjective,
        collector: Collector,
        recorder: Recorder,
    ) -> None:
        self.trainer, self.args, self.forwards = trainer, args, forwards
        self.objective, self.collector, self.recorder = objective, collector, recorder
        self.folder = Path(str(args.output_dir))
        #: Where transformers writes a checkpoint, and finds no older one to delete.
        self.staging = self.folder / STAGING
        self.signals = SignalCallback()
        kept = {
            "skipped_updates": recorder.finite,
            "collapse": recorder.collapse,
            "filter": objective.filter,
            "memory": forwards.memory,
        }
        self.kept = {name: part for name, part in kept.items() if part is not None}
        #: The best checkpoint of the run that goes on.
        self.best: str | None = None
        #: The step of the best checkpoint, while the model has its weights in place of the last.
        self._back_at: int | None = None

    # -- a run -------------------------------------------------------------------------------------

    @contextmanager
    def opened(
        self,
        resume: str | Path | bool | None,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> Generator[Path | None]:
        """Inside, the run folder belongs to this run; yields the checkpoint that it goes on from.
        ``settings`` and what is known ``about`` the run go into a new config.yaml.

        Raises RunError if the folder holds a run and nothing is resumed, nothing can be, or another
        process trains into it.
        """
        with alone(self.folder):
            self.recorder.open(RunFolder(self.folder, writes=False))
            checkpoint = from_first_rank(lambda: self._open(resume, settings, about))
            self.collector.restart(checkpoint)
            self.best = self._back_at = None
            if checkpoint is not None:
                self._load_kept(checkpoint)
                self.best = self._best_of(checkpoint)
            yield checkpoint

    def _open(
        self,
        resume: str | Path | bool | None,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> Path | None:
        """What to go on from, and the run folder made ready for it; on the rank that writes."""
        checkpoint = find_checkpoint(resume, self.folder)
        if checkpoint is not None:
            self._load_kept(checkpoint)  # nothing is cut back before it is known that it can be
        known = {
            **about,
            "data_hash": data_hash(self.collector.groups),
            "seed": self.args.seed,
            "machine": machine(self.args.world_size),
        }
        step = None if checkpoint is None else state_of(checkpoint).global_step
        finished = self.is_finished(checkpoint)
        records = open_run(self.folder, step, settings, known, finished=finished)
        self.recorder.open(records)
        return checkpoint

    def is_finished(self, checkpoint: Path | None) -> bool:
        """Whether no step is left after a checkpoint."""
        total = self.collector.total_steps
        return checkpoint is not None and state_of(checkpoint).global_step >= total

    @contextmanager
    def training(self) -> Generator[None]:
        """Inside, steps are trained: their traces are written at the end, also after an error."""
        try:
            yield
        except BaseException:
            if self.args.world_size == 1:
                with suppress(OSError):  # the first error is told
                    self.recorder.write_traces(self.trainer.state.global_step)
            raise
        finally:
            self.signals.restore()
        self.recorder.write_traces(self.trainer.state.global_step)
        self.recorder.collapse.raise_if_stopped()

    # -- reading -----------------------------------------------------------------------------------

    def _load_kept(self, checkpoint: Path) -> None:
        """Gives the parts of the run their states back; one that is new begins anew."""
        states = json.loads((checkpoint / KEPT).read_text(encoding="utf-8"))
        for name in self.kept.keys() & states.keys():
            self.kept[name].restore(states[name])
        if self.objective.judges is not None:
            self.objective.judges.load(checkpoint)

    @property
    def step_of_weights(self) -> int:
        """The optimiser step that the model's weights come from."""
        return self.trainer.state.global_step if self._back_at is None else self._back_at

    def _best_of(self, checkpoint: Path) -> str | None:
        """What a checkpoint names as the best one, wherever the run folder is now; None where that
        is gone or damaged."""
        named = state_of(checkpoint).best_model_checkpoint
        best = None if named is None else checkpoint.parent / Path(named).name
        return None if best is None or damage(best) else str(best)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.best_model_checkpoint = self.best

    def load_weights(self, checkpoint: str, model: nn.Module | None = None) -> bool:
        """The weights of a checkpoint into the model; False where transformers can do it."""
        accelerator, copy = self.trainer.accelerator, self.forwards.copy
        here = accelerator.unwrap_model(self.trainer.model if model is None else model)
        if has_adapter(here):
            with self.forwards.whole(self.trainer.model_wrapped):
                into = here if copy is None else copy.model
                load_adapter(into, Path(checkpoint))
                if into is not here:
                    fill(here, into)
        elif self.trainer.is_fsdp_enabled:
            fill(here, load_model(checkpoint, self.args))
        else:
            return False
        return True

    def went_back(self, checkpoint: str) -> None:
        """The weights are now those of an earlier checkpoint."""
        self._back_at = step_in_name(Path(checkpoint))

    def load_optimizer(self, checkpoint: str | None) -> bool:
        """Optimizer and scheduler, in shards; False where transformers can do it."""
        here = None if checkpoint is None else Path(checkpoint)
        if here is None or not (self.trainer.is_fsdp_enabled or in_shards(here)):
            return False
        optimizer, scheduler = self._optimizers()
        load_state(self.trainer.model, optimizer, here)  # type: ignore[arg-type]
        scheduler.load_state_dict(torch.load(here / SCHEDULER_NAME, weights_only=True))
        return True

    def _optimizers(self) -> tuple[Any, Any]:
        assert self.trainer.optimizer is not None and self.trainer.lr_scheduler is not None
        return self.trainer.optimizer, self.trainer.lr_scheduler

    # -- writing -----------------------------------------------------------------------------------

    def save(self, write: Callable[[], None]) -> None:
        """A checkpoint of this step, written beside and renamed, so that a killed writer leaves no
        checkpoint at all. ``write`` writes transformers' part into ``staging``."""
        state, step = self.trainer.state, self.trainer.state.global_step
        final = self.folder / f"checkpoint-{step}"
        with self.recorder.clock.stage("records"), self._staged(final) as staged:
            self.recorder.write_traces(step)
            self.recorder.records.sync()
            write()
            self.collector.save(staged, step)
            self.trainer.accelerator.wait_for_everyone()
            if state.best_model_checkpoint == str(staged):
                state.best_model_checkpoint = str(final)
            if self.args.should_save:
                kept = {name: part.state() for name, part in self.kept.items()}
                write_atomically(staged / KEPT, json.dumps(kept))
                if self.objective.judges is not None:
                    self.objective.judges.save(staged)
                state.save_to_json(str(staged / TRAINER_STATE_NAME))
                publish(staged, final)
                self._delete_old()

    def save_optimizer(self, folder: Path) -> None:
        """Optimizer and scheduler of a model that FSDP cut."""
        optimizer, scheduler = self._optimizers()
        ranks = (self.args.process_index, self.args.world_size)
        save_shards(self.trainer.model, optimizer, folder, *ranks)  # type: ignore[arg-type]
        if self.args.should_save:
            torch.save(scheduler.state_dict(), folder / SCHEDULER_NAME)

    def save_files(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        """An ordinary model folder; of a checkpoint with an adapter, the adapter alone.
        transformers' adds a pickle that holds the hub token."""
        if not self.args.should_save:
            return
        copy, tokenizer = self.forwards.copy, self.trainer.processing_class
        unwrap = self.trainer.accelerator.unwrap_model
        model = unwrap(self.trainer.model) if copy is None else copy.model
        in_checkpoint = folder.parent == self.staging and step_in_name(folder) >= 0
        if not has_adapter(model):
            model.save_pretrained(folder, state_dict=state_dict)
        elif in_checkpoint:
            save_adapter(model, folder)
        else:
            merged(model).save_pretrained(folder)
        assert tokenizer is not None
        tokenizer.save_pretrained(folder)
        if not in_checkpoint:
            self.recorder.template.boundary.warn_of_servers()
            self.write_card(folder)

    def save_whole_model(self, folder: Path) -> None:
        """``save_model`` into a folder that appears whole. One that holds the same model stays as
        it is; another one is set aside."""
        with self._staged(folder) as staged:
            self.trainer.save_model(str(staged))
            self.trainer.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish(staged, folder)

    def write_card(self, folder: Path) -> None:
        """README.md of a saved model, as much as is known by now, on the process that saves; none
        of a model that no run has trained."""
        if not self.args.should_save or not (self.folder / CONFIG).is_file():
            return
        try:
            write_card(folder, self.folder, self.step_of_weights)
        except Exception as error:  # of whatever a card is made of: a model is worth more than it
            reason = f"{type(error).__name__}: {error}"
            warn(f"{folder.name} has no new model card (README.md), which needs {reason}")

    @contextmanager
    def _staged(self, final: Path) -> Generator[Path]:
        """Where ``final`` is written, cleared of what a killed writer left there, and after it."""
        staging = final.parent / STAGING
        try:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            self.trainer.accelerator.wait_for_everyone()
            yield staging / final.name
        finally:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def _delete_old(self) -> None:
        """Keeps ``save_total_limit`` checkpoints, of which the newest has just been written whole,
        and the best."""
        limit, best = self.args.save_total_limit, self.trainer.state.best_model_checkpoint
        for path in checkpoints(self.folder)[limit:] if limit else []:
            if best is None or path.name != Path(best).name:
                shutil.rmtree(path, ignore_errors=True)
