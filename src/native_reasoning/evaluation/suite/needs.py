"""What the suite needs: packages of the extra ``eval``, files of the benchmarks, sentence rules.

Nothing here imports lm-eval.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.evaluation.suite.benchmarks import Benchmark

_PACKAGES = {
    "math": ("math_verify", "sympy", "antlr4"),
    "ifeval": ("langdetect", "immutabledict", "nltk"),
}
#: Files that nltk's sentence tokenizer reads; empty ones leave it with its plain rules.
_PUNKT = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")


def require_packages(benchmarks: Sequence[Benchmark]) -> None:
    """Raises ConfigError where the extra ``eval`` is not installed."""
    wanted = ["lm_eval", *(name for b in benchmarks for name in _PACKAGES.get(b.name, ()))]
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not installed",
            why="prompts and metrics of the benchmarks are lm-eval's",
            fix="pip install 'native-reasoning[eval]'",
        )


def with_files(
    benchmarks: Sequence[Benchmark], data_dir: Path, say: Callable[[str], None]
) -> list[Benchmark]:
    """The benchmarks whose files are in the folder; the others are said and left out. Raises
    DataError where none is left."""
    kept = []
    for benchmark in benchmarks:
        absent = [name for name in benchmark.files if not (data_dir / name).is_file()]
        if absent:
            say(f"{benchmark.name} is left out: {data_dir / absent[0]} is not there")
        else:
            kept.append(benchmark)
    if not kept:
        raise DataError(
            f"{data_dir} has none of the benchmarks' files",
            why="--data-dir is where they are read from",
            fix="docs/benchmarks.md has the layout; without --data-dir the hub is asked",
        )
    return kept


def without_code(
    benchmarks: Sequence[Benchmark], run_code: bool, say: Callable[[str], None]
) -> list[Benchmark]:
    """Leaves out what runs code that the model wrote, unless that was asked for. Raises ConfigError
    where nothing is left."""
    kept = [b for b in benchmarks if run_code or not b.runs_code]
    if not kept:
        raise ConfigError(
            f"{benchmarks[0].name} runs code that the model wrote",
            why="that is off unless it is asked for; SECURITY.md says what the sandbox holds off",
            fix="--run-code",
        )
    for benchmark in benchmarks:
        if benchmark not in kept:
            say(f"{benchmark.name} is left out: it runs code that the model wrote (--run-code)")
    return kept


def sentence_rules(offline: bool, say: Callable[[str], None]) -> "TemporaryDirectory[str] | None":
    """Makes nltk's punkt_tab loadable for IFEval: as installed, else downloaded, else (offline)
    without its lists of abbreviations; then the folder that stands in, to be kept while it runs."""
    import nltk

    if _has_punkt() or (not offline and nltk.download("punkt_tab", quiet=True) and _has_punkt()):
        return None
    say("ifeval: nltk's punkt_tab is not there, so sentences are split by its plain rules")
    folder = TemporaryDirectory()
    english = Path(folder.name) / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    for name in _PUNKT:
        (english / name).touch()
    nltk.data.path.append(folder.name)
    return folder


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True
