"""The model card: README.md of a saved folder, in the hub's form.

Nothing that a model wrote is in it. What files and settings say is escaped.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download

from native_reasoning.boundary import Boundary
from native_reasoning.errors import printable
from native_reasoning.names import STATES
from native_reasoning.presets import Preset

NAME = "README.md"
#: A card with this line is ours to write anew; without it, it is somebody's own.
OURS = "<!-- native-reasoning writes this card anew unless this line is taken out -->"
_LARGEST = 1_000_000
_MEASURES = (
    ("accuracy", "accuracy", 100, " %"),
    ("accuracy_greedy", "accuracy, greedy", 100, " %"),
    ("answer_logp", "log-probability of the reference (nats per token)", 1, ""),
)


@dataclass(frozen=True)
class Base:
    """The model that training began with, and what its own card says: ``hub_id`` where it has one,
    ``licence`` an identifier of the hub or None, ``details`` its name and link where it is another.
    """

    name: str
    hub_id: str | None = None
    licence: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What a card tells. ``evaluation`` has the metrics of the last evaluation without ``eval_``,
    at optimiser step ``evaluated_at``; ``data`` is the source's name, rows kept, rows read and the
    content's hash; ``custom`` are names of functions given from Python."""

    name: str
    base: Base
    preset_name: str
    preset: Preset
    boundary: Boundary
    steps: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    data: tuple[str, int, int, str] | None = None
    evaluation: Mapping[str, Any] | None = None
    evaluated_at: int = 0
    collapse: int | None = None
    adapter: bool = False
    custom: Sequence[str] = ()


# -- The base model --------------------------------------------------------------------------------


def find_base(name: str) -> Base:
    """A base model by hub id or folder, as its own README.md tells; the hub is asked for that file
    where it is not here. Whatever cannot be read is unknown."""
    if not name:
        return Base("")
    path = Path(name).expanduser()
    local = path.is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1
    shown, hub_id = (_folder_name(path.resolve()), None) if local else (name, name)
    try:
        file = path / NAME if local else Path(hf_hub_download(name, NAME, etag_timeout=5))
        if not file.is_file() or file.stat().st_size > _LARGEST:
            return Base(shown, hub_id)
        data: Any = ModelCard(file.read_text("utf-8"), ignore_metadata_errors=True).data
    except Exception:  # no network, no such file, no YAML: of many libraries
        return Base(shown, hub_id)
    if local and _is_name(data.base_model):
        hub_id = str(data.base_model)  # a folder that was saved by us, or a copy
    details = {
        key: value
        for key in ("license_name", "license_link")
        if isinstance(value := getattr(data, key, None), str) and len(value) < 200
    }
    licence = str(data.license) if _is_name(data.license) else None
    return Base(shown, hub_id, licence, details)


def _folder_name(path: Path) -> str:
    """A folder's name, with the run's where it is a part of one: other paths say too much."""
    inside = path.name == "final" or path.name.startswith("checkpoint-")
    return "/".join(path.parts[-2:]) if inside else path.name


def _is_name(value: Any) -> bool:
    """Whether something is an identifier, of the hub or of a licence."""
    known = re.compile(r"[\w.+-]{1,96}(/[\w.+-]{1,96})?")
    return isinstance(value, str) and known.fullmatch(value) is not None


# -- Writing ---------------------------------------------------------------------------------------


def write_card(folder: Path, facts: Facts) -> None:
    """Writes README.md into a folder, unless somebody's own is there."""
    path = folder / NAME
    if path.is_file() and OURS not in path.read_text("utf-8", errors="replace"):
        return
    ModelCard(f"---\n{_metadata(facts)}\n---\n\n{OURS}\n\n{body(facts)}").save(path)


def _metadata(facts: Facts) -> str:
    base = facts.base
    return ModelCardData(
        base_model=base.hub_id if _is_name(base.hub_id) else None,
        library_name="transformers",
        license=base.licence or "unknown",
        pipeline_tag="text-generation",
        tags=["reasoning", "native-reasoning", facts.preset_name],
        license_name=base.details.get("license_name"),
        license_link=base.details.get("license_link"),
    ).to_yaml()


def body(facts: Facts) -> str:
    """The card's Markdown."""
    parts = [
        f"# {plain(facts.name)}",
        f"{plain(facts.base.name) or 'A model'}, trained with native-reasoning on questions and "
        f"their answers. {_rewarded(facts)}",
        "## Use",
        _use(facts.boundary),
        "## Training",
        _training(facts),
        "## Evaluation",
        _evaluation(facts),
        "## Limits",
        _limits(facts),
        "## Settings",
        "Those that are not a default, and the usual ones:",
        _block("yaml", yaml.safe_dump(dict(facts.settings), allow_unicode=True).rstrip()),
    ]
    return "\n\n".join(parts) + "\n"


def _rewarded(facts: Facts) -> str:
    """What traces were worth in training."""
    if facts.custom:
        return "What a reasoning trace was worth was up to functions of the trainer's own, below."
    settings = facts.preset.settings
    if settings.reward == "none":
        return "It is a supervised control: reasoning traces were rewarded with nothing."
    if settings.reward == "exact_match":
        return "It is a control: a reasoning trace was worth whether the answer after it was right."
    return (
        "A reasoning trace was worth what it did to the model's own probability of the reference "
        "answer (Native Reasoning Training, "
        "[arXiv 2602.11549](https://arxiv.org/abs/2602.11549), and its relatives); nobody wrote or "
        "judged one."
    )


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    text = html.escape(printable(text).replace("\n", " "), quote=False)
    return re.sub(r"([\\`*_\[\]|{}#~$])", r"\\\1", text)


def _block(kind: str, text: str) -> str:
    """A fenced block that ``text`` cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{printable(text)}\n{fence}"


def _use(boundary: Boundary) -> str:
    if boundary.closes_by_text:
        return (
            f"A trace ends with the words {plain(repr(boundary.close_text.strip()))}, which are "
            "ordinary text: programs and servers return trace and answer as one text, to be cut "
            "where these words stand last. `enable_thinking` does nothing."
        )
    code = """\
from transformers import pipeline

generator = pipeline("text-generation", model="PATH")
turns = [{"role": "user", "content": "..."}]
message = generator(turns, max_new_tokens=2048)[0]["generated_text"][-1]
print(message.get("reasoning_content"), message["content"], sep="\\n---\\n")"""
    tags = f"{plain(boundary.open_text.strip())} and {plain(boundary.close_text)}"
    return "\n\n".join(
        [
            f"{_block('python', code)}",
            f"The chat template opens the trace; {tags} are single tokens around it. Earlier "
            "turns may come with their reasoning, which is left out. `enable_thinking=False` gives "
            "the empty trace: the answer comes at once. Sampling as in training is the default. "
            "`transformers serve PATH` parts reasoning from answer by itself, vLLM with "
            "`vllm serve PATH --reasoning-parser deepseek_r1`.",
        ]
    )


def _training(facts: Facts) -> str:
    method = facts.preset.method
    rows = [
        ("base model", plain(facts.base.name) or "unknown"),
        ("licence of the base model", plain(facts.base.licence or "unknown")),
        ("method", f"{plain(method.title)} ({plain(method.source)})"),
        ("preset", f"`{facts.preset_name}`: {plain(facts.preset.summary)}"),
        ("optimiser steps", str(facts.steps)),
    ]
    if facts.custom:
        rows.append(("functions of the trainer's own", plain(", ".join(facts.custom))))
    if facts.adapter:
        rows.append(("adapter", "low-rank, merged into the weights"))
    if facts.data is not None:
        source, kept, read, digest = facts.data
        rows.append(("data", f"{plain(source)}: {kept} of {read} rows"))
        rows.append(("SHA-256 of its questions and answers", f"`{digest}`"))
    rows.append(("versions", plain(", ".join(f"{k} {v}" for k, v in facts.versions.items()))))
    if facts.collapse is not None:
        rows.append(("state at the end", f"{STATES[facts.collapse]} (of {', '.join(STATES)})"))
    return _table(("", ""), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _evaluation(facts: Facts) -> str:
    found = facts.evaluation
    if found is None:
        return "None was made."
    rows = [
        (label, _interval(found, name, scale, unit), _interval(found, f"{name}_off", scale, unit))
        for name, label, scale, unit in _MEASURES
    ]
    rows.append(("trace (tokens)", _interval(found, "trace_length"), "0"))
    return "\n\n".join(
        [
            f"{found.get('questions', '?')} held-out questions at step {facts.evaluated_at}, with "
            "95 % bootstrap intervals over questions. An answer is right if it is the reference, "
            "or ends with its number where it is one. Traces and answers were sampled as in "
            "training, or taken greedily.",
            _table(("", "thinking", "not thinking"), rows),
        ]
    )


_OFF = {
    "accuracy_off": "accuracy_no_think",
    "accuracy_greedy_off": "accuracy_no_think_greedy",
    "answer_logp_off": "answer_logp_no_think",
}


def _interval(found: Mapping[str, Any], name: str, scale: float = 1, unit: str = "") -> str:
    name = _OFF.get(name, name)
    values = [found.get(key) for key in (name, f"{name}_low", f"{name}_high")]
    if any(value is None for value in values):
        return "–"
    mean, low, high = (f"{scale * float(value):.4g}" for value in values)  # type: ignore[arg-type]
    return f"{mean}{unit} ({low} to {high}{unit})"


def _limits(facts: Facts) -> str:
    found = facts.evaluation
    said = [
        "Nothing checked what a reasoning trace says: it may be wrong, beside the point or no "
        "reason for the answer that follows, and is no explanation of it. Answers may be wrong "
        "too. What the base model knows and how it is biased is still there.",
    ]
    if found is None:
        said.append("Whether thinking helps was not measured.")
    else:
        low, high = found.get("accuracy_gain_low"), found.get("accuracy_gain_high")
        if low is not None and high is not None and low <= 0 <= high:
            said.append("On the held-out questions thinking made no difference that was certain.")
        elif high is not None and high < 0:
            said.append("On the held-out questions thinking made answers worse.")
        said.append(
            "The questions of the evaluation are of the trainer's choosing, often of the same "
            "source as those of training: the numbers say nothing about others."
        )
    if facts.collapse:
        said.append(f"The run was {STATES[facts.collapse]} when it ended: distrust its traces.")
    said.append("No test of safety was made.")
    return " ".join(said)
