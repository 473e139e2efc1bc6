"""Files that are whole or absent, folders that are known to be whole, and one run per folder.

``seal`` writes the SHA-256 of every file of a folder beside them, ``damage`` says what has changed
since. ``claimed`` keeps a second process out of a run folder.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from native_reasoning.config.errors import DiskError, NativeReasoningError, RunError, warn

#: In a sealed folder: the SHA-256 of every other file, by its path.
CHECKSUMS = "checksums.json"
#: In a run folder; a file, because network disks do not lock folders. It stays there.
LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: In the errors by which safetensors and torch.save say that they could not write.
_UNWRITTEN = ("os error", "PytorchStreamWriter", "inline_container")


def write_atomically(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Writes a whole file beside ``path``, to the disk, and renames it: old or new, never half.
    A function as ``content`` writes into the path that it is called with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    if callable(content):
        content(beside)
    elif isinstance(content, str):
        beside.write_text(content, encoding="utf-8", errors="replace", newline="\n")
    else:
        beside.write_bytes(content)
    sync(beside)
    os.replace(beside, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """To the disk. Windows and some network disks cannot do it for a folder, which is passed over;
    raises OSError where it fails for a file."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def free_name(path: Path) -> Path:
    """The path itself, else the first of ``path-2``, ``path-3``, … that is not taken."""
    others = (path.parent / f"{path.name or 'run'}-{n}" for n in itertools.count(2))
    return next(name for name in itertools.chain([path], others) if not name.exists())


def put_aside(path: Path) -> None:
    """Renames a file or folder that is in the way, and says so."""
    place = free_name(path.with_name(f"set-aside-{path.name}"))
    os.replace(path, place)
    warn(f"{path.name} is now {place.name}")


# -- Whole folders ---------------------------------------------------------------------------------


def seal(folder: Path) -> None:
    """Writes ``CHECKSUMS``: from now on ``damage`` knows what belongs in the folder, a card
    (README.md) apart, which may be written anew. All is on the disk afterwards."""
    files = _files(folder)
    about = {n: _sha256(p) for n, p in files.items() if n not in (CHECKSUMS, "README.md")}
    write_atomically(folder / CHECKSUMS, json.dumps(about, indent=1))
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def damage(folder: Path) -> list[str]:
    """What is wrong with a sealed folder, a line for each file; [] where it is whole. Files that
    were added since do not matter."""
    try:
        known = dict[str, str](json.loads((folder / CHECKSUMS).read_bytes()))
        if not known:
            raise ValueError(CHECKSUMS)
    except FileNotFoundError:
        return [f"{CHECKSUMS} is missing"]
    except (ValueError, TypeError):
        return [f"{CHECKSUMS} cannot be read"]
    here = _files(folder)
    return [
        f"{name} was changed" if name in here else f"{name} is missing"
        for name in known
        if name not in here or _sha256(here[name]) != known[name]
    ]


def _files(folder: Path) -> dict[str, Path]:
    """The files in a folder by their names from there."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


# -- One run per folder ----------------------------------------------------------------------------


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """Makes a run folder and keeps it for this process, which may ask for it again inside. Where
    the file system knows no locks it says so on stderr. The system gives the folder back when the
    process ends, however it ends.

    Raises RunError while another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sync(folder.parent)
    lock = FileLock(folder / LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"another process is training into {folder}",
            why="two runs would mix their steps and overwrite each other's checkpoints",
            fix="wait for it or stop it, or name another folder with --out",
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        warn(f"warning: {folder} cannot be locked ({error.strerror}): start no second run in it")
    try:
        yield
    finally:
        lock.release()


def is_full(error: Exception) -> bool:
    """Whether a file could not be written for lack of room, as the system, safetensors or
    torch.save says it."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    ours = isinstance(error, NativeReasoningError)
    return not ours and any(name in str(error) for name in _UNWRITTEN)


def unwritten(error: Exception, folder: Path | None = None) -> DiskError:
    """The error that says so; ``folder`` is the run's, if it is about one."""
    what = getattr(error, "filename", None) or "a file"
    if folder is None:
        again = "run it again"
    elif any(folder.glob("checkpoint-*")):
        again = f"nrt train --out {folder} --resume"
    else:
        again = "begin again in a new folder: nothing was saved yet"
    return DiskError(
        f"{what} could not be written: {(str(error).splitlines() or [''])[0]}",
        why="it stops here; checkpoints that were saved before are whole",
        fix=f"make room on the disk, then {again}",
    )
