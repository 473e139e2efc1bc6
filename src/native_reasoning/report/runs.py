"""A run folder as tables: ``load_run``, for notebooks and reports.

Whatever can be read is there; what cannot is told in ``Run.problems``.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from native_reasoning.config.errors import RunError
from native_reasoning.evaluation.grading import Interval, bootstrap_interval
from native_reasoning.objective.types import uplift
from native_reasoning.records.folder import (
    CONFIG,
    METRICS,
    QUARANTINE,
    TIMINGS,
    evaluation_files,
    lines_of,
    read_config,
    trace_files,
)
from native_reasoning.records.tables import HELD_OUT_SCHEMA, TRACE_SCHEMA, read_table, storable

T = TypeVar("T")
#: One of ``Run.problems``.
NO_TRACES = "no traces are there; they are written with each checkpoint and at the end"
#: Recorded steps at the end of a run that say what it is like now.
LATE = 10


@dataclass(frozen=True)
class Run:
    """One run, that of the folder ``path``.

    ``config`` is config.yaml. ``metrics`` and ``timings`` have a row for each logged step,
    ``evaluations`` one for each evaluation, indexed by ``step``, as they were logged: the last may
    be of the best step (``load_best_model_at_end``). docs/diagnostics.md has the names.
    ``traces`` is an Arrow table with a row for each sampled trace (``tables.TraceRow``);
    ``.to_pandas()`` makes a frame of it. ``held_out`` is another, with a row for each trace sampled
    in an evaluation (``tables.HeldOutRow``). ``quarantine`` has the rows of skipped updates.
    ``problems`` says what could not be read or is not there, a sentence each.
    """

    path: Path
    config: dict[str, Any]
    metrics: pd.DataFrame
    evaluations: pd.DataFrame
    timings: pd.DataFrame
    traces: pa.Table
    held_out: pa.Table
    quarantine: pd.DataFrame
    problems: tuple[str, ...]

    def column(self, name: str) -> pd.Series:
        """A metric by step as ``numbers``, of the evaluations if it begins with ``eval_``, of the
        timings if it ends with ``_seconds``; of a step that was logged twice the last one stays.
        Empty if there is none. ``answer_logp_no_think`` is ``answer_logp`` less ``uplift``."""
        if name == "answer_logp_no_think":
            return (self.column("answer_logp") - self.column("uplift")).dropna()
        kept = self.evaluations if name.startswith("eval_") else self.metrics
        table = self.timings if name.endswith("_seconds") else kept
        if name not in table:
            return pd.Series(dtype=float)
        values = numbers(table[name])
        return values[~values.index.duplicated(keep="last")].sort_index()

    @cached_property
    def late_tokens(self) -> pd.DataFrame:
        """``tokens`` of the last ``LATE`` steps that have traces."""
        return self.tokens(self._steps()[-LATE:])

    def _steps(self) -> list[int]:
        return np.unique(self.traces["step"].to_numpy()).tolist()

    def tokens(self, steps: Sequence[int] | None = None) -> pd.DataFrame:
        """A row for each reference token after each trace: ``step``, ``row_id``, ``k``, ``place``,
        ``token``, ``logp`` (l, nats), ``baseline_logp`` (b) and ``uplift`` (l − b); of all steps,
        or of some."""
        rows = self.traces
        if steps is not None:
            rows = rows.filter(pc.field("step").isin(list(steps)))
        table = rows.select(["step", "row_id", "k"]).to_pandas()
        names = {
            "token": "answer_tokens",
            "logp": "answer_logps",
            "baseline_logp": "baseline_logps",
        }
        columns = {new: rows[old].to_pandas() for new, old in names.items()}
        counts = columns["token"].map(len).to_numpy(int)
        out = table.loc[table.index.repeat(counts)].reset_index(drop=True)
        out["place"] = np.concatenate([np.arange(n) for n in counts] or [np.empty(0, int)])
        for name, column in columns.items():
            out[name] = np.concatenate([*column]) if len(column) else []
        out["uplift"] = uplift(out["logp"], out["baseline_logp"])
        return out

    def uplift(self, steps: int = LATE) -> Interval | None:
        """l − b (nats per token) over the questions of the last ``steps`` steps that have traces,
        with a 95 % bootstrap interval; None without traces. A question counts once, as the mean
        over all its traces in these steps."""
        tokens = self.late_tokens if steps == LATE else self.tokens(self._steps()[-steps:])
        per_question = tokens.groupby("row_id")["uplift"].mean()
        known = per_question.where(np.isfinite(per_question))  # else nan, as the interval then is
        return bootstrap_interval(known.tolist()) if len(known) else None


def is_run(folder: Path) -> bool:
    """Whether a run has written into a folder."""
    return any((folder / name).is_file() for name in (CONFIG, METRICS))


def load_run(path: str | os.PathLike[str]) -> Run:
    """The tables of the run folder ``path``, of a run that has ended or goes on.

    Raises RunError if the folder holds no run.

    >>> load_run("runs/none")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    native_reasoning.config.errors.RunError: runs/none holds no run...
    """
    folder, problems = Path(path), []
    if not is_run(folder):
        raise RunError(
            f"{folder} holds no run",
            why=f"neither {CONFIG} nor {METRICS} is there",
            fix="name the folder that `nrt train` said it was training into",
        )

    def tried(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except RunError as error:
            problems.append(error.what)
            return otherwise

    def lines(name: str) -> pd.DataFrame:
        path = folder / name
        rows = [row for _, row in tried(lambda: lines_of(path), [])]
        if path.is_file() and path.read_bytes()[-1:] not in (b"\n", b""):
            problems.append(
                f"the last line of {name} is half-written: a killed run, or one at work"
            )
        return pd.DataFrame(rows, columns=None if rows else ["step"]).set_index("step")

    def tables(files: Sequence[Path], schema: pa.Schema) -> pa.Table:
        none = schema.empty_table()
        found = [tried(lambda file=file: read_table(file, schema), none) for file in files]
        return pa.concat_tables([none, *found])

    config = tried(lambda: read_config(folder), {})
    logged = lines(METRICS)
    if "eval_other_data" in logged:  # evaluate() was asked about other questions
        logged = logged.loc[logged["eval_other_data"].isna()]
    evaluated = logged.filter(like="eval_").notna().any(axis=1)
    traces = tables([file for _, _, file in trace_files(folder)], TRACE_SCHEMA)
    if logged.empty:
        problems.append("no step has been logged yet")
    if not traces.num_rows and not any("traces" in problem for problem in problems):
        problems.append(NO_TRACES)
    return Run(
        path=folder,
        config=config,
        metrics=logged.loc[~evaluated].dropna(axis=1, how="all"),
        evaluations=logged.loc[evaluated].dropna(axis=1, how="all"),
        timings=lines(TIMINGS),
        traces=traces,
        held_out=tables([file for _, file in evaluation_files(folder)], HELD_OUT_SCHEMA),
        quarantine=lines(QUARANTINE),
        problems=tuple(problems),
    )


def numbers(values: pd.Series) -> pd.Series:
    """What is a finite number among them, under its name or step."""
    known = values if pd.api.types.is_numeric_dtype(values) else values.map(_number)
    found = known.astype(float)
    return found[np.isfinite(found)]


def _number(value: Any) -> float | None:
    kinds = int | float | np.integer | np.floating
    return float(value) if isinstance(value, kinds) and abs(value) < 1e300 else None


def run_names(runs: Sequence[Run]) -> list[str]:
    """A name for each: its folder's, with as much of the path before it as tells them apart, in
    characters that UTF-8 can hold; by number where no such characters do."""
    parts = [run.path.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = [storable("/".join(part[-depth:])) for part in parts]
        if len({*names}) == len({*parts}):
            return names
    different = list(dict.fromkeys(parts))
    return [f"{storable(part[-1])} ({different.index(part) + 1})" for part in parts]
