"""Local files in the columns of the hub's data sets, so that lm-eval's tasks read both alike.

``read`` is what the task files of ``--data-dir`` name as ``custom_dataset``. The columns of the
files are those of docs/benchmarks.md.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from pyarrow import ArrowException

from native_reasoning.config.errors import DataError
from native_reasoning.evaluation.suite import columns as c

Row = dict[str, Any]


def read(*, benchmark: str, folder: str, subset: str = "", **_: Any) -> dict[str, Dataset]:
    """The splits of a benchmark, of one of its subjects where it has some (lm-eval also hands over
    a task's metadata). Raises DataError for a file that cannot be read or a column that lacks or is
    not what it should be."""
    found = _SPLITS[benchmark](Path(folder), subset)
    for split, some in found.items():
        if not some:
            raise _bad(Path(folder) / benchmark, f"has no rows of {subset} in its split {split}")
    try:
        return {split: Dataset.from_list(some) for split, some in found.items()}
    except ArrowException as error:
        what = " ".join(str(error).split())[:120]
        raise _bad(Path(folder) / benchmark, f"has values of several types: {what}") from None


def subsets(benchmark: str, folder: Path) -> set[str]:
    """The subjects of bbh or mmlu that a folder has rows of. Raises DataError."""
    column = {"bbh": "task", "mmlu": "subject"}[benchmark]
    path = folder / benchmark / "test.jsonl"
    return {row[column] for row in rows(path, {column: c.text})}


def rows(path: Path, columns: Mapping[str, c.Check]) -> list[Row]:
    """The rows of a JSONL file, these columns of them. Raises DataError."""
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
        for column, check in columns.items():
            if not isinstance(row, dict) or column not in row:
                raise _bad(path, f"line {number} has no {column}")
            if wanted := check(row[column]):
                raise _bad(path, f"line {number}: {column} is not {wanted}")
        found.append({column: row[column] for column in columns})
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
    columns = {"task": c.text, "input": c.text, "target": c.text}
    found = rows(folder / "bbh" / "test.jsonl", columns)
    kept = [r for r in found if r["task"] == subset]
    return {"test": [{"input": r["input"], "target": r["target"]} for r in kept]}


def _mmlu(folder: Path, subset: str) -> dict[str, list[Row]]:
    choices = [f"choice{i}" for i in range(4)]
    columns = {"subject": c.text, "question": c.text, "answer": c.index}
    columns |= dict.fromkeys(choices, c.option)

    def split(name: str) -> list[Row]:
        return [
            {
                "question": r["question"],
                "subject": r["subject"],
                "choices": [str(r[choice]) for choice in choices],
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
    columns = {"context": c.passage, "ref_text": c.accepted}
    for i, row in enumerate(rows(folder / "drop" / "dev.jsonl", columns)):
        head, _, question = row["context"].rpartition("\nQuestion:")
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


def _popqa(folder: Path, subset: str) -> dict[str, list[Row]]:
    found = rows(folder / "popqa/test.jsonl", {"question": c.text, "possible_answers": c.possible})
    for row in found:
        row["possible_answers"] = [str(a) for a in c.answers_in(row["possible_answers"])]
    return {"test": found}


def _truthfulqa(folder: Path, subset: str) -> dict[str, list[Row]]:
    columns = {"question": c.text, "mc1_targets": c.targets, "mc2_targets": c.targets}
    found = rows(folder / "truthfulqa" / "mc.jsonl", columns)
    for row in found:
        for name in ("mc1_targets", "mc2_targets"):
            labels = [int(label) for label in row[name]["labels"]]
            row[name] = {"choices": row[name]["choices"], "labels": labels}
    return {"validation": found}


def _whole(
    file: str, split: str, columns: Mapping[str, c.Check]
) -> Callable[[Path, str], dict[str, list[Row]]]:
    """A file whose columns are already the hub's."""
    return lambda folder, subset: {split: rows(folder / file, columns)}


def _gsm8k(folder: Path, subset: str) -> dict[str, list[Row]]:
    columns = {"question": c.text, "answer": c.text}
    return {name: rows(folder / "gsm8k" / f"{name}.jsonl", columns) for name in ("train", "test")}


def _ifeval(folder: Path, subset: str) -> dict[str, list[Row]]:
    columns = {"key": c.integer, "prompt": c.text}
    columns |= {"instruction_id_list": c.names, "kwargs": c.settings}
    path = folder / "ifeval" / "test.jsonl"
    found = rows(path, columns)
    for row in found:
        if len(row["kwargs"]) != len(row["instruction_id_list"]):
            raise _bad(path, f"has other numbers of kwargs than instructions at key {row['key']}")
    return {"train": found}


_CODE: dict[str, c.Check] = dict.fromkeys(("task_id", "prompt", "entry_point", "test"), c.text)
_MATH: dict[str, c.Check] = {"problem": c.text, "solution": c.boxed, "answer": c.text}

_SPLITS: dict[str, Callable[[Path, str], dict[str, list[Row]]]] = {
    "bbh": _bbh,
    "mmlu": _mmlu,
    "drop": _drop,
    "gsm8k": _gsm8k,
    "popqa": _popqa,
    "truthfulqa": _truthfulqa,
    "math": _whole("math/math500_test.jsonl", "test", _MATH),
    "humaneval": _whole("humaneval/test.jsonl", "test", _CODE),
    "ifeval": _ifeval,
}
