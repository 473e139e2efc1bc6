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
from typing import Any

import numpy as np
import pyarrow as pa

from native_reasoning.report.runs import Run, run_names

#: Bytes of text and numbers of all traces above which groups are left out before compression.
MOST_TEXT = 100_000_000
#: What all traces of a group have in common.
OF_GROUP = ["step", "row_id", "prompt", "answer", "answer_tokens", "baseline_logps"]


def packed(runs: Sequence[Run], limit: int) -> tuple[str, int, int]:
    """Base64 of the compressed traces of all runs, in at most ``limit`` bytes; how many traces
    there are in it, and how many there were. Where they do not fit, whole groups are left out,
    evenly over the run, all of them if need be."""
    tables = [{"training": _sorted(run.traces), "held-out": _sorted(run.held_out)} for run in runs]
    every = [table for sets in tables for table in sets.values()]
    texts = ["trace", "sampled_answer", "answer_logps"]
    share = min(1.0, MOST_TEXT / max(sum(table.select(texts).nbytes for table in every), 1))
    while True:
        sets = [
            [_set(label, _thinned(table, share)) for label, table in of_run.items()]
            for of_run in tables
        ]
        named = zip(run_names(runs), sets, strict=True)
        carried = [
            {"name": name, "sets": [one for one in found if one["traces"]]} for name, found in named
        ]
        blob = compressed({"runs": carried})
        kept = sum(len(one["traces"]) for found in sets for one in found)
        if len(blob) <= limit or not kept:
            return blob, kept, sum(table.num_rows for table in every)
        share *= 0.95 * max(limit, 0) / len(blob)


def compressed(value: Any) -> str:
    """Base64 of gzip of JSON; the same value gives the same text."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in ("step", "row_id", "k")])


def _groups(table: pa.Table) -> np.ndarray:
    """The number of each trace's group, in a sorted table: 0, 0, 1, …"""
    keys = ["step", "row_id"]
    return table.select(keys).to_pandas().groupby(keys).ngroup().to_numpy()


def _thinned(table: pa.Table, share: float) -> pa.Table:
    """A share of the groups of a sorted table, evenly over the run."""
    groups = _groups(table)
    count = groups.max(initial=-1) + 1
    kept = np.linspace(0, count - 1, math.floor(count * share)).round()
    return table.filter(pa.array(np.isin(groups, kept)))


def _set(label: str, table: pa.Table) -> dict[str, Any]:
    """What the page carries of a sorted table."""
    _, starts, counts = np.unique(_groups(table), return_index=True, return_counts=True)
    of_group = table.select(OF_GROUP).take(starts).to_pylist()
    known = {n: table[n].to_pylist() for n in table.column_names if n not in OF_GROUP}
    questions: dict[tuple[Any, ...], int] = {}
    groups = []
    for row, count in zip(of_group, counts.tolist(), strict=True):
        text = (row["prompt"], row["answer"], tuple(row["answer_tokens"]))
        question = questions.setdefault(text, len(questions))
        groups.append([row["step"], question, row["row_id"], count])
    not_closed = [2 if ended else 0 for ended in known.get("ended", [])] or [3] * table.num_rows
    return {
        "label": label,
        "questions": [list(question) for question in questions],
        "groups": groups,
        "b": _thousandths([row["baseline_logps"] for row in of_group]),
        "traces": known["trace"],
        "said": known["sampled_answer"],
        "k": known["k"],
        "length": known["length"],
        "ends": [
            1 if closed else end for closed, end in zip(known["closed"], not_closed, strict=True)
        ],
        "reward": _short(known.get("reward", [])),
        "base": _short(known.get("baseline_reward", [])),
        "advantage": _short(known.get("advantage", [])),
        "right": _short(known.get("correct", [])),
        "right_no_think": _short(known.get("correct_no_think", [])),
        "said_no_think": known.get("answer_no_think", []),
        "l": _thousandths(known["answer_logps"]),
    }


def _thousandths(lists: Sequence[Sequence[float]]) -> list[list[int | None]]:
    """Nats as whole thousandths; None for what is not finite."""
    return [[round(1000 * x) if math.isfinite(x) else None for x in row] for row in lists]


def _short(values: Sequence[float]) -> list[float | None]:
    """Four digits of each; None for what is not finite."""
    return [float(f"{x:.4g}") if math.isfinite(x) else None for x in values]
