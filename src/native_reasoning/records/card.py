"""The model card: README.md of a saved folder, in the hub's form (card.md.jinja).

All of it comes from the run folder (config.yaml, metrics.jsonl) and from the base model's own card.
Nothing that a model wrote is in it, and what files and settings say is escaped.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, model_info

from native_reasoning.config.errors import printable
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.papers import find_preset
from native_reasoning.config.settings import COMMON_ARGUMENTS
from native_reasoning.data.sources import is_hub_id
from native_reasoning.model.folders import is_path
from native_reasoning.records.disk import write_atomically
from native_reasoning.records.folder import read_config, read_metrics
from native_reasoning.records.metrics import COLLAPSE, STATES, evaluation_rows

NAME = "README.md"
#: A card with this line is ours to write anew; without it, it is somebody's own.
OURS = "<!-- native-reasoning writes this card anew unless this line is taken out -->"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_PATIENCE = 5.0  # seconds that the hub has to answer
#: What can be a name of the hub's, or of a licence.
_IDENTIFIER = re.compile(r"[\w.+-]{1,96}(/[\w.+-]{1,96})?")

_ALWAYS = {*COMMON_ARGUMENTS, "num_generations", "max_trace_length", "temperature"}
#: Settings that are about the machine or a place, or that have a line of their own.
_ELSEWHERE = re.compile(
    r"(eval|hub|logging|save|vllm_server)_.*|output_dir|run_name|project|report_to|preset|use_cpu"
)
#: Settings whose text is part of prompts.
_TEXTS = {"boundary_text", "system_prompt", "think_close", "think_open"}


def write_card(folder: Path, run: Path, step: int) -> None:
    """Writes README.md into the folder of a model of the run folder ``run``, as it was after
    ``step`` optimiser steps, unless somebody's own is there. Raises RunError where the run cannot
    be read."""
    path = folder / NAME
    if not path.is_file() or OURS in path.read_text("utf-8", errors="replace"):
        write_atomically(path, card(run, step))


def card(run: Path, step: int) -> str:
    """The card's text."""
    page = read_config(run)
    config: dict[str, Any] = page["config"]
    base = base_of(str(config.get("model") or ""))
    preset = find_preset(config["preset"])
    licence: Any = {"license": "unknown", **base["head"]}
    functions: list[str] = config.get("reward_funcs") or []
    head = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["reasoning", "native-reasoning", config["preset"]],
        **licence,
    )
    made = ModelCard.from_template(
        head,
        template_path=str(_TEMPLATE),
        ours=OURS,
        plain=plain,
        name=run.resolve().name,
        base=base["name"],
        licence=base["head"].get("license", "unknown"),
        preset_name=config["preset"],
        preset=preset,
        custom=[name for name in (config.get("objective_func"), *functions) if name],
        adapter=bool(config.get("use_peft") or config.get("peft_config")),
        boundary=page["boundary"],
        system_prompt=config.get("system_prompt"),
        step=step,
        data=_data(page),
        data_hash=page["data_hash"],
        versions=", ".join(f"{name} {value}" for name, value in page["versions"].items()),
        settings=_block(yaml.safe_dump(_settings(config), allow_unicode=True).rstrip()),
        states=STATES,
        **_measured(run, step),
    )
    return str(made)


def base_of(name: str) -> dict[str, Any]:
    """What the README.md of a base model, a hub id or a folder, says of it: its ``name``, and under
    ``head`` as much as is known of base_model, license, license_name and license_link. The hub is
    asked once."""
    if not name:
        return {"name": "", "head": {}}
    path, local = Path(name).expanduser(), is_path(name)
    try:
        found = ModelCard.load(path / NAME) if local else None
        about: Any = found.data if found else model_info(name, timeout=_PATIENCE).card_data
    except Exception:  # no network, no such file, no YAML: of many libraries
        found = about = None
    head = {"base_model": None if local else name, "license": getattr(about, "license", None)}
    if found is not None and OURS in found.content:
        head["base_model"] = getattr(about, "base_model", None)
    head = {k: v for k, v in head.items() if isinstance(v, str) and _IDENTIFIER.fullmatch(v)}
    for key in ("license_name", "license_link") if head.get("license") == "other" else ():
        value = getattr(about, key, None)
        head |= {key: value} if isinstance(value, str) and len(value) < 200 else {}
    return {"name": _folder_name(path.resolve()) if local else name, "head": head}


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    text = html.escape(printable(text).replace("\n", " "), quote=False)
    return re.sub(r"([\\`*_\[\]|{}#~$])", r"\\\1", text)


def _folder_name(path: Path) -> str:
    """A folder's name, with the run's where it is a part of one: other paths say too much."""
    inside = path.name == "final" or path.name.startswith("checkpoint-")
    return "/".join(path.parts[-2:]) if inside else path.name


def _block(text: str) -> str:
    """A fenced block that ``text`` cannot end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{printable(text)}\n{fence}"


def _data(page: Mapping[str, Any]) -> str:
    """``qa.jsonl: 12 of 12 rows``, after the account of the data; a path's last name alone."""
    found = re.match(r"(.*): (\d+ of \d+ rows)", next(iter(page.get("data_report") or ()), ""))
    if found is None:
        return ""
    source = found[1]
    if not is_hub_id(source.partition(" [")[0]) or source.startswith("."):
        source = re.split(r"[/\\]+", source.rstrip("/"))[-1]
    return f"{source}: {found[2]}"


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are no default, and the usual ones: numbers, names and texts of prompts; no
    path and no address, which have a slash."""
    defaults = {field.name: field.default for field in fields(NRTConfig)}
    return {
        name: value
        for name, value in config.items()
        if name in defaults
        and not _ELSEWHERE.fullmatch(name)
        and (name in _ALWAYS or value != defaults[name])
        and (name in _TEXTS or not re.search(r"[/\\]", str(value)))
    }


def _measured(run: Path, step: int) -> dict[str, Any]:
    """The last evaluation of the run's own questions, at ``step`` if there is one: its step, its
    metrics, rows of them for people, and the bounds of what thinking gained; and the last
    state of the collapse guard."""
    lines = read_metrics(run)
    evaluated = [x for x in lines if "eval_accuracy" in x and "eval_other_data" not in x]
    last = ([line for line in evaluated if line["step"] == step] or evaluated or [None])[-1]
    states = [line[COLLAPSE] for line in lines if line.get(COLLAPSE) is not None]
    state = int(states[-1]) if states else None
    found = {key.removeprefix("eval_"): x for key, x in (last or {}).items()}
    gain = [found.get(f"accuracy_gain_{end}") for end in ("low", "high")]
    return {
        "evaluation": found,
        "rows": evaluation_rows(found),
        "gain": None not in gain and gain,
        "state": state,
    }
