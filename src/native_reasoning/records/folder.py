"""The run folder: what a run leaves behind, readable by people and by programs::

    config.yaml                 settings, versions, data hash, seed; never a secret
    metrics.jsonl               one object a line, "step" first; no times: runs can be compared
    timings.jsonl               the same with times, which never repeat
    quarantine.jsonl            the rows of each update that was skipped (recorder.FiniteGuard)
    traces/step-A-B.parquet     sampled traces of the optimiser steps A..B, one row a trace
    evaluations/step-A.parquet  the same of held-out questions, as answered after step A
    questions.jsonl             the numbers of every held-out question at each evaluation

Whole files are written beside and renamed, lines are appended; so a killed writer leaves at most a
``*.tmp`` file and half a line, and ``RunFolder.cut_back`` removes both on resume.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from native_reasoning.config.errors import RunError
from native_reasoning.records.disk import free_name, sync, write_atomically
from native_reasoning.records.manifest import manifest, plain_number

CONFIG, METRICS, TIMINGS = "config.yaml", "metrics.jsonl", "timings.jsonl"
QUARANTINE, QUESTIONS = "quarantine.jsonl", "questions.jsonl"
TRACES, EVALUATIONS = "traces", "evaluations"
#: Files of lines, each with its step.
_BY_STEP = (METRICS, TIMINGS, QUARANTINE, QUESTIONS)
#: Folders of tables, with what their files are called: the first and the last step.
_TABLES = {
    TRACES: re.compile(r"step-(\d+)-(\d+)\.parquet"),
    EVALUATIONS: re.compile(r"step-(\d+)\.parquet"),
}
_RUN_MARKS = (
    *(CONFIG, *_BY_STEP, "checkpoint-*", "final"),
    *(f"{name}/*.parquet" for name in _TABLES),
)
PathLike = str | os.PathLike[str]


# -- Rows ------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class HeldOutRow:
    """One sampled trace of an evaluation: trace ``k`` of the held-out question ``row_id`` after
    optimiser step ``step``; step 0 is the model that training began with.

    Text, ``length``, ``closed``, l, b and tokens are as in ``TraceRow``. ``answer_no_think`` is the
    answer that was sampled after no trace, the same for every ``k``. ``correct`` and
    ``correct_no_think`` say how right the sampled answers are, in 0..1.
    """

    step: int
    row_id: int
    k: int
    prompt: str
    trace: str
    answer: str
    sampled_answer: str
    answer_no_think: str
    closed: bool
    length: int
    correct: float
    correct_no_think: float
    answer_logps: Sequence[float]
    baseline_logps: Sequence[float]
    answer_tokens: Sequence[str]


_ARROW: dict[Any, pa.DataType] = {
    int: pa.int64(),
    bool: pa.bool_(),
    str: pa.string(),
    float: pa.float32(),
    Sequence[float]: pa.list_(pa.float32()),
    Sequence[str]: pa.list_(pa.string()),
}
#: The columns of the tables: the fields of a row.
TRACE_SCHEMA, HELD_OUT_SCHEMA = (
    pa.schema([(field.name, _ARROW[field.type]) for field in fields(row)])
    for row in (TraceRow, HeldOutRow)
)
SCHEMAS = {TRACES: TRACE_SCHEMA, EVALUATIONS: HELD_OUT_SCHEMA}


def storable(value: Any) -> Any:
    """Text, also in lists, with a "?" for each lone surrogate, which UTF-8 cannot hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return [storable(x) for x in value] if isinstance(value, list | tuple) else value


# -- Writing ---------------------------------------------------------------------------------------


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

    def append_questions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A line of questions.jsonl for each held-out question of an evaluation."""
        self._append(QUESTIONS, step, *rows)

    def write_traces(self, rows: Sequence[TraceRow], last_step: int) -> None:
        """Writes rows as one file, named after their first step and ``last_step``."""
        if not self.writes or not rows:
            return
        rows = sorted(rows, key=lambda row: row.step)
        assert rows[-1].step <= last_step, (rows[-1].step, last_step)
        path = self.path / TRACES / _traces_name(rows[0].step, last_step)
        assert not path.exists(), path
        _write_table(path, _table_of(rows, TRACE_SCHEMA))

    def write_held_out(self, rows: Sequence[HeldOutRow]) -> None:
        """One evaluation, in place of an earlier one at the same step."""
        if self.writes:
            (step,) = {row.step for row in rows}
            path = self.path / EVALUATIONS / f"step-{step:06d}.parquet"
            _write_table(path, _table_of(rows, HELD_OUT_SCHEMA))

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
        for path in map(self.path.joinpath, _BY_STEP):
            kept = b"".join(line + b"\n" for line, row in lines_of(path) if row["step"] <= step)
            if path.exists() and path.read_bytes() != kept:
                write_atomically(path, kept)
        for name in _TABLES:
            for steps, file in table_files(self.path, name):
                first, last = steps[0], steps[-1]
                if first <= step < last:
                    table = read_table(file).filter(pc.field("step") <= step)
                    _write_table(file.with_name(_traces_name(first, step)), table)
                if last > step:
                    file.unlink()

    def _append(self, name: str, step: int, *rows: Mapping[str, Any]) -> None:
        if self.writes:
            with open(self.path / name, "ab") as file:  # one write: no half lines but by a kill
                file.write(b"".join(_line(step, values) for values in rows))


def _line(step: int, values: Mapping[str, Any]) -> bytes:
    assert not {"step", "non_finite"} & set(values), sorted(values)
    plain = {k: v if isinstance(v, list) else plain_number(v) for k, v in values.items()}
    line = {"step": step, **plain}
    bad = [key for key, x in line.items() if isinstance(x, float) and not math.isfinite(x)]
    line |= dict.fromkeys(bad) | ({"non_finite": bad} if bad else {})
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def _traces_name(first: int, last: int) -> str:
    return f"step-{first:06d}-{last:06d}.parquet"


def _table_of(rows: Sequence[TraceRow | HeldOutRow], schema: pa.Schema) -> pa.Table:
    plain = [{name: storable(value) for name, value in vars(row).items()} for row in rows]
    return pa.Table.from_pylist(plain, schema=schema)


def _write_table(path: Path, table: pa.Table) -> None:
    write_atomically(path, lambda beside: pq.write_table(table, beside, compression="zstd"))


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


def read_questions(folder: PathLike) -> list[dict[str, Any]]:
    """The same for questions.jsonl: ``held_out.question_rows`` says what a line has."""
    return [row for _, row in lines_of(Path(folder) / QUESTIONS)]


def read_traces(folder: PathLike) -> pa.Table:
    """All rows in step order, an empty table if none. Raises RunError where a file is damaged."""
    return _read_tables(folder, TRACES)


def read_held_out(folder: PathLike) -> pa.Table:
    """The same for the rows of all evaluations."""
    return _read_tables(folder, EVALUATIONS)


def _read_tables(folder: PathLike, name: str) -> pa.Table:
    tables = [read_table(file) for _, file in table_files(Path(folder), name)]
    return pa.concat_tables([SCHEMAS[name].empty_table(), *tables])


def table_files(folder: Path, name: str) -> list[tuple[list[int], Path]]:
    """The files of ``TRACES`` or ``EVALUATIONS`` with the steps in their names, in step order."""
    found = ((_TABLES[name].fullmatch(path.name), path) for path in (folder / name).glob("*"))
    return sorted(([*map(int, steps.groups())], path) for steps, path in found if steps)


def read_table(path: Path) -> pa.Table:
    """A file's rows. Raises RunError where it is damaged or has other columns."""
    name = path.parent.name
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        return table.select(SCHEMAS[name].names).cast(SCHEMAS[name])
    except (pa.ArrowException, KeyError, OSError) as error:
        raise RunError(
            f"{path} cannot be read as {name} ({error})",
            why="its rows are part of the run's record",
            fix="restore the file, or move it out of the folder to go on without these rows",
        ) from error


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
