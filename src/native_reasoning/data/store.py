"""Files of prepared rows: Arrow tables, memory-mapped, written whole or not at all.

They lie in ``$HF_HOME/native_reasoning`` (``~/.cache/huggingface/native_reasoning``), each under a
name made from all that its contents depend on, so a file that is there is right. Whoever kills a
process in the middle loses the block it was at. The folder may be deleted when nothing runs.
"""

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from native_reasoning.config.errors import DataError

#: Counted up when the files or what goes into them change.
FORMAT = 1
#: Files that are mapped at a time, of 2 to 10 MB each.
_OPEN = 16
_END = b"nrt1"


def cache_folder() -> Path:
    """The folder of prepared rows; one that ends with the process where it cannot be written."""
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = Path(home).expanduser() / "native_reasoning"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return Path(_temporary().name)


@lru_cache(maxsize=1)
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="native_reasoning-", ignore_cleanup_errors=True)


def key_of(*parts: Any) -> str:
    """A name for what depends on ``parts`` (of JSON's types) and on this version of the package."""
    from native_reasoning import __version__

    text = json.dumps([FORMAT, __version__, *parts])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_table(path: Path, table: pa.Table) -> None:
    """Writes beside and renames; a checksum ends the file. Raises DataError if it cannot be."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    content = sink.getvalue()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.write(zlib.crc32(content).to_bytes(4, "little") + _END)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}",
            why="prepared rows are kept on the disk, so that they need no memory",
            fix="make room there, or set HF_HOME to a folder with more",
        ) from error
    _mapped.cache_clear()


def read_table(path: Path) -> pa.Table:
    """The table, mapped into memory. Raises DataError if it is gone."""
    try:
        return _mapped(str(path))
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} can no longer be read",
            why="prepared rows stay there while they are in use",
            fix="do not delete the cache of a running process; start again, or resume",
        ) from error


def whole_table(path: Path) -> pa.Table | None:
    """The table, or None where there is none, or one that is damaged or was cut off."""
    try:
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
        body, end = content[: len(content) - 8], content[len(content) - 8 :].to_pybytes()
        if end == zlib.crc32(body).to_bytes(4, "little") + _END:
            return _mapped(str(path))
    except (OSError, pa.ArrowException, IndexError):
        pass
    _mapped.cache_clear()  # it may hold what was there before
    return None


@lru_cache(maxsize=_OPEN)
def _mapped(path: str) -> pa.Table:
    with pa.memory_map(path) as file:
        content = file.read_buffer()
    return pa.ipc.open_file(content[: len(content) - 8]).read_all()


@contextmanager
def claimed(path: Path) -> Generator[None]:
    """Holds the right to write ``path`` among all processes; its end, however it comes, frees it.

    Where files cannot be locked everybody writes: the last one wins, with the same contents.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
