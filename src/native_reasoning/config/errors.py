"""Errors that a user can act on: what happened, why it matters, what to do.

::

    NativeReasoningError(what, why=..., fix=...)
    ├── ConfigError     (ValueError)    a setting, a preset or a recipe key
    ├── DataError       (ValueError)    a file, a column or its rows
    ├── TemplateError   (ValueError)    a tokenizer or a boundary
    ├── PolicyError     (ValueError)    a model folder or its weights
    └── RunError        (RuntimeError)  a run folder, or training that cannot go on
        └── DiskError                   a file of the run that could not be written

Mistakes of ours are asserts, never one of these.
"""

import argparse
import difflib
import sys
import unicodedata
from collections.abc import Iterable
from functools import partial
from typing import Any, NoReturn


class NativeReasoningError(Exception):
    """``what`` happened, with the value; ``why`` it matters; what to do (``fix``). ``str(error)``
    has all three, one per line. ``exit_code`` is the command line's."""

    exit_code = 2

    def __init__(self, what: str, *, why: str, fix: str) -> None:
        self.what, self.why, self.fix = (" ".join(part.split()) for part in (what, why, fix))
        super().__init__(f"{self.what}\n  why: {self.why}\n  fix: {self.fix}")

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it can come out of another process."""
        return partial(type(self), why=self.why, fix=self.fix), (self.what,)


class ConfigError(NativeReasoningError, ValueError):
    """A setting, a preset or a recipe key is wrong."""


class DataError(NativeReasoningError, ValueError):
    """A data file cannot be read, lacks a column, or has no usable row."""


class TemplateError(NativeReasoningError, ValueError):
    """A tokenizer cannot mark where the trace or the answer ends."""


class PolicyError(NativeReasoningError, ValueError):
    """A model cannot be loaded or is not a causal language model."""


class RunError(NativeReasoningError, RuntimeError):
    """A run folder is in the way, or training cannot go on."""


class DiskError(RunError):
    """A file of the run could not be written, most often because the disk is full."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``' (did you mean …?)'`` or nothing."""
    near = nearest(name, known)
    return f" (did you mean {near!r}?)" if near else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that a misspelt one is nearest to, or nothing."""
    return (difflib.get_close_matches(name, list(known), n=1) or [""])[0]


class UsageParser(argparse.ArgumentParser):
    """argparse, with our error shape."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(
            f"{self.prog}: {message}",
            why="the command line cannot be understood",
            fix=f"{self.prog} --help has examples",
        )


def printable(text: str) -> str:
    """Text that cannot command a terminal: control characters of a model or a file are escaped.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs", "Cf")
        else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


def warn(text: str) -> None:
    """A line for people on stderr; what files and models say in it cannot command a terminal."""
    print(printable(text), file=sys.stderr, flush=True)
