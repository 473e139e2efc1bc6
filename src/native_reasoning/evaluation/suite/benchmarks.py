"""The nine benchmarks as a table. Nothing here imports lm-eval.

The prompts, stop sequences and metrics are those of the lm-eval tasks named here; PopQA, which
lm-eval lacks, and HumanEval, whose task there runs code without a sandbox, have tasks of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from native_reasoning.config.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Benchmark:
    """One row of the suite.

    ``include`` is the lm-eval task file, below ``lm_eval/tasks/`` ("" for a task of ours); with a
    ``*`` there is one for each subject. ``metric`` and ``filter`` name the headline number in
    lm-eval's results. ``files`` lie in the folder of local data. ``shots`` are shown by default,
    at most ``most``; 0 where the prompt is fixed. ``phrase`` is what the filter looks for in an
    answer that follows a boundary text which may have said it already.
    """

    name: str
    include: str
    metric: str
    filter: str
    files: tuple[str, ...]
    shots: int
    most: int
    runs_code: bool = False
    phrase: str = ""


BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark(
            "bbh",
            "bbh/cot_fewshot/*.yaml",
            "exact_match",
            "get-answer",
            ("bbh/test.jsonl",),
            3,
            3,
            phrase="the answer is ",
        ),
        Benchmark(
            "mmlu",
            "mmlu/default/mmlu_*.yaml",
            "acc",
            "none",
            ("mmlu/test.jsonl", "mmlu/dev.jsonl"),
            5,
            5,
        ),
        Benchmark("drop", "drop/default.yaml", "f1", "none", ("drop/dev.jsonl",), 0, 0),
        Benchmark("popqa", "", "match", "none", ("popqa/test.jsonl",), 0, 15),
        Benchmark(
            "truthfulqa",
            "truthfulqa/truthfulqa_mc2.yaml",
            "acc",
            "none",
            ("truthfulqa/mc.jsonl",),
            0,
            0,
        ),
        Benchmark(
            "gsm8k",
            "gsm8k/gsm8k.yaml",
            "exact_match",
            "flexible-extract",
            ("gsm8k/test.jsonl", "gsm8k/train.jsonl"),
            5,
            16,
        ),
        Benchmark(
            "math",
            "minerva_math/minerva_math500.yaml",
            "math_verify",
            "none",
            ("math/math500_test.jsonl",),
            4,
            4,
        ),
        Benchmark(
            "humaneval", "", "pass@1", "none", ("humaneval/test.jsonl",), 0, 0, runs_code=True
        ),
        Benchmark(
            "ifeval",
            "ifeval/ifeval.yaml",
            "prompt_level_strict_acc",
            "none",
            ("ifeval/test.jsonl",),
            0,
            0,
        ),
    )
}

#: What ``--thinking`` may be, and the columns that it asks for.
MODES = {"off": ("off",), "on": ("on",), "both": ("off", "on"), "plain": ("plain",)}
#: What ``--suite`` may be.
SUITES = {"nrt9": tuple(BENCHMARKS)}


def chosen(suite: str, tasks: str | None) -> tuple[Benchmark, ...]:
    """The benchmarks of a suite, or those that ``tasks`` names, with commas between, in the suite's
    order. Raises ConfigError for an unknown name."""
    if suite not in SUITES:
        raise ConfigError(
            f"there is no suite {suite!r}{did_you_mean(suite, SUITES)}",
            why="the suite says which benchmarks are run",
            fix=f"--suite {next(iter(SUITES))}",
        )
    names = SUITES[suite] if tasks is None else _named(tasks)
    for name in names:
        if name not in SUITES[suite]:
            raise ConfigError(
                f"{suite} has no task {name!r}{did_you_mean(name, SUITES[suite])}",
                why="--tasks picks from its benchmarks",
                fix=f"some of: {','.join(SUITES[suite])}",
            )
    return tuple(BENCHMARKS[name] for name in SUITES[suite] if name in names)


def _named(tasks: str) -> Sequence[str]:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ConfigError(
            "--tasks names no task", why="there is nothing to run", fix="--tasks gsm8k,drop"
        )
    return names
