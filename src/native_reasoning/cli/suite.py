"""``nrt eval --suite``: the nine benchmarks, thinking off and on."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from native_reasoning.cli.flags import Parsed, number
from native_reasoning.cli.output import finite, quiet_libraries, say, say_loading, show, show_json
from native_reasoning.cli.output import show_table as table
from native_reasoning.config.errors import ConfigError
from native_reasoning.evaluation.benchmarks import MODES, Benchmark, askable, chosen, one_of


def run(parsed: Parsed) -> int:
    """Runs the suite; returns the exit code."""
    own = parsed.own
    for flag in ("data", "show"):
        if own[flag]:
            raise ConfigError(
                f"--{flag} with --suite",
                why="the suite brings its own questions",
                fix="leave it away; --data-dir names local files, --out keeps the answers",
            )
    one_of("--thinking", own["thinking"] or "both", MODES)
    data_dir = Path(own["data_dir"]).expanduser() if own["data_dir"] else None
    named = chosen(own["suite"], own["tasks"])
    benchmarks = askable(named, data_dir, bool(own["run_code"]), say)
    quiet_libraries()
    if own["out"]:  # a path that cannot be written to is better known now than after hours
        Path(own["out"]).open("a", encoding="utf-8").close()
    result, items = _evaluate(parsed, benchmarks, data_dir)
    if own["out"]:
        lines = (json.dumps(finite(asdict(item)), allow_nan=False) + "\n" for item in items)
        Path(own["out"]).write_text("".join(lines), encoding="utf-8")
    if own["json"]:
        show_json(result)
    else:
        _show(result)
    return 0


def _evaluate(
    parsed: Parsed, benchmarks: list[Benchmark], data_dir: Path | None
) -> tuple[dict[str, Any], list[Any]]:
    """The result for JSON, and each question's item."""
    from lm_eval.utils import simple_parse_args_string

    from native_reasoning.cli.inputs import asked_for, refused_by_libraries
    from native_reasoning.config.recipe import make_config
    from native_reasoning.evaluation.asked import load_asked
    from native_reasoning.evaluation.harness import Plan, run_suite

    own = parsed.own
    plan = Plan(
        benchmarks,
        MODES[own["thinking"] or "both"],
        data_dir=data_dir,
        limit=number(own, "limit") or None,
        num_fewshot=number(own, "num_fewshot"),
        chat=bool(own["apply_chat_template"]),
        gen_kwargs=simple_parse_args_string(own["gen_kwargs"] or ""),
        batch_size=number(own, "batch_size") or 1,
    )
    model, settings = asked_for(parsed)
    with TemporaryDirectory() as nowhere, refused_by_libraries():
        config = make_config({**settings, "num_generations": "2"}, output_dir=nowhere)
        say_loading(model)
        asked = load_asked(model, config, plan.modes)
        summary, items = run_suite(asked, config, plan, say)
    about = {
        "suite": own["suite"],
        "model": model,
        "data": own["data_dir"] or "hub",
        "boundary": asked.template.boundary.mode if asked.template else None,
        "max_trace_length": config.max_trace_length,
        "temperature": config.temperature,
        "seed": config.seed,
        "limit": plan.limit,
        "apply_chat_template": plan.chat,
        "gen_kwargs": plan.gen_kwargs,
        "batch_size": plan.batch_size,
        "versions": {name: version(name) for name in ("native-reasoning", "lm-eval", "torch")},
    }
    return about | summary, items


def _show(result: Mapping[str, Any]) -> None:
    modes = list(result["mean"])
    columns = [*modes, *(["gain"] if len(modes) == 2 else [])]
    header = ["benchmark", "metric", "n", *(f"thinking {mode}" for mode in modes), *columns[2:]]
    rows = []
    for row in result["benchmarks"]:
        numbers = [_percent(row[column]) for column in columns]
        rows.append([row["benchmark"], row["metric"], str(row["questions"]), *numbers])
    rows.append(["mean", "", "", *(_percent(result["mean"].get(c)) for c in columns)])
    if "on" in modes:
        header += ["trace tokens", "closed"]
        for row, cells in zip(result["benchmarks"], rows, strict=False):
            cells += [f"{row['on']['trace_length']:.0f}", f"{row['on']['closed']:.0%}"]
        rows[-1] += ["", ""]
    table(header, rows)
    show("in %, ± one standard error over questions")
    show(f"model  {result['model']}\ndata   {result['data']}")


def _percent(cell: Mapping[str, Any] | None) -> str:
    if cell is None:  # the mean has no gain
        return ""
    error = cell["stderr"]
    return f"{100 * cell['value']:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
