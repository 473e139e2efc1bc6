"""``nrt presets``: the objectives as a table, or one of them explained."""

from dataclasses import asdict, fields

from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.output import show, show_json, show_table
from native_reasoning.errors import ConfigError, did_you_mean
from native_reasoning.options import NRTOptions
from native_reasoning.presets import PRESETS

_COLUMNS = ("reward", "clip", "answer_weight", "scale")

#: Settings of an objective that are no option of the command line.
_OTHERS = {
    "baseline": "what the trace is compared with: the answer without a trace, or nothing",
    "ratio_low": "lower bound of the importance ratio",
    "ratio_high": "upper bound of the importance ratio",
    "traces": "whether traces are sampled, or every trace is the empty one",
}


def run(parsed: Parsed) -> int:
    """Prints the table, or one preset."""
    name = parsed.positional
    if name is not None and name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}{did_you_mean(name, PRESETS)}",
            why="there is nothing to explain",
            fix="nrt presets lists them all",
        )
    rows = {
        key: {"summary": preset.summary, "source": preset.source, **asdict(preset.objective)}
        for key, preset in PRESETS.items()
    }
    if parsed.own["json"]:
        show_json(rows if name is None else {"name": name, **rows[name]})
    elif name is None:
        show_table(
            ["name", *(column.replace("_", " ") for column in _COLUMNS), "source"],
            [[k, *(str(row[c]) for c in _COLUMNS), row["source"]] for k, row in rows.items()],
        )
        show("nrt presets NAME explains one; nrt train --preset NAME uses it")
    else:
        _explain(name, rows[name])
    return 0


def _explain(name: str, row: dict) -> None:
    told = {f.name: f.metadata["help"] for f in fields(NRTOptions)} | _OTHERS
    show(f"{name}: {row['summary']}\nsource: {row['source']}\n")
    settings = [key for key in row if key not in ("summary", "source")]
    show_table(
        ["setting", "value", "meaning"],
        [[key, str(row[key]), told.get(key, "").split("; default")[0]] for key in settings],
    )
    show(f"\nnrt train --preset {name} ...; --reward, --clip and so on change one setting of it")
