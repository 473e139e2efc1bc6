"""The traces of a page, small enough to be carried by one file: each question's text once, numbers
as whole thousandths, all of it as compressed JSON.

::

    {"runs": [{"name": "first", "sets": [{
        "label": "training",
        "questions": [["how many?", "4", ["4", "<eos>"]], …],       prompt, reference, its tokens
        "groups": [[step, question, row_id, traces], …],            sorted by step and row
        "b": [[-2304, 0], …],                                       a group's baseline, nats / 1000
        "traces": ["2 and 2", …], "said": ["4", …],                 in the order of the groups
        "k": […], "length": […], "ends": […],                       how a trace ended, see below
        "reward": […], "base": […], "advantage": […],               null where there is none
        "right": […], "right_no_think": […], "said_no_think": […],  held-out questions alone
        "l": [[-361, 0], …]                                         one entry a trace
    }]}]}

``ends``: 0 cut, 1 closed by the tag, 2 ended by an end-of-turn token, 3 not closed (of held-out
traces it is not recorded how).
"""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from native_reasoning.report.runs import Run, run_names

#: Traces, and bytes of their text and numbers, above which groups are left out at once.
MOST_TRACES, MOST_TEXT = 100_000, 100_000_000


@dataclass(frozen=True)
class _Sorted:
    """A table of traces. ``order`` sorts it by step, row and k; ``new`` is true where, in this
    order, a group begins. ``size`` is the bytes of what each trace brings along."""

    label: str
    table: pa.Table
    order: np.ndarray
    new: np.ndarray
    size: int


def packed(runs: Sequence[Run], limit: int) -> tuple[str, int, int]:
    """Base64 of the compressed traces of all runs, in at most ``limit`` bytes; how many traces
    there are in it, and how many there were. Where they do not fit, whole groups are left out,
    evenly over the run, all of them if need be."""
    there = sum(run.traces.num_rows + run.held_out.num_rows for run in runs)
    rows = [[_rows("training", run.traces), _rows("held-out", run.held_out)] for run in runs]
    size = sum(one.size for tables in rows for one in tables)
    share = min(1.0, MOST_TRACES / max(there, 1), MOST_TEXT / max(size, 1))
    while True:
        blob, kept = _packed(run_names(runs), rows, share)
        if len(blob) <= limit or not kept:
            return blob, kept, there
        share *= 0.95 * max(limit, 0) / len(blob)


def compressed(value: Any) -> str:
    """Base64 of gzip of JSON; the same value gives the same text."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")


def _packed(
    names: Sequence[str], rows: Sequence[Sequence[_Sorted]], share: float
) -> tuple[str, int]:
    """A share of the groups of all runs, compressed, and how many traces there are in it."""
    chosen = [[(one, *_chosen(one, share)) for one in tables] for tables in rows]
    sets = [[_set(*one) for one in tables if len(one[2])] for tables in chosen]
    named = zip(names, sets, strict=True)
    blob = compressed({"runs": [{"name": name, "sets": found} for name, found in named]})
    return blob, sum(len(one["traces"]) for found in sets for one in found)


def _rows(label: str, table: pa.Table) -> _Sorted:
    step, row, k = (table[name].to_numpy() for name in ("step", "row_id", "k"))
    order = np.lexsort((k, row, step))
    step, row = step[order], row[order]
    new = np.ones(len(order), bool)
    new[1:] = (step[1:] != step[:-1]) | (row[1:] != row[:-1])
    size = sum(table[name].nbytes for name in ("trace", "sampled_answer", "answer_logps"))
    return _Sorted(label, table, order, new, size)


def _chosen(rows: _Sorted, share: float) -> tuple[pa.Table, np.ndarray]:
    """The rows of a share of the groups, sorted, and where each group starts."""
    group = np.cumsum(rows.new) - 1
    count = int(rows.new.sum())
    most = max(math.floor(count * share), 0)
    kept = np.unique(np.linspace(0, count - 1, most).round())
    mask = np.isin(group, kept)
    return rows.table.take(rows.order[mask]), np.flatnonzero(rows.new[mask])


def _set(rows: _Sorted, table: pa.Table, starts: np.ndarray) -> dict[str, Any]:
    once = table.select(["step", "row_id", "prompt", "answer", "answer_tokens"]).take(starts)
    counts = np.diff([*starts, table.num_rows]).tolist()
    questions: dict[tuple[Any, ...], int] = {}
    groups = []
    for count, step, row, *texts, tokens in zip(counts, *_lists(once), strict=True):
        place = questions.setdefault((*texts, tuple(tokens)), len(questions))
        groups.append([step, place, row, count])
    columns = ("trace", "sampled_answer", "k", "length", "closed")
    traces, said, places, lengths, closed = _lists(table.select(columns))
    held_out = "ended" not in table.column_names
    ended = [False] * table.num_rows if held_out else table["ended"].to_pylist()
    ends = zip(closed, ended, strict=True)
    found = {
        "label": rows.label,
        "questions": [list(question) for question in questions],
        "groups": groups,
        "b": _thousandths(table["baseline_logps"].take(starts)),
        "traces": traces,
        "said": said,
        "k": places,
        "length": lengths,
        "l": _thousandths(table["answer_logps"]),
        "ends": [1 if shut else 3 if held_out else 2 if end else 0 for shut, end in ends],
    }
    shorter = {"base": "baseline_reward", "right": "correct", "right_no_think": "correct_no_think"}
    for name in ("reward", "base", "advantage", "right", "right_no_think"):
        found[name] = [_short(x) for x in _column(table, shorter.get(name, name))]
    found["said_no_think"] = _column(table, "answer_no_think")
    return found


def _lists(table: pa.Table) -> list[list[Any]]:
    return [column.to_pylist() for column in table.columns]


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else []


def _thousandths(lists: pa.ChunkedArray) -> list[list[int | None]]:
    """Nats as whole thousandths; None for what is not finite."""
    return [
        [round(1000 * x) if math.isfinite(x) else None for x in row] for row in lists.to_pylist()
    ]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
