"""The run folder: what a run leaves behind, readable by people and by programs::

    config.yaml               settings, versions, data hash, seed, command; never a secret
    metrics.jsonl             one object a line, "step" first; no times: runs can be compared
    timings.jsonl             the same with times, which never repeat
    quarantine.jsonl          the rows of each update that was skipped (callbacks.FiniteGuard)
    traces/step-A-B.parquet   sampled traces of the optimiser steps A..B, one row a trace

Whole files are written beside and renamed, lines are appended; so a killed writer leaves at most a
``*.tmp`` file and half a line, and ``RunFolder.cut_back`` removes both on resume.
"""

import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from native_reasoning.disk import sync, write_atomically
from native_reasoning.errors import RunError
from native_reasoning.manifest import manifest, plain_number

CONFIG, METRICS, TIMINGS, TRACES = "config.yaml", "metrics.jsonl", "timings.jsonl", "traces"
QUARANTINE = "quarantine.jsonl"
#: Files of lines, each with its step.
_BY_STEP = (METRICS, TIMINGS, QUARANTINE)

PathLike = str | os.PathLike[str]
_RUN_MARKS = (CONFIG, *_BY_STEP, "checkpoint-*", "final", f"{TRACES}/*.parquet")
_TRACE_NAME = "step-{:06d}-{:06d}.parquet"
_TRACE_FILE = re.compile(r"step-(\d+)-(\d+)\.parquet")


@dataclass(frozen=True)
class TraceRow:
    """One sampled trace: trace ``k`` of the data row ``row_id`` at optimiser step ``step``.

    ``prompt``, ``trace``, ``answer`` (the reference) and ``sampled_answer`` ("" if there is none)
    are text; ``length`` counts the trace's tokens; it was ``closed`` by the tag, ``ended`` by an
    end-of-turn token, or cut. ``answer_logps`` is l and ``baseline_logps`` b (nats, one per answer
    token), ``answer_tokens`` the same tokens as text: two entries for the answer ``4<end>``.
    """

    step: int
    row_id: int
    k: int
    prompt: str
    trace: str
    answer: str
    sampled_answer: str
    closed: bool
    ended: bool
    length: int
    reward: float
    baseline_reward: float
    advantage: float
    answer_logps: Sequence[float]
    baseline_logps: Sequence[float]
    answer_tokens: Sequence[str]


_ARROW = {
    int: pa.int64(),
    bool: pa.bool_(),
    str: pa.string(),
    float: pa.float32(),
    Sequence[float]: pa.list_(pa.float32()),
    Sequence[str]: pa.list_(pa.string()),
}
#: The columns of traces/*.parquet: the fields of ``TraceRow``.
TRACE_SCHEMA = pa.schema([(field.name, _ARROW[field.type]) for field in fields(TraceRow)])


class RunFolder:
    """Writes one run's folder. Where ``writes`` is False (every rank but 0) it does nothing."""

    def __init__(self, path: PathLike, *, writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes
        self._rows: list[TraceRow] = []
        self._flushed = -1

    @classmethod
    def create(cls, path: PathLike, *, resume: bool) -> "RunFolder":
        """Makes the folder, or opens an existing run if and only if ``resume``.

        Raises RunError where ``path`` is a file, or where it holds a run and ``resume`` is False.
        For the rank that writes alone: the others would find what it has just made.
        """
        folder = cls(path)
        if folder.path.exists() and not folder.path.is_dir():
            problem, go_on, found = "is a file, not a folder", "", []
        else:
            folder.path.mkdir(parents=True, exist_ok=True)
            found = sorted(hit.name for mark in _RUN_MARKS for hit in folder.path.glob(mark))
            problem = f"already holds a run ({', '.join(found[:3])})"
            go_on = "--resume to go on with it, or "
        if folder.path.is_dir() and (resume or not found):
            folder._flushed = max((last for _, last, _ in _trace_files(folder.path)), default=-1)
            return folder
        raise RunError(
            f"{path} {problem}",
            why="a run writes into a folder of its own, and nothing is ever overwritten",
            fix=f"{go_on}a new folder: {_free_name(folder.path)}",
        )

    def write_config(
        self,
        config: Mapping[str, Any],
        *,
        data_hash: str | None,
        seed: int,
        command: Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """config.yaml: the settings under ``config``; ``command`` is sys.argv unless given.

        ``extra`` has further entries, say the machine. Secrets are left out (manifest.py).
        """
        if not self.writes:
            return
        text = manifest(config, data_hash, seed, command or sys.argv, extra or {})
        write_atomically(self.path / CONFIG, text.encode("utf-8", "replace"))

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

    def add_traces(self, rows: Iterable[TraceRow]) -> None:
        """Keeps rows until ``flush_traces``."""
        self._rows.extend(rows if self.writes else ())

    def flush_traces(self, last_step: int) -> None:
        """Writes the kept rows as one file, named after their first step and ``last_step``."""
        rows = sorted(self._rows, key=lambda row: row.step)
        if not rows:
            return
        first = rows[0].step
        assert self._flushed < first, (self._flushed, first)
        assert rows[-1].step <= last_step, (rows[-1].step, last_step)
        plain = [{name: _storable(value) for name, value in vars(row).items()} for row in rows]
        table = pa.Table.from_pylist(plain, schema=TRACE_SCHEMA)
        _write_table(self.path / TRACES / _TRACE_NAME.format(first, last_step), table)
        self._flushed, self._rows = last_step, []

    def sync(self) -> None:
        """Makes the lines so far survive a power cut; for checkpoints, because it is slow."""
        if self.writes:
            for path in [*filter(Path.exists, map(self.path.joinpath, _BY_STEP)), self.path]:
                sync(path)

    def cut_back(self, step: int) -> None:
        """Forgets all after ``step``: lines, trace rows, half a last line, ``*.tmp`` files.

        To be called on resume with the checkpoint's step. Raises RunError where a file is damaged.
        """
        if not self.writes:
            return
        leftovers = [*self.path.glob("*.tmp"), *self.path.glob(f"{TRACES}/*.tmp")]
        for leftover in filter(Path.is_file, leftovers):
            leftover.unlink()
        for name in _BY_STEP:
            old = (self.path / name).read_bytes() if (self.path / name).exists() else b""
            kept = [line for line, row in lines_of(self.path / name) if row["step"] <= step]
            new = b"".join(line + b"\n" for line in kept)
            if new != old:
                write_atomically(self.path / name, new)
        for first, last, file in _trace_files(self.path):
            if last > step:
                table = _read_table(file) if first <= step else TRACE_SCHEMA.empty_table()
                table = table.filter(pc.field("step") <= step)
                if table.num_rows:
                    _write_table(file.with_name(_TRACE_NAME.format(first, step)), table)
                file.unlink()
        self._rows, self._flushed = [], step

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


def read_config(folder: PathLike) -> dict[str, Any]:
    """config.yaml as written (manifest.py). Raises RunError where it cannot be read."""
    path = Path(folder) / CONFIG
    kinds = {"config": dict, "machine": dict, "changed_on_resume": list}
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
        if all(isinstance(found.get(name, kind()), kind) for name, kind in kinds.items()):
            return found
        problem = "it holds no settings"
    except (yaml.YAMLError, OSError, ValueError, AttributeError, RecursionError) as error:
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
    tables = [_read_table(file) for _, _, file in _trace_files(Path(folder))]
    return pa.concat_tables([TRACE_SCHEMA.empty_table(), *tables])


def lines_of(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each line with what it says. A last line that cannot be read was cut off by a kill."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    read: list[tuple[bytes, dict[str, Any]]] = []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            if i + 1 == len(lines):
                break
            raise RunError(
                f"{path} cannot be read: line {i + 1} is {line[:60]!r}",
                why="each line must be one JSON object with a step",
                fix=f"remove line {i + 1}",
            ) from None
        read.append((line, row))
    return read


def _trace_files(folder: Path) -> list[tuple[int, int, Path]]:
    """(first step, last step, file) of each file of traces, in step order."""
    found = ((_TRACE_FILE.fullmatch(path.name), path) for path in (folder / TRACES).glob("*"))
    return sorted((int(name[1]), int(name[2]), path) for name, path in found if name)


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        return table.select(TRACE_SCHEMA.names).cast(TRACE_SCHEMA)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise RunError(
            f"{path} cannot be read as traces ({error})",
            why="its rows are part of the run's record",
            fix="restore the file, or move it out of the folder to go on without these rows",
        ) from error


def _write_table(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def _storable(value: Any) -> Any:
    """Text that UTF-8 can hold: a lone surrogate becomes "?"."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return [_storable(x) for x in value] if isinstance(value, list | tuple) else value


def _free_name(path: Path) -> Path:
    """runs/first -> runs/first-2, the first such name that is not taken."""
    stem = re.sub(r"-\d{1,3}$", "", path.name) or "run"
    names = (path.parent / f"{stem}-{n}" for n in itertools.count(2))
    return next(name for name in names if not name.exists())
