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
    EVALUATIONS,
    METRICS,
    QUARANTINE,
    SCHEMAS,
    TIMINGS,
    TRACES,
    lines_of,
    read_config,
    read_table,
    storable,
    table_files,
)

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
    ``traces`` is an Arrow table with a row for each sampled trace (``folder.TraceRow``);
    ``.to_pandas()`` makes a frame of it. ``held_out`` is another, with a row for each trace sampled
    in an evaluation (``folder.HeldOutRow``). ``quarantine`` has the rows of skipped updates.
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
        return self.tokens(LATE)

    def tokens(self, last: int | None = None) -> pd.DataFrame:
        """A row for each reference token after each trace: ``step``, ``row_id``, ``k``, ``place``,
        ``token``, ``logp`` (l, nats), ``baseline_logp`` (b) and ``uplift`` (l − b); of all steps,
        or of the ``last`` so many that have traces."""
        steps = np.unique(self.traces["step"].to_numpy())
        late = steps if last is None else steps[-last:]
        lists = {
            "answer_tokens": "token",
            "answer_logps": "logp",
            "baseline_logps": "baseline_logp",
        }
        rows = self.traces.select(["step", "row_id", "k", *lists])
        rows = rows.filter(pc.field("step").isin(late.tolist())).to_pandas()
        out = rows.explode([*lists]).rename(columns=lists).dropna(subset=["token"])
        out.insert(3, "place", out.groupby(level=0).cumcount())
        out = out.astype({"logp": "float32", "baseline_logp": "float32"}).reset_index(drop=True)
        out["uplift"] = uplift(out["logp"], out["baseline_logp"])
        return out

    def uplift(self) -> Interval | None:
        """l − b (nats per token) over the questions of ``late_tokens``, with a 95 % bootstrap
        interval; None without traces. A question counts once, as the mean over all its traces."""
        per_question = self.late_tokens.groupby("row_id")["uplift"].mean()
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
        rows = [row for _, row in tried(lambda: lines_of(folder / name), [])]
        return pd.DataFrame(rows, columns=None if rows else ["step"]).set_index("step")

    def tables(name: str) -> pa.Table:
        files, none = table_files(folder, name), SCHEMAS[name].empty_table()
        found = [tried(lambda file=file: read_table(file), none) for _, file in files]
        return pa.concat_tables([none, *found])

    config = tried(lambda: read_config(folder), {})
    logged = lines(METRICS)
    if "eval_other_data" in logged:  # evaluate() was asked about other questions
        logged = logged.loc[logged["eval_other_data"].isna()]
    evaluated = logged.filter(like="eval_").notna().any(axis=1)
    traces = tables(TRACES)
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
        held_out=tables(EVALUATIONS),
        quarantine=lines(QUARANTINE),
        problems=tuple(problems),
    )


def numbers(values: pd.Series) -> pd.Series:
    """What is a finite number among them, under its name or step."""
    found = pd.to_numeric(values, errors="coerce").astype(float)
    return found[np.isfinite(found)]


def run_names(runs: Sequence[Run]) -> list[str]:
    """A name for each: its path below the folder that holds them all."""
    paths = [run.path.resolve() for run in runs]
    above = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return [storable(os.path.relpath(path, above)) for path in paths]
