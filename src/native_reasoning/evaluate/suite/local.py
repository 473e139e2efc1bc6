"""Local files in the columns of the hub's data sets, so that lm-eval's tasks read both alike.

``read`` is what the task files of ``--data-dir`` name as ``custom_dataset``. The columns of the
files are those of docs/benchmarks.md.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset

from native_reasoning.errors import DataError

Row = dict[str, Any]


def read(*, benchmark: str, folder: str, subset: str = "", **_: Any) -> dict[str, Dataset]:
    """The splits of a benchmark, of one of its subjects where it has some (lm-eval also hands over
    a task's metadata). Raises DataError for a file that cannot be read or lacks a column."""
    found = _SPLITS[benchmark](Path(folder), subset)
    return {split: Dataset.from_list(rows) for split, rows in found.items()}


def subsets(benchmark: str, folder: Path) -> set[str]:
    """The subjects of bbh or mmlu that a folder has rows of. Raises DataError."""
    column = {"bbh": "task", "mmlu": "subject"}[benchmark]
    return {str(row[column]) for row in rows(folder / benchmark / "test.jsonl", (column,))}


def rows(path: Path, columns: Iterable[str]) -> list[Row]:
    """The rows of a JSONL file. Raises DataError."""
    found: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, f"cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise _bad(path, f"line {number} is not JSON") from None
        missing = [c for c in columns if not isinstance(row, dict) or c not in row]
        if missing:
            raise _bad(path, f"line {number} has no {missing[0]}")
        found.append(row)
    if not found:
        raise _bad(path, "has no rows")
    return found


def _bad(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}",
        why="the benchmark's questions are read from it",
        fix="docs/benchmarks.md has the columns of each file",
    )


# -- One function per benchmark -------------------------------------------------------------------


def _bbh(folder: Path, subset: str) -> dict[str, list[Row]]:
    found = rows(folder / "bbh" / "test.jsonl", ("task", "input", "target"))
    kept = [r for r in found if r["task"] == subset]
    return {"test": [{"input": r["input"], "target": r["target"]} for r in kept]}


def _mmlu(folder: Path, subset: str) -> dict[str, list[Row]]:
    choices = [f"choice{i}" for i in range(4)]
    columns = ("subject", "question", *choices, "answer")

    def split(name: str) -> list[Row]:
        return [
            {
                "question": r["question"],
                "subject": r["subject"],
                "choices": [str(r[c]) for c in choices],
                "answer": int(r["answer"]),
            }
            for r in rows(folder / "mmlu" / name, columns)
            if r["subject"] == subset
        ]

    return {"test": split("test.jsonl"), "dev": split("dev.jsonl")}


def _drop(folder: Path, subset: str) -> dict[str, list[Row]]:
    """``context`` is "Passage: …", "Question: …", "Answer:"; ``ref_text`` has each accepted answer,
    with | between them. An answer of several spans is one text there and stays one."""
    made = []
    path = folder / "drop" / "dev.jsonl"
    for i, row in enumerate(rows(path, ("context", "ref_text"))):
        head, found, question = row["context"].rpartition("\nQuestion:")
        if not found:
            raise _bad(path, f"row {i + 1} has no line that begins with Question:")
        answers = list(dict.fromkeys(a.strip() for a in row["ref_text"].split("|") if a.strip()))
        nowhen = {"day": "", "month": "", "year": ""}
        made.append(
            {
                "query_id": str(i),
                "passage": head.removeprefix("Passage:").strip(),
                "question": question.removesuffix("Answer:").strip(),
                "answer": {"number": "", "date": nowhen, "spans": answers[:1]},
                "validated_answers": {
                    "number": [""] * len(answers[1:]),
                    "date": [nowhen] * len(answers[1:]),
                    "spans": [[a] for a in answers[1:]],
                },
            }
        )
    return {"validation": made}


def _whole(file: str, split: str, *columns: str) -> Callable[[Path, str], dict[str, list[Row]]]:
    """A file whose columns are already the hub's."""

    def read_file(folder: Path, subset: str) -> dict[str, list[Row]]:
        return {split: [{c: r[c] for c in columns} for r in rows(folder / file, columns)]}

    return read_file


def _gsm8k(folder: Path, subset: str) -> dict[str, list[Row]]:
    train = _whole("gsm8k/train.jsonl", "train", "question", "answer")
    test = _whole("gsm8k/test.jsonl", "test", "question", "answer")
    return {**train(folder, subset), **test(folder, subset)}


_SPLITS: dict[str, Callable[[Path, str], dict[str, list[Row]]]] = {
    "bbh": _bbh,
    "mmlu": _mmlu,
    "drop": _drop,
    "gsm8k": _gsm8k,
    "popqa": _whole("popqa/test.jsonl", "test", "question", "possible_answers"),
    "truthfulqa": _whole(
        "truthfulqa/mc.jsonl", "validation", "question", "mc1_targets", "mc2_targets"
    ),
    "math": _whole("math/math500_test.jsonl", "test", "problem", "solution", "answer"),
    "humaneval": _whole("humaneval/test.jsonl", "test", "task_id", "prompt", "entry_point", "test"),
    "ifeval": _whole(
        "ifeval/test.jsonl", "train", "key", "prompt", "instruction_id_list", "kwargs"
    ),
}
