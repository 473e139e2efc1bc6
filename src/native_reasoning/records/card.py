"""The model card: README.md of a saved folder, in the hub's form.

Nothing that a model wrote is in it. What files and settings say is escaped.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from native_reasoning.config.errors import printable
from native_reasoning.config.papers import Preset
from native_reasoning.data.boundary import Boundary
from native_reasoning.records.bases import NAME, OURS, Base, is_name, is_ours
from native_reasoning.records.disk import write_atomically
from native_reasoning.records.metrics import STATES

_EXAMPLE = """\
from transformers import pipeline

generator = pipeline("text-generation", model="PATH")
turns = [{"role": "user", "content": "..."}]
message = generator(turns, max_new_tokens=2048)[0]["generated_text"][-1]
print(message.get("reasoning_content"), message["content"], sep="\\n---\\n")"""
_MEASURES = (
    ("accuracy", "accuracy", 100, " %"),
    ("accuracy_greedy", "accuracy, greedy", 100, " %"),
    ("answer_logp", "log-probability of the reference (nats per token)", 1, ""),
)


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


# -- Writing ---------------------------------------------------------------------------------------


def write_card(folder: Path, facts: Facts) -> None:
    """Writes README.md into a folder, unless somebody's own is there."""
    path = folder / NAME
    if path.is_file() and not is_ours(path):
        return
    made = ModelCard(f"---\n{_metadata(facts)}\n---\n\n{OURS}\n\n{body(facts)}")
    write_atomically(path, str(made).encode())


def _metadata(facts: Facts) -> str:
    base = facts.base
    return ModelCardData(
        base_model=base.hub_id if is_name(base.hub_id) else None,
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
        *_use(facts),
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


def _use(facts: Facts) -> list[str]:
    boundary, parts = facts.boundary, []
    if boundary.closes_by_text:
        parts.append(
            f"A trace ends with the words {plain(repr(boundary.close_text.strip()))}, which are "
            "ordinary text: programs and servers return trace and answer as one text, to be cut "
            "where these words stand last. `enable_thinking` does nothing."
        )
    else:
        tags = f"{plain(boundary.open_text.strip())} and {plain(boundary.close_text)}"
        parts += [
            _block("python", _EXAMPLE),
            f"The chat template opens the trace; {tags} are single tokens around it. Earlier "
            "turns may come with their reasoning, which is left out. `enable_thinking=False` gives "
            "the empty trace: the answer comes at once. Sampling as in training is the default. "
            "`transformers serve PATH` parts reasoning from answer by itself, vLLM with "
            "`vllm serve PATH --reasoning-parser deepseek_r1`.",
        ]
    if facts.settings.get("system_prompt"):
        parts.append(
            "It was trained with the `system_prompt` under Settings before questions without a "
            "system turn. The chat template does not add it: send it as the first turn."
        )
    return parts


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
            "95 % intervals over questions. An answer is right if it is the reference, "
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
