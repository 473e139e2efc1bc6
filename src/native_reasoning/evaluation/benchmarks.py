"""The nine benchmarks as a table. Nothing here imports lm-eval.

Prompts, stop sequences and metrics are those of the lm-eval tasks named here; PopQA, which lm-eval
lacks, and HumanEval, whose task there runs code without a sandbox, are task files of ours.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from native_reasoning.config.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class Benchmark:
    """One row of the suite.

    ``tasks`` are lm-eval's names (one for each subject where it ends with ``*``) in ``folder``,
    which lies below ``lm_eval/tasks/`` ("" for ours). ``metric`` and ``filter`` name the headline
    number in lm-eval's results. ``shots`` examples are shown by default, at most ``most``.
    """

    name: str
    folder: str
    tasks: str
    metric: str
    filter: str = "none"
    shots: int = 0
    most: int = 0


_ALL = (
    Benchmark("bbh", "bbh/cot_fewshot", "bbh_cot_fewshot_*", "exact_match", "get-answer", 3, 3),
    Benchmark("mmlu", "mmlu/default", "mmlu_*", "acc", "none", 5, 5),
    Benchmark("drop", "drop", "drop", "f1"),
    Benchmark("popqa", "", "popqa", "match", "none", 0, 15),
    Benchmark("truthfulqa", "truthfulqa", "truthfulqa_mc2", "acc"),
    Benchmark("gsm8k", "gsm8k", "gsm8k", "exact_match", "flexible-extract", 5, 16),
    Benchmark("math", "minerva_math", "minerva_math500", "math_verify", "none", 4, 4),
    Benchmark("humaneval", "", "humaneval", "pass@1"),
    Benchmark("ifeval", "ifeval", "ifeval", "prompt_level_strict_acc"),
)
BENCHMARKS = {b.name: b for b in _ALL}
#: What ``--thinking`` may be, and the columns that it asks for.
MODES = {"off": ("off",), "on": ("on",), "both": ("off", "on")}
#: Packages of the extra ``eval``.
_PACKAGES = ("lm_eval", "math_verify", "antlr4", "langdetect", "immutabledict", "nltk")


def chosen(suite: str, tasks: str | None) -> list[Benchmark]:
    """The benchmarks of a suite, or those that ``tasks`` names, with commas between, in the suite's
    order. Raises ConfigError for an unknown name, and where lm-eval is not installed."""
    one_of("--suite", suite, ("nrt9",))
    names = list(BENCHMARKS) if tasks is None else [name.strip() for name in tasks.split(",")]
    for name in names:
        one_of("--tasks", name, BENCHMARKS)
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not installed",
            why="prompts and metrics of the benchmarks are lm-eval's",
            fix="pip install 'native-reasoning[eval]'",
        )
    return [b for b in BENCHMARKS.values() if b.name in names]


def one_of(flag: str, value: str, known: Collection[str]) -> None:
    """Raises ConfigError for a value that a flag does not know."""
    if value not in known:
        raise ConfigError(
            f"{flag} does not know {value!r}{did_you_mean(value, known)}",
            why="it picks from a list",
            fix=f"one of: {' '.join(known)}",
        )


def askable(
    benchmarks: Sequence[Benchmark],
    data_dir: Path | None,
    run_code: bool,
    say: Callable[[str], None],
) -> list[Benchmark]:
    """The benchmarks that can be asked; the others are said and left out. Raises DataError where
    none is left."""
    kept = []
    for b in benchmarks:
        if b.name == "humaneval" and not run_code:
            say("humaneval is left out: it runs code that the model wrote (--run-code)")
        elif data_dir is not None and not (data_dir / b.name).is_dir():
            say(f"{b.name} is left out: {data_dir / b.name} is not there")
        else:
            kept.append(b)
    if not kept:
        raise DataError(
            "no benchmark is left",
            why="--data-dir has none of their folders, or --run-code was not given",
            fix="docs/benchmarks.md has the layout; without --data-dir the hub is asked",
        )
    return kept
