"""Leaving a run, by a signal, and going on with it: from which checkpoint, and as the same run?"""

import json
import os
import pickle
import platform
import re
import signal
import threading
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from native_reasoning.config.errors import RunError, warn
from native_reasoning.model.ranks import from_first_rank, largest_of_ranks, lost_rank
from native_reasoning.records.disk import claimed, damage, is_full, put_aside, unwritten
from native_reasoning.records.folder import CONFIG, RunFolder, read_config

_NAME = re.compile(r"checkpoint-(\d+)")
#: Settings that leave the steps themselves as they were.
FREE = re.compile(
    r"(output_dir|model|data|eval_data|report_to|run_name|(record|report)_traces|disable_tqdm)"
    r"|(eval|save|logging|hub)_.*"
)
#: Settings that say when a run ends; most schedules of the learning rate stretch to it.
LENGTH = ("max_steps", "num_train_epochs")
_STOPPING = (signal.SIGINT, signal.SIGTERM)
#: Saves and goes on; Windows has no such signal.
_SAVING: int | None = getattr(signal, "SIGUSR1", None)
#: In the order of what wins where ranks hear different ones.
_RANKED = (None, _SAVING, *_STOPPING)


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """A run folder for the processes of one run alone (``disk.claimed``): rank 0 holds it.

    Raises RunError where a file read meanwhile would run code, or another rank is gone, DiskError
    where the disk is full.
    """
    with ExitStack() as stack:
        try:
            from_first_rank(lambda: stack.enter_context(claimed(folder)))
            yield
        except pickle.UnpicklingError as error:
            raise RunError(
                f"a checkpoint in {folder} has a file that is not plain data: "
                f"{str(error).splitlines()[0]}",
                why="reading it could run code, and no run of ours writes such a file",
                fix="resume from another checkpoint",
            ) from None
        except Exception as error:
            if is_full(error):
                raise unwritten(error, folder) from error
            lost = lost_rank(error) if isinstance(error, RuntimeError) else None
            if lost is None:
                raise
            raise lost from error


def step_in_name(path: Path) -> int:
    """The optimiser steps behind a checkpoint by its name, -1 where it has no such name."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run folder, the newest first. They may be damaged."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir()]
    named = [path for path in found if step_in_name(path) >= 0]
    return sorted(named, key=step_in_name, reverse=True)


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a run folder, or None. Says on stderr which it passes over."""
    for path in checkpoints(folder):
        if not (wrong := damage(path)):
            return path
        warn(f"passing over {path}, which is damaged: {_few(wrong)}")
    return None


def find_checkpoint(resume: str | Path | bool | None, folder: Path) -> Path | None:
    """What to resume from: nothing, the newest whole checkpoint of ``folder`` (True), or a given
    one.

    Raises RunError if there is none, the given one is damaged, or it holds no more than a model.
    """
    if resume is None or resume is False:
        return None
    found = newest_checkpoint(folder) if resume is True else Path(resume)
    if found is not None and not found.is_dir():
        found = folder / found  # by its name in the run folder
    if found is None or not found.is_dir():
        there = ", ".join(path.name for path in checkpoints(folder))
        raise RunError(
            f"no whole checkpoint in {found or folder}",
            why="there is nothing to resume from",
            fix=f"--resume with one of: {there}"
            if there and found is not None
            else "train without --resume, or name another run folder",
        )
    if resume is not True and (wrong := damage(found)):
        raise RunError(
            f"{found} is damaged: {_few(wrong)}",
            why="a run that went on from it would not be the run that was saved",
            fix="--resume alone takes the newest whole checkpoint",
        )
    if not any(found.glob("rng_state*.pth")):
        raise RunError(
            f"{found} holds the model alone",
            why="without optimizer, schedule and random state a run would go on as another one",
            fix="start a new run from it as --model; train without --save-only-model",
        )
    return found


def set_aside(folder: Path, step: int) -> None:
    """Renames checkpoints of later steps than ``step``: the run goes on from there and will write
    them anew, and a damaged one must not count as the newest."""
    for path in checkpoints(folder):
        if step_in_name(path) > step:
            put_aside(path)


def _few(lines: list[str]) -> str:
    more = f", and {len(lines) - 3} more" if len(lines) > 3 else ""
    return ", ".join(lines[:3]) + more


def open_run(
    folder: Path,
    step: int | None,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    finished: bool = False,
) -> RunFolder:
    """The run folder, of a new run, or (``step``) cut back to a checkpoint and compared; for the
    rank that writes. ``about`` goes into config.yaml beside the settings, with ``data_hash``,
    ``model_hash`` and ``machine``. ``finished`` says that no step is left after the checkpoint.

    Raises RunError if the folder is taken, or the training rows or the model are others. Settings
    or a machine that changed are said on stderr and written to config.yaml: the run goes on, but
    not with the same bits.
    """
    records = RunFolder.create(folder, resume=step is not None)
    before = read_config(folder) if step is not None and (folder / CONFIG).is_file() else {}
    if before.get("data_hash") not in (None, about["data_hash"]):
        raise RunError(
            "the training rows are not those that this run began with",
            why="row numbers, random numbers and the order of the data belong to the old rows",
            fix="resume with the old data, or start a new run from the checkpoint as --model",
        )
    if before.get("model_hash") not in (None, about["model_hash"]):
        raise RunError(
            "the model is not the one that this run began with",
            why="an adapter, and a policy that an objective asks, belong to the weights below them",
            fix=f"resume with --model {before['config'].get('model')}, or start a new run",
        )
    if step is not None:  # in this order: killed in between, the run can still go on from here
        set_aside(folder, step)
        records.cut_back(step)
    changed = differences(before, settings, about["machine"]) if before else []
    told = "; ".join(changed)
    if changed and finished:
        warn(f"{folder} is finished, and nothing is trained with {told}")
    elif changed:
        warn(f"resuming, not as an uninterrupted run: {told}")
        about = {**about, "changed_on_resume": [*before.get("changed_on_resume", []), *changed]}
    if not before or (changed and not finished):
        records.write_config(settings, **about)
    return records


def machine(world_size: int) -> dict[str, Any]:
    """What equal bits depend on besides versions: processor, threads, processes."""
    return {
        "processor": f"{platform.machine()} {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "processes": world_size,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def differences(
    before: Mapping[str, Any], settings: Mapping[str, Any], here: Mapping[str, Any]
) -> list[str]:
    """What changed since config.yaml (``before``) was written, as ``name old -> new``: settings
    that matter to the steps, and the machine."""
    named = [(before["config"], settings), (before.get("machine", {}), here)]
    free = () if any(map(_stretches, named[0])) else LENGTH
    out = []
    for old, new in named:
        for name in sorted({*old, *new}):
            was, now = (json.dumps(of.get(name), sort_keys=True, default=str) for of in (old, new))
            if was != now and not FREE.fullmatch(name) and name not in free:
                out.append(f"{name} {was} -> {now}")
    return out


def _stretches(settings: Mapping[str, Any]) -> bool:
    """Whether the learning rate of a step depends on the length of the run."""
    kind, warmup = settings.get("lr_scheduler_type"), settings.get("warmup_steps") or 0
    return kind != "constant" and (kind != "constant_with_warmup" or 0 < float(warmup) < 1)


# -- Leaving it ------------------------------------------------------------------------------------


class SignalCallback(TrainerCallback):
    """SIGTERM and SIGINT save at the end of the step and leave; a second SIGINT leaves at once.
    SIGUSR1 saves at the end of the step and goes on.

    ``received`` is the number of the signal to leave by, for the exit code (128 + it), or None; all
    ranks have the same.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._heard: int | None = None  # by this rank
        self._save = False
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.received, self._heard, self._save = None, None, False
        if threading.current_thread() is threading.main_thread():
            heard = [*_STOPPING, *([] if _SAVING is None else [_SAVING])]
            self._before = {number: signal.signal(number, self._note) for number in heard}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        save, self._save = self._save, False  # one that comes from now on is for the next step
        heard = self._agreed(self._heard or (_SAVING if save else None), args)
        if heard is None:
            return
        control.should_save = True
        if heard != _SAVING:
            self.received = heard
            control.should_training_stop = True

    def _agreed(self, mine: int | None, args: TrainingArguments) -> int | None:
        return _RANKED[largest_of_ranks(_RANKED.index(mine), args.device)]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.received = self._agreed(self._heard, args)  # one that came after the last step

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._heard is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == _SAVING:
            self._save, then = True, "then going on"
        else:
            self._heard, then = number, "then leaving"
        name = signal.Signals(number).name
        told = f"{name}: saving at the end of this step, {then}\n"
        with suppress(OSError):  # print may be what was interrupted, and cannot be entered twice
            os.write(2, told.encode())
