"""``nrt eval --suite``: the nine benchmarks, thinking off and on."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from native_reasoning.cli.evaluate import asked_for
from native_reasoning.cli.flags import Parsed, number
from native_reasoning.cli.output import finite, quiet_libraries, say, say_loading, show, show_json
from native_reasoning.cli.output import show_table as table
from native_reasoning.config.errors import ConfigError, did_you_mean
from native_reasoning.evaluation.suite.benchmarks import Benchmark, chosen
from native_reasoning.evaluation.suite.needs import require_packages, with_files, without_code

_PACKAGES = ("native-reasoning", "lm-eval", "transformers", "torch", "datasets")


def run(parsed: Parsed) -> int:
    """Runs the suite; returns the exit code."""
    own = parsed.own
    if own["data"] or own["show"]:
        raise ConfigError(
            f"{'--data' if own['data'] else '--show'} with --suite",
            why="the suite brings its own questions",
            fix="leave it away; --data-dir names local files, --out keeps the answers",
        )
    modes, benchmarks = _modes(own["thinking"] or "both"), _benchmarks(own)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    quiet_libraries()
    if own["out"]:  # a path that cannot be written to is better known now than after hours
        Path(own["out"]).open("a", encoding="utf-8").close()
    model, settings = asked_for(parsed)
    with TemporaryDirectory() as nowhere:
        result, items = _evaluate(model, settings, own, modes, benchmarks, nowhere)
    if own["out"]:
        lines = (json.dumps(finite(item), allow_nan=False) + "\n" for item in items)
        Path(own["out"]).write_text("".join(lines), encoding="utf-8")
    if own["json"]:
        show_json(result)
    else:
        _show(result)
    return 0


def _modes(thinking: str) -> tuple[str, ...]:
    from native_reasoning.evaluation.suite.benchmarks import MODES

    if thinking not in MODES:
        raise ConfigError(
            f"--thinking is {thinking!r}{did_you_mean(thinking, MODES)}",
            why="it says in which ways each question is asked",
            fix=f"one of: {' '.join(MODES)}",
        )
    return MODES[thinking]


def _benchmarks(own: dict[str, Any]) -> tuple[Benchmark, ...]:
    """Those that were asked for and can be run. Raises ConfigError or DataError."""
    named: Sequence[Benchmark] = chosen(own["suite"], own["tasks"])
    named = without_code(named, bool(own["run_code"]), say)
    if own["data_dir"]:
        named = with_files(named, Path(own["data_dir"]).expanduser(), say)
    require_packages(named)
    return tuple(named)


def _evaluate(
    model: str,
    settings: dict[str, Any],
    own: dict[str, Any],
    modes: tuple[str, ...],
    benchmarks: tuple[Benchmark, ...],
    folder: str,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result, and each question's item, both for JSON."""
    from native_reasoning.cli.inputs import refused_by_libraries
    from native_reasoning.config.recipe import make_config
    from native_reasoning.evaluation.suite.asked import load_asked
    from native_reasoning.evaluation.suite.run import Plan, run_suite

    with refused_by_libraries():
        config = make_config({**settings, "num_generations": "2"}, output_dir=folder)
    plan = Plan(
        benchmarks,
        modes,
        data_dir=Path(own["data_dir"]).expanduser() if own["data_dir"] else None,
        limit=_positive(own, "limit"),
        num_fewshot=number(own, "num_fewshot"),
        chat=bool(own["apply_chat_template"]),
        gen_kwargs=_gen_kwargs(own["gen_kwargs"]),
        batch_size=_positive(own, "batch_size") or 1,
    )
    say_loading(model)
    asked = load_asked(model, config, modes)
    ran = run_suite(asked, config, plan, say)
    result = {
        "suite": own["suite"],
        "model": model,
        "data": own["data_dir"] or "hub",
        "boundary": asked.template.boundary.mode if asked.template else None,
        "max_trace_length": config.max_trace_length,
        "temperature": config.temperature,
        "seed": config.seed,
        "limit": plan.limit,
        "apply_chat_template": plan.chat,
        "gen_kwargs": dict(plan.gen_kwargs),
        "batch_size": plan.batch_size,
        "versions": {name: version(name) for name in _PACKAGES},
        **summary(benchmarks, modes, ran),
    }
    items = [asdict(i) for by_mode in ran.items.values() for some in by_mode.values() for i in some]
    return result, items


def _positive(own: dict[str, Any], name: str) -> int | None:
    value = number(own, name)
    if value == 0:
        raise ConfigError(
            f"--{name.replace('_', '-')} is 0",
            why="nothing would be asked",
            fix="a number from 1 on",
        )
    return value


def _gen_kwargs(text: str | None) -> dict[str, Any]:
    """``max_gen_toks=64,temperature=0.7`` as lm-eval reads it. Raises ConfigError."""
    if text is None:
        return {}
    from lm_eval.utils import simple_parse_args_string

    from native_reasoning.evaluation.suite.generation import generation

    parts = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and equals for name, equals, _ in parts):
        raise ConfigError(
            f"--gen-kwargs is {text!r}",
            why="it is a list of name=value",
            fix="--gen-kwargs max_gen_toks=64",
        )
    return generation(simple_parse_args_string(text))


# -- The result -----------------------------------------------------------------------------------


def summary(benchmarks: Sequence[Benchmark], modes: Sequence[str], ran: Any) -> dict[str, Any]:
    """A row for each benchmark of a ``Ran``, None for a way in which it was not asked, and the mean
    over the benchmarks that were asked in every way."""
    from native_reasoning.evaluation.suite.scores import mean_of, mean_over

    told, means = [], {mode: [] for mode in modes}
    for b in benchmarks:
        by_mode = ran.items[b.name]
        if not by_mode:
            continue
        first = next(iter(by_mode.values()))
        row: dict[str, Any] = {
            "benchmark": b.name,
            "metric": b.metric if b.filter == "none" else f"{b.metric},{b.filter}",
            "questions": len(first),
            "num_fewshot": ran.shots[b.name],
            "task_version": ran.versions[b.name],
            "prompts": sha256("".join(i.prompt_hash for i in first).encode()).hexdigest()[:16],
        }
        told.append(row | _columns(modes, by_mode))
        for mode in modes if len(by_mode) == len(modes) else ():
            means[mode].append(mean_of([i.value for i in by_mode[mode]]))
    overall = {mode: mean_over(found) for mode, found in means.items()}
    mean = {mode: _cell(m) for mode, m in overall.items()}
    return {"benchmarks": told, "mean": mean}


def _columns(modes: Sequence[str], by_mode: Mapping[str, Any]) -> dict[str, Any]:
    from native_reasoning.evaluation.suite.scores import gain_of, mean_of

    found: dict[str, Any] = dict.fromkeys(modes)
    for mode, items in by_mode.items():
        found[mode] = _cell(mean_of([i.value for i in items]))
        if mode == "on":
            found[mode]["trace_length"] = mean_of([i.trace_length or 0 for i in items]).value
            found[mode]["closed"] = mean_of([float(bool(i.closed)) for i in items]).value
    if {"off", "on"} <= set(modes):
        both = {"off", "on"} <= set(by_mode)
        found["gain"] = _cell(gain_of(by_mode["off"], by_mode["on"])) if both else None
    return found


def _cell(mean: Any) -> dict[str, Any]:
    return {"value": mean.value, "stderr": mean.stderr}


def _show(result: Mapping[str, Any]) -> None:
    modes = list(result["mean"])
    gains = "gain" in result["benchmarks"][0]
    header = ["benchmark", "metric", "n", *(_title(mode) for mode in modes)]
    header += ["gain", "trace tokens", "closed"] if gains else []
    rows = []
    for row in result["benchmarks"]:
        cells = [row["benchmark"], row["metric"], str(row["questions"])]
        cells += [_percent(row[mode]) for mode in modes]
        if gains:
            on = row["on"]
            cells += [_percent(row["gain"]), f"{on['trace_length']:.0f}" if on else "-"]
            cells.append(f"{on['closed']:.0%}" if on else "-")
        rows.append(cells)
    last = ["mean", "", "", *(_percent(result["mean"][mode]) for mode in modes)]
    rows.append(last + [""] * (len(header) - len(last)))
    table(header, rows)
    show("in %, ± one standard error over questions")
    show(f"model  {result['model']}\ndata   {result['data']}")


def _title(mode: str) -> str:
    return mode if mode == "plain" else f"thinking {mode}"


def _percent(cell: Mapping[str, float | None] | None) -> str:
    if cell is None:
        return "-"
    value, stderr = cell["value"], cell["stderr"]
    assert value is not None
    return f"{100 * value:.1f}" + (f" ± {100 * stderr:.1f}" if stderr is not None else "")
