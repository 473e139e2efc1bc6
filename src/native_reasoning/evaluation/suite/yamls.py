"""Task files for lm-eval, written into a folder of one run.

Each includes lm-eval's own file where there is one and changes only where the rows come from, the
name and the number of examples shown. lm-eval's command line can run them too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from native_reasoning.evaluation.suite.benchmarks import Benchmark
from native_reasoning.evaluation.suite.local import subsets

_HERE = "native_reasoning.evaluation.suite"

#: Tasks of ours, and where their rows are on the hub.
_OURS: dict[str, dict[str, Any]] = {
    "popqa": {
        "dataset_path": "akariasai/PopQA",
        "output_type": "generate_until",
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "Q: {{question}}\nA:",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 64},
        "metric_list": [{"metric": "match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    },
    "humaneval": {
        "dataset_path": "openai/openai_humaneval",
        "output_type": "generate_until",
        "test_split": "test",
        "unsafe_code": True,
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{test}}\ncheck({{entry_point}})",
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "do_sample": False,
            "max_gen_toks": 1024,
        },
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    },
}
#: A chat model is asked to write the function and answers with a block of code.
_HUMANEVAL_CHAT: dict[str, Any] = {
    "doc_to_text": "Write a solution to the following problem and make sure that it passes the "
    "tests:\n```python\n{{ prompt }}\n```\n",
    "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 1024},
}
_FUNCTIONS = {
    "popqa": {"process_results": "answers.popqa", "doc_to_target": "answers.popqa_target"},
    "humaneval": {"process_results": "answers.humaneval"},
}


@dataclass(frozen=True)
class TaskFile:
    """A task of lm-eval: its name there, and the benchmark and subject that it belongs to."""

    task: str
    benchmark: Benchmark
    subset: str


def write_tasks(
    folder: Path,
    benchmarks: Sequence[Benchmark],
    *,
    data_dir: Path | None,
    num_fewshot: int | None = None,
    chat: bool = False,
) -> list[TaskFile]:
    """Writes one task file for each subject of each benchmark. Raises DataError."""
    made = []
    for benchmark in benchmarks:
        for subset, include in _included(benchmark, data_dir):
            task = TaskFile(_name(benchmark.name, subset), benchmark, subset)
            text = _text(task, include, data_dir, num_fewshot, chat)
            (folder / f"{task.task}.yaml").write_text(text, encoding="utf-8")
            made.append(task)
    return made


def _name(benchmark: str, subset: str) -> str:
    return f"nrt9_{benchmark}" + (f"_{subset}" if subset else "")


def _included(benchmark: Benchmark, data_dir: Path | None) -> list[tuple[str, Path | None]]:
    """The subjects of a benchmark with lm-eval's files; those that the local data has rows of."""
    if not benchmark.include:
        return [("", None)]
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None  # required() was asked
    tasks = Path(spec.origin).parent / "tasks"
    if "*" not in benchmark.include:
        return [("", tasks / benchmark.include)]
    known = None if data_dir is None else subsets(benchmark.name, data_dir)
    found = []
    for path in sorted(tasks.glob(benchmark.include)):
        subset = path.stem.removeprefix("mmlu_")
        if not subset.startswith("_") and (known is None or subset in known):
            found.append((subset, path))
    return found


def _text(
    task: TaskFile, include: Path | None, data_dir: Path | None, num_fewshot: int | None, chat: bool
) -> str:
    benchmark = task.benchmark
    shots = benchmark.shots if num_fewshot is None else min(num_fewshot, benchmark.most)
    values: dict[str, Any] = dict(_OURS.get(benchmark.name, {}))
    if chat and benchmark.name == "humaneval":
        values |= _HUMANEVAL_CHAT
    if include is not None:
        values["include"] = str(include)
    values |= {"task": task.task, "num_fewshot": shots}
    functions = dict(_FUNCTIONS.get(benchmark.name, {}))
    if data_dir is not None:
        functions["custom_dataset"] = "local.read"
        values["dataset_kwargs"] = {
            "benchmark": benchmark.name,
            "folder": str(data_dir.resolve()),
            "subset": task.subset,
        }
        if benchmark.name == "drop":  # whose examples nobody is shown
            values["training_split"] = None
    for key in functions:
        values.pop(key, None)
    lines = [f"{key}: !function {_HERE}.{name}\n" for key, name in functions.items()]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True) + "".join(lines)
