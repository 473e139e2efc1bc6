"""Running the suite: lm-eval's tasks, its loop once for each way of asking, and the answers."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import filter as matching
from hashlib import sha256
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import lm_eval
import nltk
from lm_eval.api.metrics import mean_stderr
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.evaluation.benchmarks import Benchmark
from native_reasoning.evaluation.conversation import Asked
from native_reasoning.evaluation.marks import walls
from native_reasoning.evaluation.thinking_lm import ThinkingLM
from native_reasoning.rollout.engine import Sampling

_HFLM: Any = HFLM  # decorators hide what these are
_evaluate: Any = lm_eval.simple_evaluate
_OURS = Path(__file__).with_name("nrt9")
_THEIRS = Path(lm_eval.__file__).with_name("tasks")


@dataclass(frozen=True)
class Item:
    """One question asked in one way: its ``value`` by the benchmark's metric, lm-eval's ``answer``
    after its filter, and the trace before it (None where there was none)."""

    benchmark: str
    subset: str
    doc_id: int
    mode: str
    value: float
    answer: Any
    prompt_hash: str
    trace: str | None = None
    trace_length: int | None = None
    closed: bool | None = None


@dataclass(frozen=True)
class SuitePlan:
    """What is run: ``limit`` questions of each benchmark, taken in turn from its subjects (None:
    all), on ``data_dir`` (None: the hub's data), with lm-eval's ``gen_kwargs``."""

    benchmarks: Sequence[Benchmark]
    modes: Sequence[str]
    data_dir: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    chat: bool = False
    gen_kwargs: Mapping[str, Any] | None = None
    batch_size: int = 1


def run_suite(
    asked: Asked, config: NRTConfig, plan: SuitePlan, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[Item]]:
    """Asks a model; returns rows and means for JSON, and each question's item. Raises DataError for
    data that cannot be read, ConfigError for what does not fit the machine."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    benchmarks = list(plan.benchmarks)
    if "on" in plan.modes and asked.closes_by_text and any(b.name == "bbh" for b in benchmarks):
        say(
            "bbh is left out: its filter looks for 'the answer is' in the answer, and with "
            "thinking on the boundary text stands before it (--thinking off asks it)"
        )
        benchmarks = [b for b in benchmarks if b.name != "bbh"]
    _require(benchmarks)
    tasks = {b: load_tasks(b, plan) for b in benchmarks}
    items: list[Item] = []
    for mode in plan.modes:
        say(f"asking, thinking {mode}")
        lm = make_lm(asked, config, mode, plan.batch_size)
        found = _evaluate(
            model=lm,
            tasks=[task for some in tasks.values() for task in some.values()],
            samples=first_rows(tasks.values(), plan.limit),
            bootstrap_iters=0,
            system_instruction=config.system_prompt,
            apply_chat_template=plan.chat,
            fewshot_as_multiturn=plan.chat,
            gen_kwargs=plan.gen_kwargs,
            confirm_run_unsafe_code=True,
        )
        for b, some in tasks.items():
            for subject, task in some.items():
                items += _items(b, subject, mode, found["samples"][task.task_name], lm)
    rows: list[dict[str, Any]] = [
        row_of(b, plan.modes, [item for item in items if item.benchmark == b.name])
        | {"num_fewshot": task.get_config("num_fewshot"), "task_version": task.VERSION}
        for b, some in tasks.items()
        for task in list(some.values())[:1]
    ]
    means = {mode: mean_over([row[mode] for row in rows]) for mode in plan.modes}
    return {"benchmarks": rows, "mean": means}, items


def _require(benchmarks: Iterable[Benchmark]) -> None:
    """Raises ConfigError for what would fail after hours."""
    names = {b.name for b in benchmarks}
    if "humaneval" in names:
        walls()
    if "ifeval" in names:
        try:
            nltk.data.find("tokenizers/punkt_tab")
        except LookupError:
            if not nltk.download("punkt_tab", quiet=True):
                raise ConfigError(
                    "nltk's punkt_tab is not there and cannot be downloaded",
                    why="ifeval counts sentences with it",
                    fix="copy it into ~/nltk_data/tokenizers, or leave ifeval out with --tasks",
                ) from None


# -- Tasks -----------------------------------------------------------------------------------------


def load_tasks(benchmark: Benchmark, plan: SuitePlan) -> dict[str, Task]:
    """lm-eval's tasks of a benchmark by subject ("" where it has none), those that ``data_dir`` has
    rows of, and of these what has one of the first ``limit`` questions. Raises DataError for data
    that cannot be read."""
    where = _THEIRS / benchmark.folder if benchmark.folder else _OURS
    manager = TaskManager(include_path=where, include_defaults=False)
    pattern = benchmark.tasks
    if plan.chat and f"{pattern}_chat" in manager.all_subtasks:
        pattern += "_chat"
    shots = benchmark.shots if plan.num_fewshot is None else plan.num_fewshot
    changes: dict[str, Any] = {"num_fewshot": min(shots, benchmark.most)}
    if not benchmark.most:
        changes["training_split"] = None  # examples that nobody is shown
    names = matching(manager.all_subtasks, pattern)
    subjects = {name: name.removeprefix(pattern.rstrip("*")) for name in names}
    members = [{"task": name, **changes} for name in subjects]
    if plan.data_dir is not None:
        folders = [plan.data_dir / benchmark.name / subject for subject in subjects.values()]
        members = [m | _local(f) for m, f in zip(members, folders, strict=True) if f.is_dir()]
    try:
        # libraries read the rows here, and refuse them with errors of many kinds
        found = manager.load({"group": benchmark.name, "task": members[: plan.limit]})
    except Exception as error:
        raise DataError(
            f"the data of {benchmark.name} cannot be read: {' '.join(str(error).split())[:200]}",
            why="the benchmark's questions come from it",
            fix="check the network, or name local files with --data-dir (docs/benchmarks.md)",
        ) from error
    return {subjects[name]: task for name, task in found["tasks"].items()}


def _local(folder: Path) -> dict[str, Any]:
    """What a task says to read each ``SPLIT.jsonl`` of a folder."""
    files = {path.stem: str(path.resolve()) for path in sorted(folder.glob("*.jsonl"))}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def first_rows(
    benchmarks: Iterable[Mapping[str, Task]], limit: int | None
) -> dict[str, list[int]] | None:
    """Row numbers by task name: ``limit`` of each benchmark, one from each of its subjects in turn;
    None for all."""
    if limit is None:
        return None
    rows: dict[str, list[int]] = {}
    for tasks in benchmarks:
        sizes = {task.task_name: len(task.eval_docs) for task in tasks.values()}
        turns = [(name, row) for row in range(limit) for name in sizes if row < sizes[name]]
        for name, row in turns[:limit]:
            rows.setdefault(name, []).append(row)
    return rows


# -- Asking ----------------------------------------------------------------------------------------


def make_lm(asked: Asked, config: NRTConfig, mode: str, batch_size: int) -> Any:
    """lm-eval's ``hf`` where nothing stands between question and answer, else ``ThinkingLM``."""
    if mode == "off" and (asked.template is None or asked.closes_by_text):
        return _HFLM(pretrained=asked.model, tokenizer=asked.tokenizer, batch_size=batch_size)
    assert asked.template is not None
    sampling = Sampling(1, config.max_trace_length, config.temperature, config.top_p)
    return ThinkingLM(
        asked.model,
        asked.template,
        sampling=sampling if mode == "on" else None,
        seed=config.seed,
        batch_size=batch_size,
    )


def _items(
    benchmark: Benchmark, subject: str, mode: str, samples: Iterable[Mapping[str, Any]], lm: Any
) -> list[Item]:
    thoughts = lm.thoughts if mode == "on" else {}
    made = []
    for sample in samples:
        if sample["filter"] != benchmark.filter:
            continue
        answers = sample["filtered_resps"]
        thought = thoughts.get(sample["arguments"][0][0])
        made.append(
            Item(
                benchmark=benchmark.name,
                subset=subject,
                doc_id=sample["doc_id"],
                mode=mode,
                value=float(sample[benchmark.metric]),
                answer=answers[0] if len(answers) == 1 else answers,
                prompt_hash=sample["prompt_hash"],
                trace=thought.text if thought else None,
                trace_length=thought.length if thought else None,
                closed=thought.closed if thought else None,
            )
        )
    return made


# -- What the answers add up to ------------------------------------------------------------------


def mean_of(values: Sequence[float]) -> dict[str, float | None]:
    """The mean of at least one value and its standard error.

    >>> mean_of([0.0, 1.0, 1.0, 0.0])
    {'value': 0.5, 'stderr': 0.28867513459481287}
    """
    return {"value": fmean(values), "stderr": mean_stderr(values) if len(values) > 1 else None}


def mean_over(cells: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The plain mean over benchmarks, each counted once, with the error of that mean."""
    errors = [cell["stderr"] for cell in cells]
    value = fmean(cell["value"] for cell in cells)
    stderr = None if None in errors else sqrt(sum(e * e for e in errors)) / len(errors)
    return {"value": value, "stderr": stderr}


def gain_of(off: Sequence[Item], on: Sequence[Item]) -> dict[str, float | None]:
    """What thinking adds, question by question: a paired difference. Both were asked the same."""
    asked = [[(i.subset, i.doc_id, i.prompt_hash) for i in items] for items in (off, on)]
    assert asked[0] == asked[1]
    return mean_of([b.value - a.value for a, b in zip(off, on, strict=True)])


def row_of(benchmark: Benchmark, modes: Sequence[str], items: Sequence[Item]) -> dict[str, Any]:
    """A benchmark's row: its number in each way, and the gain."""
    by_mode = {mode: [i for i in items if i.mode == mode] for mode in modes}
    first = by_mode[modes[0]]
    row: dict[str, Any] = {
        "benchmark": benchmark.name,
        "metric": f"{benchmark.metric},{benchmark.filter}".removesuffix(",none"),
        "questions": len(first),
        "prompts": sha256("".join(i.prompt_hash for i in first).encode()).hexdigest()[:16],
    }
    for mode, some in by_mode.items():
        row[mode] = mean_of([i.value for i in some])
        if mode == "on":
            row[mode]["trace_length"] = fmean(i.trace_length or 0 for i in some)
            row[mode]["closed"] = fmean(bool(i.closed) for i in some)
    if len(modes) == 2:
        row["gain"] = gain_of(by_mode["off"], by_mode["on"])
    return row
