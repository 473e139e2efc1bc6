"""Checkpoints that appear whole or not at all: written in a staging folder, synced, renamed."""

import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from native_reasoning.config.errors import RunError, warn
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.model.adapters import has_adapter, load_adapter, merged, save_adapter
from native_reasoning.model.gathered import fill
from native_reasoning.model.policy import load_model
from native_reasoning.model.ranks import from_first_rank
from native_reasoning.model.shards import in_shards, load_state, save_shards
from native_reasoning.records.card import write_card
from native_reasoning.records.disk import (
    CHECKSUMS,
    damage,
    put_aside,
    seal,
    sync,
    write_atomically,
    writing,
)
from native_reasoning.records.folder import CONFIG, RunFolder
from native_reasoning.rollout.schedule import data_hash
from native_reasoning.training.callbacks import BestCheckpoint, SignalCallback
from native_reasoning.training.collector import Collector
from native_reasoning.training.forwards import Forwards
from native_reasoning.training.recorder import Recorder
from native_reasoning.training.resume import (
    alone,
    checkpoint_number,
    checkpoint_step,
    checkpoints,
    find_checkpoint,
    machine,
    open_run,
)
from native_reasoning.training.state import RunObjective

#: Does not match transformers' ``checkpoint-*``, so that an unfinished one is never resumed from.
STAGING = ".saving"
#: In a checkpoint: what parts of the run keep besides tensors, by their names.
KEPT = "kept.json"


def publish(staged: Path, final: Path) -> None:
    """Moves a finished checkpoint to its name, after its files are safe on the disk and known by
    their checksums. One that is there already, and whole, stays: the same step was saved before,
    say by a signal."""
    seal(staged)
    if final.exists() and damage(final):
        shutil.rmtree(final)
    if final.exists():
        shutil.rmtree(staged)
    else:
        os.replace(staged, final)
        sync(final.parent)


def _same(one: Path, other: Path) -> bool:
    """Whether two sealed folders hold the same files."""
    return (one / CHECKSUMS).read_bytes() == (other / CHECKSUMS).read_bytes()


class Kept(Protocol):
    """A part of a run whose state is in its checkpoints, as plain data."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` returned."""
        ...


def save_kept(folder: Path, parts: Mapping[str, Kept]) -> None:
    """Writes the states of the parts into an unfinished checkpoint."""
    states = {name: part.state() for name, part in parts.items()}
    write_atomically(folder / KEPT, json.dumps(states))


def load_kept(folder: Path, parts: Mapping[str, Kept]) -> None:
    """Gives each part its state back. Raises RunError where a checkpoint has none for one."""
    known = (folder / KEPT).is_file()
    states = json.loads((folder / KEPT).read_text(encoding="utf-8")) if known else {}
    for name, part in parts.items():
        if name not in states:
            raise RunError(
                f"{folder} has no state of the {name}",
                why="this run goes on with it, and was begun with another objective or version",
                fix="resume with the old settings, or start a new run with the checkpoint as "
                "--model",
            )
        part.restore(states[name])


class Checkpoints:
    """Checkpoints and saved models of a run: opened, written whole, read again.

    ``trainer`` is transformers' part of the trainer: its model, optimizer, state and processes.
    ``signals`` and ``best`` are callbacks of it.
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
        self.signals, self.best = SignalCallback(), BestCheckpoint()
        self.callbacks = [self.signals, self.best]
        self.kept: dict[str, Kept] = {
            "skipped_updates": recorder.finite,
            "collapse": recorder.collapse,
        }
        if objective.filter is not None:
            self.kept["filter"] = objective.filter
        #: Where an unfinished checkpoint is written just now.
        self.staging: str | None = None
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
            self._back_at = None
            if checkpoint is not None:
                self._load_kept(checkpoint)
                self.best.load(checkpoint)
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
        here = machine(self.args.world_size, self.objective.first_policy)
        records = open_run(
            self.folder,
            checkpoint,
            settings,
            {**about, "machine": here},
            data_hash=data_hash(self.collector.groups),
            seed=self.args.seed,
            finished=self.is_finished(checkpoint),
        )
        self.recorder.open(records)
        return checkpoint

    def is_finished(self, checkpoint: Path | None) -> bool:
        """Whether no step is left after a checkpoint."""
        return checkpoint is not None and checkpoint_step(checkpoint) >= self.collector.total_steps

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
        load_kept(checkpoint, self.kept)
        if self.objective.judges is not None:
            self.objective.judges.load(checkpoint)

    @property
    def step_of_weights(self) -> int:
        """The optimiser step that the model's weights come from."""
        return self.trainer.state.global_step if self._back_at is None else self._back_at

    def ended_state(self, checkpoint: Path) -> TrainerState:
        """The state of a run that has come to its end."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        state.best_model_checkpoint = self.best.place
        return state

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
        self._back_at = checkpoint_number(Path(checkpoint))

    def load_optimizer(self, checkpoint: str | None) -> bool:
        """Optimizer and scheduler, in shards; False where transformers can do it."""
        here = None if checkpoint is None else Path(checkpoint)
        if here is None or not (self.trainer.is_fsdp_enabled or in_shards(here)):
            return False
        load_state(self.trainer.model, self._optimizer, here)  # type: ignore[arg-type]
        self._scheduler.load_state_dict(torch.load(here / SCHEDULER_NAME, weights_only=True))
        return True

    @property
    def _optimizer(self) -> Any:
        assert self.trainer.optimizer is not None
        return self.trainer.optimizer

    @property
    def _scheduler(self) -> Any:
        assert self.trainer.lr_scheduler is not None
        return self.trainer.lr_scheduler

    # -- writing -----------------------------------------------------------------------------------

    def save(self, write: Callable[[], None]) -> None:
        """A checkpoint of this step, written beside and renamed, so that a killed writer leaves no
        checkpoint at all. ``write`` writes transformers' part into ``staging``.

        Raises DiskError where something could not be written.
        """
        state, step = self.trainer.state, self.trainer.state.global_step
        final = self.folder / f"checkpoint-{step}"
        staged = self.folder / STAGING / final.name
        with self.recorder.clock.stage("records"), self._staged(staged):
            self.recorder.flush(step)
            self.staging = str(staged.parent)
            try:
                write()
            finally:
                self.staging = None
            self.collector.save(staged, step)
            self.trainer.accelerator.wait_for_everyone()
            if state.best_model_checkpoint == str(staged):
                state.best_model_checkpoint = str(final)
            if self.args.should_save:
                save_kept(staged, self.kept)
                if self.objective.judges is not None:
                    self.objective.judges.save(staged)
                state.save_to_json(str(staged / TRAINER_STATE_NAME))
                publish(staged, final)
                self._delete_old()

    def save_optimizer(self, folder: Path) -> None:
        """Optimizer and scheduler of a model that FSDP cut."""
        ranks = (self.args.process_index, self.args.world_size)
        save_shards(self.trainer.model, self._optimizer, folder, *ranks)  # type: ignore[arg-type]
        if self.args.should_save:
            torch.save(self._scheduler.state_dict(), folder / SCHEDULER_NAME)

    def save_files(self, folder: str, state_dict: dict[str, Any] | None) -> None:
        """An ordinary model folder; of a checkpoint with an adapter, the adapter alone.
        transformers' adds a pickle that holds the hub token."""
        if not self.args.should_save:
            return
        copy, tokenizer = self.forwards.copy, self.trainer.processing_class
        model = (
            self.trainer.accelerator.unwrap_model(self.trainer.model)
            if copy is None
            else copy.model
        )
        if not has_adapter(model):
            model.save_pretrained(folder, state_dict=state_dict)
        elif self.staging is None:
            merged(model).save_pretrained(folder)
        else:
            save_adapter(model, folder)
        assert tokenizer is not None
        tokenizer.save_pretrained(folder)
        if self.staging is None:
            self.recorder.template.boundary.warn_of_servers()
            self.write_card(Path(folder))

    def save_whole_model(self, folder: Path) -> None:
        """``save_model`` into a folder that appears whole. One that holds the same model stays as
        it is; another one is set aside.

        Raises DiskError where it could not be written.
        """
        staged = folder.parent / STAGING / folder.name
        with self._staged(staged):
            self.trainer.save_model(str(staged))
            self.trainer.accelerator.wait_for_everyone()
            if not self.args.should_save:
                return
            seal(staged)
            if folder.exists() and not damage(folder) and _same(staged, folder):
                return
            if folder.exists():
                warn(f"{folder.name} is now {put_aside(folder).name}")
            os.replace(staged, folder)
            sync(folder.parent)

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
    def _staged(self, staged: Path) -> Generator[None]:
        """Clears the staging folder of what a killed writer left there, and after it."""
        clear = self.args.should_save
        try:
            with writing(staged.name, staged.parent.parent):
                if clear:
                    shutil.rmtree(staged.parent, ignore_errors=True)
                self.trainer.accelerator.wait_for_everyone()
                yield
        finally:
            if clear:
                shutil.rmtree(staged.parent, ignore_errors=True)

    def _delete_old(self) -> None:
        """Keeps ``save_total_limit`` checkpoints, of which the newest has just been written whole,
        and the best."""
        limit, best = self.args.save_total_limit, self.trainer.state.best_model_checkpoint
        for path in checkpoints(self.folder)[limit:] if limit else []:
            if best is None or path.name != Path(best).name:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def all_stay(self) -> Generator[None]:
        """transformers would delete the newest checkpoint where one may stay and another is
        better: a run that was stopped could not go on."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit
