"""Running the suite: task files, lm-eval's loop once for each way of asking, and the scores."""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.evaluation.suite.adapter import ThinkingLM, longest_answer
from native_reasoning.evaluation.suite.asked import Asked
from native_reasoning.evaluation.suite.benchmarks import Benchmark
from native_reasoning.evaluation.suite.needs import sentence_rules
from native_reasoning.evaluation.suite.sandbox import Isolation, isolation
from native_reasoning.evaluation.suite.scores import Item
from native_reasoning.evaluation.suite.yamls import TaskFile, write_tasks
from native_reasoning.rollout.engine import Sampling

_HFLM: Any = HFLM  # decorators hide what these are
_evaluate: Any = lm_eval.evaluate

#: lm-eval's own default seeds, so that its examples are drawn alike.
_SEED, _SEED_OTHERS = 0, 1234


@dataclass(frozen=True)
class Plan:
    """What is run: ``limit`` questions of each benchmark, taken in turn from its subjects (None:
    all), on ``data_dir`` (None: the hub's data)."""

    benchmarks: tuple[Benchmark, ...]
    modes: tuple[str, ...]
    data_dir: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    chat: bool = False
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1


@dataclass(frozen=True)
class Ran:
    """Every question's item, in order, by benchmark and way of asking (those in which the benchmark
    can be asked); the version of the task and the examples shown, by benchmark."""

    items: Mapping[str, Mapping[str, tuple[Item, ...]]]
    versions: Mapping[str, Any]
    shots: Mapping[str, int]


def run_suite(asked: Asked, config: NRTConfig, plan: Plan, say: Callable[[str], None]) -> Ran:
    """Asks a model. Raises DataError for files, ConfigError for what does not fit the model."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if any(b.runs_code for b in plan.benchmarks) and isolation() is not Isolation.FULL:
        say(
            "humaneval: no user namespaces on this machine, so the code that the model writes can "
            "change files; SECURITY.md says what is held off"
        )
    if plan.chat and asked.tokenizer.chat_template is None:
        raise ConfigError(
            "the tokenizer has no chat template",
            why="with --apply-chat-template every question becomes a turn of a conversation",
            fix="leave it out, or name a Jinja file with --chat-template-path",
        )
    _say_left_out(asked, plan, say)
    rules = None
    if any(b.name == "ifeval" for b in plan.benchmarks):
        rules = sentence_rules(plan.data_dir is not None, say)
    try:
        with TemporaryDirectory() as folder:
            return _run(asked, config, plan, Path(folder), say)
    finally:
        if rules is not None:
            rules.cleanup()


def _say_left_out(asked: Asked, plan: Plan, say: Callable[[str], None]) -> None:
    """Says which benchmarks are not asked in a way. Raises ConfigError where none is left."""
    for mode in plan.modes:
        left_out = [b for b in plan.benchmarks if not asked.asks(b, mode)]
        for b in left_out:
            say(
                f"{b.name} is left out with thinking {mode}: {b.phrase.strip()!r} is looked for in "
                "the answer, and the boundary text stands before it"
            )
        if len(left_out) == len(plan.benchmarks):
            raise ConfigError(
                f"no benchmark is left to ask with thinking {mode}",
                why="after a boundary text every answer would count as wrong",
                fix="--thinking off, or more --tasks",
            )


def make_lm(asked: Asked, config: NRTConfig, mode: str, batch_size: int) -> Any:
    """lm-eval's ``hf`` where nothing stands between question and answer, else ``ThinkingLM``."""
    if not asked.splices(mode):
        return _HFLM(
            pretrained=asked.model,
            tokenizer=asked.tokenizer,
            batch_size=batch_size,
        )
    assert asked.template is not None
    sampling = Sampling(1, config.max_trace_length, config.temperature, config.top_p)
    return ThinkingLM(
        asked.model,
        asked.template,
        sampling=sampling if mode == "on" else None,
        seed=config.seed,
        batch_size=batch_size,
    )


def _run(
    asked: Asked, config: NRTConfig, plan: Plan, folder: Path, say: Callable[[str], None]
) -> Ran:
    files = write_tasks(
        folder,
        plan.benchmarks,
        data_dir=plan.data_dir,
        num_fewshot=plan.num_fewshot,
        chat=plan.chat,
    )
    if plan.limit is not None:
        files = subjects_within(files, plan.limit)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    loaded: Any = _loaded(manager, files, plan.data_dir)
    tasks: dict[str, Task] = loaded["tasks"]
    samples = first_rows(files, tasks, plan.limit) if plan.limit is not None else None
    items: dict[str, dict[str, tuple[Item, ...]]] = {b.name: {} for b in plan.benchmarks}
    for mode in plan.modes:
        say(f"asking, thinking {mode}")
        mine = [file for file in files if asked.asks(file.benchmark, mode)]
        lm = make_lm(asked, config, mode, plan.batch_size)
        _prepare(tasks, plan, lm)
        found = _evaluate(
            lm=lm,
            task_dict={**loaded, "tasks": {file.task: tasks[file.task] for file in mine}},
            samples=samples,
            bootstrap_iters=0,
            log_samples=True,
            system_instruction=config.system_prompt,
            apply_chat_template=plan.chat,
            fewshot_as_multiturn=plan.chat,
            confirm_run_unsafe_code=True,
        )
        for name in dict.fromkeys(file.benchmark.name for file in mine):
            items[name][mode] = tuple(
                item
                for file in mine
                if file.benchmark.name == name
                for item in _items(file, mode, found["samples"][file.task], lm)
            )
    first = {file.benchmark.name: tasks[file.task] for file in reversed(files)}
    return Ran(
        items,
        {name: task.VERSION for name, task in first.items()},
        {name: task.get_config("num_fewshot") for name, task in first.items()},
    )


def _loaded(manager: TaskManager, files: Sequence[TaskFile], data_dir: Path | None) -> Any:
    """lm-eval's tasks by name, with their rows. Raises DataError where the hub does not give
    them."""
    try:
        return manager.load([file.task for file in files])
    except OSError as error:
        if data_dir is not None:
            raise
        raise DataError(
            f"the hub's data cannot be read: {' '.join(str(error).split())[:200]}",
            why="the benchmarks' questions come from it",
            fix="check the network, or name local files with --data-dir (docs/benchmarks.md)",
        ) from None


def _prepare(tasks: Mapping[str, Task], plan: Plan, lm: Any) -> None:
    """Seeds, and the user's changes to how answers are generated. Raises ConfigError where an
    answer would fill the model's context."""
    random.seed(_SEED)
    np.random.seed(_SEED_OTHERS)
    torch.manual_seed(_SEED_OTHERS)
    for name, task in tasks.items():
        task.set_fewshot_seed(seed=_SEED_OTHERS)
        if task.get_config("output_type") != "generate_until":
            continue
        if plan.gen_kwargs:
            task.set_config(key="generation_kwargs", value=dict(plan.gen_kwargs), update=True)
        longest = longest_answer(task.get_config("generation_kwargs"), lm)
        if longest >= lm.max_length:
            raise ConfigError(
                f"{name} generates up to {longest:,} tokens, and the model has "
                f"{lm.max_length:,} positions",
                why="no place is left for the question",
                fix=f"--gen-kwargs max_gen_toks={max(1, lm.max_length // 4)}",
            )


def subjects_within(files: Sequence[TaskFile], limit: int) -> list[TaskFile]:
    """The subjects that the first ``limit`` questions of a benchmark come from."""
    kept: list[TaskFile] = []
    for file in files:
        if sum(other.benchmark is file.benchmark for other in kept) < limit:
            kept.append(file)
    return kept


def first_rows(
    files: Sequence[TaskFile], tasks: Mapping[str, Task], limit: int
) -> dict[str, list[int]]:
    """The rows of each task so that a benchmark has ``limit`` of them, one from each subject in
    turn, from the first row on."""
    chosen: dict[str, list[int]] = {file.task: [] for file in files}
    for name in dict.fromkeys(file.benchmark.name for file in files):
        mine = [file.task for file in files if file.benchmark.name == name]
        sizes = {task: len(tasks[task].eval_docs) for task in mine}
        turns = [(row, task) for row in range(limit) for task in mine if row < sizes[task]]
        for row, task in turns[:limit]:
            chosen[task].append(row)
    return chosen


def _items(file: TaskFile, mode: str, samples: Sequence[Mapping[str, Any]], lm: Any) -> list[Item]:
    thoughts = lm.thoughts if isinstance(lm, ThinkingLM) and mode == "on" else {}
    made = []
    for sample in samples:
        if sample["filter"] != file.benchmark.filter:
            continue
        answers = sample["filtered_resps"]
        thought = thoughts.get(sample["arguments"][0][0])
        made.append(
            Item(
                benchmark=file.benchmark.name,
                subset=file.subset,
                doc_id=sample["doc_id"],
                mode=mode,
                value=float(sample[file.benchmark.metric]),
                answer=answers[0] if len(answers) == 1 else answers,
                prompt_hash=sample["prompt_hash"],
                trace=thought.text if thought else None,
                trace_length=thought.length if thought else None,
                closed=thought.closed if thought else None,
            )
        )
    return made
