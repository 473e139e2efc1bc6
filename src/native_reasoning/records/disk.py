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
from safetensors import SafetensorError

from native_reasoning.config.errors import DiskError, RunError, warn

#: In a sealed folder: the size and SHA-256 of every other file, by its path.
CHECKSUMS = "checksums.json"
#: In the RuntimeErrors by which torch.save says that it could not write.
_TORCH_SAVES = ("PytorchStreamWriter", "inline_container")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


# -- Whole folders ---------------------------------------------------------------------------------


def seal(folder: Path) -> None:
    """Writes ``CHECKSUMS``: from now on ``damage`` knows what belongs in the folder, a card
    (README.md) apart, which may be written anew. All is on the disk afterwards."""
    apart = (folder / CHECKSUMS, folder / "README.md")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in apart]
    about = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in files}
    write_atomically(folder / CHECKSUMS, json.dumps(about, indent=1))
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def damage(folder: Path) -> list[str]:
    """What is wrong with a sealed folder, a line for each file; [] where it is whole. Files that
    were added since do not matter."""
    try:
        about = json.loads((folder / CHECKSUMS).read_bytes())
        items = [(str(name), list(known)) for name, known in about.items()]
    except FileNotFoundError:
        return [f"{CHECKSUMS} is missing"]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return [f"{CHECKSUMS} cannot be read"]
    if not items:
        return [f"{CHECKSUMS} names no file"]
    out = []
    for name, known in items:
        try:
            if (
                Path(name).is_absolute()
                or ".." in Path(name).parts
                or not (folder / name).is_file()
            ):
                raise ValueError(name)  # nor a device, which never ends
            found = _fingerprint(folder / name)
        except (OSError, ValueError):  # a name may hold what no path can
            out.append(f"{name} is missing")
            continue
        if found != known:
            kind = "has another size" if found[:1] != known[:1] else "was changed"
            out.append(f"{name} {kind}")
    return out


def _fingerprint(path: Path) -> list[int | str]:
    """Size in bytes and SHA-256."""
    found, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
            size += len(block)
    return [size, found.hexdigest()]


def put_aside(path: Path) -> Path:
    """Renames a file or folder that is in the way to the first free ``set-aside-N-NAME``."""
    names = (path.with_name(f"set-aside-{n}-{path.name}") for n in itertools.count(1))
    place = next(name for name in names if not name.exists())
    os.replace(path, place)
    return place


# -- One run per folder ----------------------------------------------------------------------------


#: In a run folder; a file, because network disks do not lock folders. It stays there.
LOCK = ".lock"


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """Makes a run folder and keeps it for this process, which may ask for it again inside. Where
    the file system knows no locks it says so on stderr. The system gives the folder back when the
    process ends, however it ends.

    Raises RunError while another process has it, DiskError where it cannot be made.
    """
    with writing(str(folder), None):
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
            raise unwritten(f"{folder}/{LOCK}", error) from error
        warn(f"warning: {folder} cannot be locked ({error.strerror}): start no second run in it")
    try:
        yield
    finally:
        lock.release()


def check_free(folder: Path) -> None:
    """Raises RunError while another process has a run folder; makes nothing."""
    if (folder / LOCK).is_file():
        with claimed(folder):
            pass


# -- Full disks ------------------------------------------------------------------------------------


@contextmanager
def writing(what: str, folder: Path | None) -> Generator[None]:
    """Turns what libraries say of a file that could not be written into a DiskError; ``folder`` is
    the run's, if it is about one."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(name in str(error) for name in _TORCH_SAVES):
            raise
        raise unwritten(what, error, folder) from error


def is_full(error: OSError) -> bool:
    """Whether a file could not be written for lack of room."""
    return error.errno in _FULL


def unwritten(what: str, error: Exception, folder: Path | None = None) -> DiskError:
    """The error that says so; ``folder`` is the run's, if it is about one."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    full = not isinstance(error, OSError) or is_full(error)  # libraries hide the number
    mend = "make room on the disk" if full else "mend that"
    if folder is None:
        again = "run it again"
    elif any(folder.glob("checkpoint-*")):
        again = f"nrt train --out {folder} --resume"
    else:
        again = "begin again in a new folder: nothing was saved yet"
    return DiskError(
        f"{what} could not be written: {reason}",
        why="it stops here; checkpoints that were saved before are whole",
        fix=f"{mend}, then {again}",
    )
