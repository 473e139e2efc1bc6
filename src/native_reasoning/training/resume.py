"""Going on with a run: which checkpoint, and whether it is still the same run."""

import json
import os
import pickle
import platform
import re
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME

from native_reasoning.config.errors import RunError, warn
from native_reasoning.model.ranks import from_first_rank, lost_rank
from native_reasoning.records.disk import claimed, damage, is_full, put_aside, unwritten
from native_reasoning.records.folder import CONFIG, RunFolder, read_config
from native_reasoning.rollout.window import FILE as WINDOW

_NAME = re.compile(r"checkpoint-(\d+)")
#: Settings that leave the steps themselves as they were.
FREE = re.compile(
    r"(output_dir|model|data|eval_data|report_to|run_name|(record|report)_traces|per_device_eval_batch_size"
    r"|rollout_batch_size|disable_tqdm)|(eval|save|logging|hub)_.*"
)
#: Settings that say when a run ends; most schedules of the learning rate stretch to it.
LENGTH = ("max_steps", "num_train_epochs")


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
        except RuntimeError as error:
            if (lost := lost_rank(error)) is None:
                raise
            raise lost from error
        except OSError as error:
            if not is_full(error):
                raise
            raise unwritten(error.filename or "a file of the run", error, folder) from error


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run folder, the newest first. They may be damaged."""
    named = [(_NAME.fullmatch(path.name), path) for path in Path(folder).glob("checkpoint-*")]
    found = [(int(match[1]), path) for match, path in named if match and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


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
    if found is not None and not found.is_dir() and (folder / found).is_dir():
        found = folder / found  # by its name in the run folder
    if found is None or not found.is_dir():
        there = ", ".join(path.name for path in checkpoints(folder))
        raise RunError(
            f"no whole checkpoint in {folder if found is None else found}",
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
        if checkpoint_number(path) > step:
            warn(f"{path.name} is now {put_aside(path).name}")


def checkpoint_number(path: Path) -> int:
    """The step in a checkpoint's name."""
    found = _NAME.fullmatch(path.name)
    assert found, path
    return int(found[1])


def _few(lines: list[str]) -> str:
    more = f", and {len(lines) - 3} more" if len(lines) > 3 else ""
    return ", ".join(lines[:3]) + more


def checkpoint_step(checkpoint: Path) -> int:
    """The optimiser steps that a checkpoint has behind it, whatever its folder is called."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return int(state["global_step"])


def open_run(
    folder: Path,
    checkpoint: Path | None,
    settings: Mapping[str, Any],
    extra: Mapping[str, Any],
    *,
    data_hash: str,
    seed: int,
    finished: bool = False,
) -> RunFolder:
    """The run folder, of a new run, or cut back to ``checkpoint`` and compared; for the rank that
    writes. ``finished`` says that no step is left after ``checkpoint``.

    Raises RunError if it is taken, holds another run, or is finished and asked for with other
    settings. Settings or a machine that changed are said on stderr and written to config.yaml: the
    run goes on, but not with the same bits.
    """
    records = RunFolder.create(folder, resume=checkpoint is not None)
    if checkpoint is None:
        records.write_config(settings, data_hash=data_hash, seed=seed, extra=extra)
        return records
    before = read_config(folder) if (folder / CONFIG).is_file() else {}
    changed = differences(before, settings, extra["machine"]) if before else []
    window_open = any(checkpoint.glob(WINDOW.format("*")))
    moved = other_window(before, settings, extra["machine"]) if window_open else []
    refuse_other_run(before, data_hash, moved)
    if finished and before:
        _refuse_idle(folder, differences(before, settings, before.get("machine", {})))
    # in this order: killed in between, the run can still go on from this checkpoint alone
    set_aside(folder, checkpoint_step(checkpoint))
    records.cut_back(checkpoint_step(checkpoint))
    if changed:
        told = "; ".join(changed)
        warn(f"resuming, not as an uninterrupted run: {told}")
        extra = {**extra, "changed_on_resume": [*before.get("changed_on_resume", []), *changed]}
        records.write_config(settings, data_hash=data_hash, seed=seed, extra=extra)
    return records


def _refuse_idle(folder: Path, changed: list[str]) -> None:
    """Raises RunError for settings that no step would be trained with, and that config.yaml and the
    model's card would state; the length of the run is no such one."""
    idle = [line for line in changed if line.split()[0] not in LENGTH]
    if idle:
        raise RunError(
            f"{folder} is finished, and asked to go on with {_few(idle)}",
            why="no step is left to train with it",
            fix="leave it out, or train longer: a larger --max-steps or --num-train-epochs",
        )


def machine(world_size: int, first_policy: str | None = None) -> dict[str, Any]:
    """What equal bits depend on besides versions: processor, threads, processes, and where the
    objective asks the first policy, which one that is."""
    known = {} if first_policy is None else {"first_policy": first_policy}
    return {
        **known,
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
    named = [(before.get("config", {}), settings), (before.get("machine", {}), here)]
    stretches = any(map(_stretches, (before.get("config", {}), settings)))
    out = []
    for old, new in named:
        for name in sorted({*old, *new}):
            if FREE.fullmatch(name) or (name in LENGTH and not stretches):
                continue
            was, now = _plain(old.get(name)), _plain(new.get(name))
            if was != now:
                out.append(f"{name} {was} -> {now}")
    return out


def other_window(
    before: Mapping[str, Any], settings: Mapping[str, Any], here: Mapping[str, Any]
) -> list[str]:
    """What says which rows a rollout has and how often they are trained on, and is another than in
    config.yaml (``before``). The number of processes is not: rows are dealt out again."""
    old = _rollout(before.get("config") or settings, before.get("machine") or here)
    new = _rollout(settings, here)
    return [f"{name} {old[name]} -> {new[name]}" for name in new if old[name] != new[name]]


def _rollout(settings: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, int]:
    accumulated, seed = settings["gradient_accumulation_steps"], settings.get("data_seed")
    return {
        "prompts of a step": settings["per_device_train_batch_size"]
        * accumulated
        * machine["processes"],
        "steps of a rollout": (settings["steps_per_generation"] or accumulated) // accumulated,
        "num_iterations": settings["num_iterations"],
        "the order's seed": settings["seed"] if seed is None else seed,
    }


def refuse_other_run(before: Mapping[str, Any], data_hash: str, moved: list[str]) -> None:
    """Raises RunError where going on would mix two runs: other data, or an open window of several
    updates that would be another one (``moved``)."""
    if before.get("data_hash") not in (None, data_hash):
        raise RunError(
            "the training rows are not those that this run began with",
            why="row numbers, random numbers and the order of the data belong to the old rows",
            fix="resume with the old data, or start a new run from the checkpoint as --model",
        )
    if moved:
        raise RunError(
            f"in the middle of a rollout's updates, {moved[0]}",
            why="the open rollout was sampled for the old value",
            fix="resume with it (prompts of a step: per_device_train_batch_size × "
            "gradient_accumulation_steps × processes)",
        )


def _stretches(settings: Mapping[str, Any]) -> bool:
    """Whether the learning rate of a step depends on the length of the run."""
    kind, warmup = settings.get("lr_scheduler_type"), settings.get("warmup_steps") or 0
    return kind != "constant" and (kind != "constant_with_warmup" or 0 < float(warmup) < 1)


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
