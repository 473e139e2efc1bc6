"""The verbs that show: ``nrt demo``, ``nrt report`` and ``nrt presets``.

No torch at the top: ``nrt presets`` answers at once. docs/make_objectives.py writes its texts as
pages.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import Any

from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.output import quiet_libraries, say, show, show_json, show_table
from native_reasoning.config.errors import RunError
from native_reasoning.config.methods import differences
from native_reasoning.config.papers import DEFAULT, PRESETS, Preset, find_preset
from native_reasoning.config.settings import SETTINGS


def demo(parsed: Parsed) -> int:
    """Runs the demo and prints its table."""
    quiet_libraries()
    from native_reasoning.demo.race import render, run_demo

    result = run_demo(seed=parsed.own["seed"] or 0, out=parsed.own["out"], say=say)
    if parsed.own["json"]:
        show_json(result)
    else:
        show(render(result))
    return 0


# -- nrt report ------------------------------------------------------------------------------------


def report(parsed: Parsed) -> int:
    """Writes the page, and with --watch again while the run trains; returns the exit code."""
    from native_reasoning.report import EVERY, keep_fresh, write_report
    from native_reasoning.report.comparison import RESULT

    paths = run_folders(parsed.positionals)
    folder = paths[0] if len(paths) == 1 else paths[0].parent
    out = Path(parsed.own["out"] or folder / "report.html")
    compared = Path(parsed.positional) / RESULT if len(parsed.positionals) == 1 else None
    known = compared is not None and compared.is_file() and json.loads(compared.read_bytes())
    refresh = EVERY if parsed.own["watch"] else 0
    problems = write_report(paths, out, refresh=refresh, comparison=known or None)
    for problem in problems:
        say(f"note: {problem}")
    if parsed.own["json"]:
        runs = [str(path) for path in paths]
        show_json({"report": str(out), "runs": runs, "problems": problems})
    else:
        show(f"{out}  ({out.stat().st_size / 1e6:.1f} MB: open it in a browser)")
    if parsed.own["watch"]:
        say(f"written again every {EVERY} seconds while the run trains; Ctrl-C ends it")
        keep_fresh(paths, out)
    return 0


def run_folders(names: Sequence[str]) -> list[Path]:
    """The run folders that are named, each once; a folder that only holds runs stands for them."""
    from native_reasoning.report.runs import is_run

    found: dict[Path, Path] = {}
    for path in map(Path, names):
        runs = [path] if is_run(path) else sorted(filter(is_run, path.glob("*")))
        if not runs:
            raise RunError(
                f"{path} {'holds no run' if path.is_dir() else 'is not there'}",
                why="a run folder has config.yaml or metrics.jsonl in it",
                fix="name the folder that `nrt train` said it was training into",
            )
        for one in runs:
            found.setdefault(one.resolve(), one)
    return [*found.values()]


# -- nrt presets -----------------------------------------------------------------------------------


def presets(parsed: Parsed) -> int:
    """Prints them all, or one."""
    name = parsed.positional
    if name:
        preset = find_preset(name)
        if parsed.own["json"]:
            show_json({"name": name, **entry(preset)})
        else:
            _explain(name, preset)
    elif parsed.own["json"]:
        show_json({key: entry(preset) for key, preset in PRESETS.items()})
    else:
        show_table(["preset", "rewards"], [[key, p.summary] for key, p in PRESETS.items()])
        show("nrt presets NAME explains one; nrt train --preset NAME uses it")
    return 0


def entry(preset: Preset) -> dict[str, Any]:
    """All that is known of a preset, as plain values."""
    method = preset.method
    return {
        "title": method.title,
        "summary": preset.summary,
        "source": method.source,
        "form": preset.form,
        "formula": method.formulas.get(preset.form, method.formula),
        "differs": list(differences(method, preset.form)),
        "published": method.published,
        **asdict(preset.settings),
    }


def setting_rows(preset: Preset) -> list[list[str]]:
    """Every setting with its value and meaning; * where the value is not that of nrt-ws."""
    rows = []
    for name, f in SETTINGS.items():
        value = getattr(preset.settings, name)
        mark = "*" if value != getattr(DEFAULT, name) else ""
        rows.append([name, f"{value}{mark}", f.metadata["help"]])
    return rows


def command(name: str, preset: Preset) -> str:
    """The command line that trains as the authors' runs did, on one device, as far as settings go:
    one prompt with its traces is a micro-batch."""
    return f"nrt train --preset {name} {preset.method.published} --model M --data F"


def _explain(name: str, preset: Preset) -> None:
    method = preset.method
    show(f"{name}: {method.title}\n{preset.summary}\nsource: {method.source}\n")
    show(indent(method.formulas.get(preset.form, method.formula), "    ") + "\n")
    if told := differences(method, preset.form):
        show("what differs from the source, and why:")
        show("\n".join(f"  - {text}" for text in told) + "\n")
    show_table(["setting", "value", "meaning"], setting_rows(preset))
    show("* not as in nrt-ws\n")
    if method.published:
        show(f"with the settings of the authors' runs:\n  {command(name, preset)}")
    show(f"nrt train --preset {name} ...; --objective.clip and so on change one setting of it")
