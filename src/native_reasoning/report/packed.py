"""The traces of a page, small enough to be carried by one file: each question's text once, numbers
as whole thousandths, all of it as compressed JSON.

::

    {"runs": [{"name": "first", "sets": [{
        "label": "training",
        "questions": [["how many?", "4", ["4", "<eos>"]], …],       prompt, reference, its tokens
        "groups": [[step, question, row_id, traces], …],            sorted by step and row
        "b": [[-2304, 0], …],                                       a group's baseline, nats / 1000
        "traces": ["2 and 2", …], "said": ["4", …],                 in the order of the groups
        "k": […], "length": […], "ends": […],                       ends: closed 1, ended 2, cut 0
        "reward": […], "base": […], "advantage": […],               null where there is none
        "right": […], "right_no_think": […], "said_no_think": […],  held-out questions alone
        "l": [[-361, 0], …]                                         one entry a trace
    }]}]}
"""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from native_reasoning.runs import Run, run_names

#: Traces above this number are thinned out at once, before anything is compressed.
MOST_TRACES = 100_000


def packed(runs: Sequence[Run], limit: int) -> tuple[str, int, int]:
    """Base64 of the compressed traces of all runs, in at most ``limit`` bytes; how many traces
    there are in it, and how many there were. Where they do not fit, whole groups are left out,
    evenly over the run, all of them if need be."""
    there = sum(run.traces.num_rows + run.held_out.num_rows for run in runs)
    share = min(1.0, MOST_TRACES / max(there, 1))
    while True:
        sets = [_sets(run, share) for run in runs]
        named = zip(run_names(runs), sets, strict=True)
        blob = compressed({"runs": [{"name": name, "sets": found} for name, found in named]})
        kept = sum(len(one["traces"]) for found in sets for one in found)
        if len(blob) <= limit or kept == 0:
            return blob, kept, there
        share *= 0.95 * limit / len(blob)


def compressed(value: Any) -> str:
    """Base64 of gzip of JSON; the same value gives the same text."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")


def _sets(run: Run, share: float) -> list[dict[str, Any]]:
    tables = {"training": run.traces, "held-out": run.held_out}
    shares = ((label, *_grouped(table, share)) for label, table in tables.items())
    return [_set(label, table, starts) for label, table, starts in shares if starts]


def _set(label: str, table: pa.Table, starts: list[int]) -> dict[str, Any]:
    columns = {name: table[name].to_pylist() for name in table.column_names}
    questions: dict[tuple[Any, ...], int] = {}
    groups, baselines = [], []
    for start, end in zip(starts, [*starts[1:], table.num_rows], strict=True):
        tokens = tuple(columns["answer_tokens"][start])
        question = (columns["prompt"][start], columns["answer"][start], tokens)
        place = questions.setdefault(question, len(questions))
        groups.append([columns["step"][start], place, columns["row_id"][start], end - start])
        baselines.append(_thousandths(columns["baseline_logps"][start]))
    found = {
        "label": label,
        "questions": [list(question) for question in questions],
        "groups": groups,
        "b": baselines,
        "traces": columns["trace"],
        "said": columns["sampled_answer"],
        "k": columns["k"],
        "length": columns["length"],
        "l": [_thousandths(logps) for logps in columns["answer_logps"]],
    }
    ended = columns.get("ended") or [False] * table.num_rows
    ends = zip(columns["closed"], ended, strict=True)
    found["ends"] = [1 if closed else 2 if ended else 0 for closed, ended in ends]
    shorter = {"base": "baseline_reward", "right": "correct", "right_no_think": "correct_no_think"}
    for name in ("reward", "base", "advantage", "right", "right_no_think"):
        found[name] = [_short(x) for x in columns.get(shorter.get(name, name), [])]
    found["said_no_think"] = columns.get("answer_no_think", [])
    return found


def _grouped(table: pa.Table, share: float) -> tuple[pa.Table, list[int]]:
    """The rows of a share of the groups, sorted, and where each group starts."""
    if not table.num_rows:
        return table, []
    table = table.sort_by([(name, "ascending") for name in ("step", "row_id", "k")])
    step, row = (table[name].to_numpy() for name in ("step", "row_id"))
    new = np.ones(len(step), bool)
    new[1:] = (step[1:] != step[:-1]) | (row[1:] != row[:-1])
    group = np.cumsum(new) - 1
    count = int(group[-1]) + 1
    most = max(math.floor(count * share), 0)
    kept = np.unique(np.linspace(0, count - 1, most).round())
    if len(kept) < count:
        mask = np.isin(group, kept)
        table, new = table.filter(pa.array(mask)), new[mask]
    return table, np.flatnonzero(new).tolist()


def _thousandths(values: Sequence[float]) -> list[int | None]:
    return [round(1000 * x) if math.isfinite(x) else None for x in values]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
