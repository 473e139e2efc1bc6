"""Checkpoints that appear whole or not at all: written in a staging folder, synced, renamed."""

import os
import re
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

#: Does not match transformers' ``checkpoint-*``, so that an unfinished one is never resumed from.
STAGING = ".saving"
_NAME = re.compile(r"checkpoint-(\d+)")


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the highest step that holds a trainer state, or None."""
    found = [
        (int(match[1]), path)
        for path in Path(folder).glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name)) and (path / TRAINER_STATE_NAME).is_file()
    ]
    return max(found)[1] if found else None


def publish(staged: Path, final: Path) -> None:
    """Moves a finished checkpoint to its name, after its files are safe on the disk."""
    for path in [*staged.rglob("*"), staged]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if final.exists():  # saved again at the same step, say by a second signal
        shutil.rmtree(final)
    os.replace(staged, final)
    shutil.rmtree(staged.parent, ignore_errors=True)
