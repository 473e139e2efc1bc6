"""Checkpoints that appear whole or not at all: written in a staging folder, synced, renamed."""

import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from native_reasoning.config.errors import RunError, warn
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.model.adapters import has_adapter, load_adapter, merged, save_adapter
from native_reasoning.model.gathered import WholeCopy, fill
from native_reasoning.model.policy import load_model
from native_reasoning.model.shards import in_shards, load_state, save_shards
from native_reasoning.records.clock import Clock
from native_reasoning.records.disk import (
    CHECKSUMS,
    damage,
    put_aside,
    seal,
    sync,
    write_atomically,
    writing,
)
from native_reasoning.training.callbacks import BestCheckpoint
from native_reasoning.training.resume import checkpoint_number, checkpoints

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


class WholeCheckpoints(Trainer):
    """A Trainer whose checkpoints appear whole. Abstract: ``before_checkpoint`` and
    ``add_to_checkpoint`` are for the subclass."""

    _staging: str | None = None
    #: What ``KEPT`` holds.
    kept: Mapping[str, Kept] = {}
    args: NRTConfig
    clock: Clock
    #: What stands in for a model that is cut among ranks, wherever no gradient is needed.
    whole_copy: WholeCopy | None = None
    #: The step of the best checkpoint, while the model has its weights in place of the last ones.
    _back_at: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.best = BestCheckpoint()
        self.add_callback(self.best)

    @contextmanager
    def whole_model(self) -> Generator[Any]:
        """The model for forwards without gradients, of which each rank may make its own number."""
        if self.whole_copy is None:
            yield self.model_wrapped
            return
        cut = self.accelerator.unwrap_model(self.model_wrapped)
        with self.whole_copy.filled(cut) as model, self.accelerator.autocast():
            yield model

    def load_kept(self, checkpoint: Path) -> None:
        """What a checkpoint holds besides transformers' own."""
        load_kept(checkpoint, self.kept)

    def go_on_from(self, checkpoint: Path) -> None:
        """The same, and where the best checkpoint is now, for which that one is read whole."""
        self.load_kept(checkpoint)
        self.best.load(checkpoint)
        self._back_at = None

    @property
    def step_of_weights(self) -> int:
        """The optimiser step that the model's weights come from."""
        return self.state.global_step if self._back_at is None else self._back_at

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        here = self.accelerator.unwrap_model(self.model if model is None else model)
        if has_adapter(here):
            with self.whole_model():
                into = here if self.whole_copy is None else self.whole_copy.model
                load_adapter(into, Path(resume_from_checkpoint))
                if into is not here:
                    fill(here, into)
        elif self.is_fsdp_enabled:
            fill(here, load_model(resume_from_checkpoint, self.args))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer, scheduler = self._both()
        ranks = (self.args.process_index, self.args.world_size)
        save_shards(self.model, optimizer, Path(output_dir), *ranks)  # type: ignore[arg-type]
        if self.args.should_save:
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        here = None if checkpoint is None else Path(checkpoint)
        if here is None or not (self.is_fsdp_enabled or in_shards(here)):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = self._both()
        load_state(self.model, optimizer, here)  # type: ignore[arg-type]
        scheduler.load_state_dict(torch.load(here / SCHEDULER_NAME, weights_only=True))

    def _both(self) -> tuple[Any, Any]:
        assert self.optimizer is not None and self.lr_scheduler is not None
        return self.optimizer, self.lr_scheduler

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        adapter = has_adapter(self.accelerator.unwrap_model(self.model))
        if adapter or self.is_fsdp_enabled:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()
        self._back_at = checkpoint_number(Path(self.state.best_model_checkpoint))

    def before_checkpoint(self) -> None:
        """Called on every rank before a checkpoint is written."""
        raise NotImplementedError

    def add_to_checkpoint(self, folder: Path) -> None:
        """Called on every rank with the unfinished checkpoint's folder."""
        raise NotImplementedError

    def add_to_model(self, folder: Path) -> None:
        """Called on the rank that saves with the folder of a model that is no checkpoint."""
        raise NotImplementedError

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """An ordinary model folder (weights, tokenizer, chat template, end tokens) in
        ``output_dir``, by default the run folder; all ranks call it."""
        if self.whole_copy is None:
            super().save_model(output_dir, _internal_call)
            return
        with self.whole_model():
            self._save(output_dir)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """An ordinary model folder; of a checkpoint with an adapter, the adapter alone.
        transformers' adds a pickle that holds the hub token."""
        if not self.args.should_save:
            return
        folder = output_dir or str(self.args.output_dir)
        copy = self.whole_copy
        model = self.accelerator.unwrap_model(self.model) if copy is None else copy.model
        if not has_adapter(model):
            model.save_pretrained(folder, state_dict=state_dict)
        elif self._staging is None:
            merged(model).save_pretrained(folder)
        else:
            save_adapter(model, folder)
        assert self.processing_class is not None
        self.processing_class.save_pretrained(folder)
        if self._staging is None:
            self.add_to_model(Path(folder))

    def save_whole_model(self, folder: Path) -> None:
        """``save_model`` into a folder that appears whole. One that holds the same model stays as
        it is; another one is set aside.

        Raises DiskError where it could not be written.
        """
        staged = folder.parent / STAGING / folder.name
        with self._staged(staged):
            self.save_model(str(staged))
            self.accelerator.wait_for_everyone()
            if not self.args.should_save:
                return
            seal(staged)
            if folder.exists() and not damage(folder) and _same(staged, folder):
                return
            if folder.exists():
                warn(f"{folder.name} is now {put_aside(folder).name}")
            os.replace(staged, folder)
            sync(folder.parent)

    def load_finished(self, checkpoint: Path) -> None:
        """The state of a run that has come to its end, and the weights that it ended with."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self.state.best_model_checkpoint = self.best.place
        if self.args.load_best_model_at_end and self.best.place is not None:
            self._load_best_model()

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes beside and renames, so that a killed writer leaves no checkpoint at all.

        Raises DiskError where something could not be written.
        """
        final = Path(super()._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        staged = final.parent / STAGING / final.name
        with self.clock.stage("records"), self._staged(staged):
            self._write_checkpoint(model, trial, final, staged)

    @contextmanager
    def _staged(self, staged: Path) -> Generator[None]:
        """Clears the staging folder of what a killed writer left there, and after it."""
        clear = self.args.should_save
        try:
            with writing(staged.name, staged.parent.parent):
                if clear:
                    shutil.rmtree(staged.parent, ignore_errors=True)
                self.accelerator.wait_for_everyone()
                yield
        finally:
            if clear:
                shutil.rmtree(staged.parent, ignore_errors=True)

    def _write_checkpoint(self, model: nn.Module, trial: Any, final: Path, staged: Path) -> None:
        self.before_checkpoint()
        self._staging = str(staged.parent)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.add_to_checkpoint(staged)
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
        if not self.args.should_save:
            return
        save_kept(staged, self.kept)
        self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        publish(staged, final)
        self._delete_old(final.parent)

    def _delete_old(self, folder: Path) -> None:
        """Keeps ``save_total_limit`` checkpoints, of which the newest has just been written whole,
        and the best."""
        limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
        for path in checkpoints(folder)[limit:] if limit else []:
            if best is None or path.name != Path(best).name:
                shutil.rmtree(path, ignore_errors=True)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """transformers' would delete the newest checkpoint where one may stay and another is
        better: a run that was stopped could not go on."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
