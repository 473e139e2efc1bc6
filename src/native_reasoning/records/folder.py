"""The run folder: what a run leaves behind, readable by people and by programs::

    config.yaml                 settings, versions, data hash, seed; never a secret
    metrics.jsonl               one object a line, "step" first; no times: runs can be compared
    timings.jsonl               the same with times, which never repeat
    quarantine.jsonl            the rows of each update that was skipped (callbacks.FiniteGuard)
    traces/step-A-B.parquet     sampled traces of the optimiser steps A..B, one row a trace
    evaluations/step-A.parquet  the same of held-out questions, as answered after step A

Whole files are written beside and renamed, lines are appended; so a killed writer leaves at most a
``*.tmp`` file and half a line, and ``RunFolder.cut_back`` removes both on resume.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from native_reasoning import __version__
from native_reasoning.config.errors import RunError
from native_reasoning.records.disk import free_name, sync, write_atomically
from native_reasoning.records.tables import (
    HELD_OUT_SCHEMA,
    TRACE_SCHEMA,
    HeldOutRow,
    TraceRow,
    read_table,
    table_of,
    write_table,
)

CONFIG, METRICS, TIMINGS, TRACES = "config.yaml", "metrics.jsonl", "timings.jsonl", "traces"
QUARANTINE, EVALUATIONS = "quarantine.jsonl", "evaluations"
#: Files of lines, each with its step.
_BY_STEP = (METRICS, TIMINGS, QUARANTINE)
#: Folders of tables.
_TABLES = (TRACES, EVALUATIONS)

PathLike = str | os.PathLike[str]
_RUN_MARKS = (
    CONFIG,
    *_BY_STEP,
    "checkpoint-*",
    "final",
    *(f"{name}/*.parquet" for name in _TABLES),
)
_TRACE_NAME = "step-{:06d}-{:06d}.parquet"
_TRACE_FILE = re.compile(r"step-(\d+)-(\d+)\.parquet")
_EVALUATION_NAME = "step-{:06d}.parquet"
_EVALUATION_FILE = re.compile(r"step-(\d+)\.parquet")


class RunFolder:
    """Writes one run's folder. Where ``writes`` is False (every rank but 0) it does nothing."""

    def __init__(self, path: PathLike, *, writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes

    @classmethod
    def create(cls, path: PathLike, *, resume: bool) -> "RunFolder":
        """Makes the folder, or opens an existing run if and only if ``resume``.

        Raises RunError where ``path`` is a file, or where it holds a run and ``resume`` is False.
        For the rank that writes alone: the others would find what it has just made.
        """
        folder = cls(path)
        found = sorted(hit.name for mark in _RUN_MARKS for hit in folder.path.glob(mark))
        if folder.path.exists() and not folder.path.is_dir():
            problem = "is a file, not a folder"
        elif found and not resume:
            problem = f"already holds a run ({', '.join(found[:3])})"
        else:
            folder.path.mkdir(parents=True, exist_ok=True)
            return folder
        raise RunError(
            f"{path} {problem}",
            why="a run writes into a folder of its own, and nothing is ever overwritten",
            fix=f"--resume to go on with a run, or a new folder: {free_name(folder.path)}",
        )

    def write_config(self, config: Mapping[str, Any], **about: Any) -> None:
        """config.yaml: the settings under ``config``, and further entries, say the machine.
        Secrets are left out."""
        if self.writes:
            write_atomically(self.path / CONFIG, manifest(config, about))

    def append_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl. Values are numbers, strings or None; no times.

        Numbers that are not finite become null, and their names go to a list ``non_finite``.
        """
        self._append(METRICS, step, values)

    def append_timings(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of timings.jsonl, in the same form."""
        self._append(TIMINGS, step, values)

    def append_quarantine(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of quarantine.jsonl: a row of an update that was skipped."""
        self._append(QUARANTINE, step, values)

    def write_traces(self, rows: Sequence[TraceRow], last_step: int) -> None:
        """Writes rows as one file, named after their first step and ``last_step``."""
        if not self.writes or not rows:
            return
        rows = sorted(rows, key=lambda row: row.step)
        assert rows[-1].step <= last_step, (rows[-1].step, last_step)
        path = self.path / TRACES / _TRACE_NAME.format(rows[0].step, last_step)
        assert not path.exists(), path
        write_table(path, table_of(rows, TRACE_SCHEMA))

    def write_held_out(self, rows: Sequence[HeldOutRow]) -> None:
        """One evaluation, in place of an earlier one at the same step."""
        if self.writes:
            (step,) = {row.step for row in rows}
            name = _EVALUATION_NAME.format(step)
            write_table(self.path / EVALUATIONS / name, table_of(rows, HELD_OUT_SCHEMA))

    def sync(self) -> None:
        """Makes the lines so far survive a power cut; for checkpoints, because it is slow."""
        if self.writes:
            for path in [*filter(Path.exists, map(self.path.joinpath, _BY_STEP)), self.path]:
                sync(path)

    def cut_back(self, step: int) -> None:
        """Forgets all after ``step``, and half a last line and ``*.tmp`` files.

        To be called on resume with the checkpoint's step. Raises RunError where a file is damaged.
        """
        if not self.writes:
            return
        for place in (self.path, *map(self.path.joinpath, _TABLES)):
            for leftover in filter(Path.is_file, place.glob("*.tmp")):
                leftover.unlink()
        for name in _BY_STEP:
            old = (self.path / name).read_bytes() if (self.path / name).exists() else b""
            kept = [line for line, row in lines_of(self.path / name) if row["step"] <= step]
            new = b"".join(line + b"\n" for line in kept)
            if new != old:
                write_atomically(self.path / name, new)
        for first, last, file in trace_files(self.path):
            if first <= step < last:
                table = read_table(file, TRACE_SCHEMA).filter(pc.field("step") <= step)
                write_table(file.with_name(_TRACE_NAME.format(first, step)), table)
            if last > step:
                file.unlink()
        for after, file in evaluation_files(self.path):
            if after > step:
                file.unlink()

    def _append(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        assert not {"step", "non_finite"} & set(values), sorted(values)
        plain = {k: v if isinstance(v, list) else plain_number(v) for k, v in values.items()}
        line = {"step": step, **plain}
        bad = [key for key, x in line.items() if isinstance(x, float) and not math.isfinite(x)]
        line |= dict.fromkeys(bad) | ({"non_finite": bad} if bad else {})
        with open(self.path / name, "ab") as file:  # one write: no half lines but by a kill
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")


# -- Reading ---------------------------------------------------------------------------------------


def read_config(folder: PathLike) -> dict[str, Any]:
    """config.yaml as it was written. Raises RunError where it cannot be read."""
    path = Path(folder) / CONFIG
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
        if isinstance(found["config"], dict):
            return found
        problem = "it holds no settings"
    except (yaml.YAMLError, OSError, ValueError, TypeError, KeyError) as error:
        problem = " ".join(str(error).split())[:300]
    raise RunError(
        f"{path} cannot be read: {problem}",
        why="it says what the run was begun with",
        fix="put the file back as it was, or begin a new run from a checkpoint as --model",
    )


def read_metrics(folder: PathLike) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in file order, without a half-written last one; [] if none."""
    return [row for _, row in lines_of(Path(folder) / METRICS)]


def read_timings(folder: PathLike) -> list[dict[str, Any]]:
    """The same for timings.jsonl."""
    return [row for _, row in lines_of(Path(folder) / TIMINGS)]


def read_traces(folder: PathLike) -> pa.Table:
    """All rows in step order, an empty table if none. Raises RunError where a file is damaged."""
    tables = [read_table(file, TRACE_SCHEMA) for _, _, file in trace_files(Path(folder))]
    return pa.concat_tables([TRACE_SCHEMA.empty_table(), *tables])


def read_held_out(folder: PathLike) -> pa.Table:
    """The same for the rows of all evaluations."""
    tables = [read_table(file, HELD_OUT_SCHEMA) for _, file in evaluation_files(Path(folder))]
    return pa.concat_tables([HELD_OUT_SCHEMA.empty_table(), *tables])


def lines_of(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each line with what it says. A last line that cannot be read was cut off by a kill."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    read: list[tuple[bytes, dict[str, Any]]] = []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, TypeError, KeyError, OverflowError):
            if i + 1 == len(lines):
                break
            raise RunError(
                f"{path} cannot be read: line {i + 1} is {line[:60]!r}",
                why="each line must be one JSON object with a step",
                fix=f"remove line {i + 1}",
            ) from None
        read.append((line, row))
    return read


def evaluation_files(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of each evaluation, in step order."""
    return [(step, path) for (step,), path in _numbered(folder / EVALUATIONS, _EVALUATION_FILE)]


def trace_files(folder: Path) -> list[tuple[int, int, Path]]:
    """(first step, last step, file) of each file of traces, in step order."""
    found = _numbered(folder / TRACES, _TRACE_FILE)
    return [(first, last, path) for (first, last), path in found]


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[list[int], Path]]:
    """The files with such a name, with its numbers, in the order of these."""
    found = ((pattern.fullmatch(path.name), path) for path in folder.glob("*"))
    return sorted(([*map(int, name.groups())], path) for name, path in found if name)


# -- config.yaml -----------------------------------------------------------------------------------


HIDDEN = "<secret>"
#: A setting that is named like one is left out: nobody reads a placeholder back as a token.
_SECRET = re.compile(
    r"(?!.*(bos|eos|pad|unk|sep|cls|mask)_token$).*"
    r"(token|(api|access|private)[_-]?key|secret|passw(or)?d|passphrase|credentials?)",
    re.IGNORECASE,
)
#: What looks like one in the text of another setting is written as ``HIDDEN``.
_LOOKS_SECRET = re.compile(r"\b(?:hf_|sk-|ghp_)\w{16,}|(?<=://)[^\s/@]+:[^\s/@]+(?=@)")
_PACKAGES = ("torch", "transformers", "accelerate")


def manifest(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The text of config.yaml: YAML with sorted keys that ``yaml.safe_load`` reads back.

    Values that YAML lacks are written as their nearest: a tuple as a list, any other object as its
    ``str``. ``about`` has further top-level entries.
    """
    page = _plain({**about, "config": config, "versions": versions()})
    return yaml.safe_dump(page, sort_keys=True, allow_unicode=True, width=100)


def versions() -> dict[str, str]:
    """Installed versions of Python and of what a run's numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found, "native_reasoning": __version__}


def is_secret(name: str) -> bool:
    """Whether a setting's name says that it must not be written down.

    >>> is_secret("hub_token"), is_secret("max_tokens"), is_secret("eos_token")
    (True, False, False)
    """
    return _SECRET.fullmatch(name) is not None


def _plain(value: Any) -> Any:
    """A value in YAML's own types, without secrets."""
    if isinstance(value, Mapping):
        return {str(k): _plain(inner) for k, inner in value.items() if not is_secret(str(k))}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(inner) for inner in value), key=str)
    if value is None or isinstance(value, Real):
        return plain_number(value)
    return _LOOKS_SECRET.sub(HIDDEN, str(value))


def plain_number(value: Any) -> Any:
    """numpy and tensor scalars as Python's int and float; None, bool and text as they are."""
    if value is None or isinstance(value, bool | str):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
