"""The tables of a run folder: what a row says, and Parquet files that are whole or absent."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from native_reasoning.config.errors import RunError
from native_reasoning.records.disk import write_atomically


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


def _schema(row: type) -> pa.Schema:
    return pa.schema([(field.name, _ARROW[field.type]) for field in fields(row)])


#: The columns of traces/*.parquet and of evaluations/*.parquet: the fields of a row.
TRACE_SCHEMA, HELD_OUT_SCHEMA = _schema(TraceRow), _schema(HeldOutRow)


def table_of(rows: Iterable[TraceRow | HeldOutRow], schema: pa.Schema) -> pa.Table:
    """The rows as a table. Text that UTF-8 cannot hold gets a "?" for each lone surrogate."""
    plain = [{name: storable(value) for name, value in vars(row).items()} for row in rows]
    return pa.Table.from_pylist(plain, schema=schema)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a whole file, beside and renamed."""
    write_atomically(path, lambda beside: pq.write_table(table, beside, compression="zstd"))


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A file's rows. Raises RunError where it is damaged or has other columns."""
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise RunError(
            f"{path} cannot be read as {path.parent.name} ({error})",
            why="its rows are part of the run's record",
            fix="restore the file, or move it out of the folder to go on without these rows",
        ) from error


def storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return [storable(x) for x in value] if isinstance(value, list | tuple) else value
