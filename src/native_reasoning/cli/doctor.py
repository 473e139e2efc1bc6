"""What can be known of data before training: lengths, leaks, kinds of answers."""

import hashlib
import re
import shlex
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from native_reasoning.cli.inputs import split_source
from native_reasoning.data import DataReport, load_rows
from native_reasoning.data.rows import Example
from native_reasoning.data.shapes import BadRow, value_at

_LOOKED_AT = 200
_AT_A_TIME = 1000

_TEXT_COLUMNS = (
    "body",
    "context",
    "passage",
    "background",
    "article",
    "story",
    "paragraph",
    "input",
    "text",
    "options",
    "choice",
)
_NUMBER = re.compile(r"[-+$€£]?\d[\d,]*(\.\d+)?(/\d+)?\s*%?\.?")
SHORT_WORDS = 5
FEW_ANSWERS = 3


# -- Texts ----------------------------------------------------------------------------------------


def overlap(train: Sequence[Example], held_out: Sequence[Example]) -> list[int]:
    """Lines of held-out examples whose prompt, but for case and spaces, is a training prompt."""
    known = {_fingerprint(example) for example in train}
    return [example.line for example in held_out if _fingerprint(example) in known]


def _fingerprint(example: Example) -> bytes:
    """16 bytes for the folded prompt: those of a large file fit in memory."""
    return hashlib.blake2b("\0".join(_folded(example)).encode(), digest_size=16).digest()


def _folded(example: Example) -> tuple[str, ...]:
    return tuple(" ".join(text.casefold().split()) for _, text in example.prompt)


def leaks(examples: Sequence[Example]) -> list[Example]:
    """Examples whose answer stands word by word in their own prompt."""
    found = []
    for example in examples:
        answer = " ".join(example.answer.casefold().split())
        prompt = " ".join(" ".join(_folded(example)).split())
        if answer in prompt and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", prompt):
            found.append(example)
    return found


def answer_kind(answer: str) -> str:
    """ "number", "short" (up to five words) or "long"."""
    if _NUMBER.fullmatch(answer.strip()):
        return "number"
    return "short" if len(answer.split()) <= SHORT_WORDS else "long"


def answer_kinds(examples: Sequence[Example]) -> dict[str, int]:
    """How many answers are of each kind."""
    kinds: dict[str, int] = {"number": 0, "short": 0, "long": 0}
    for example in examples:
        kinds[answer_kind(example.answer)] += 1
    return kinds


@dataclass
class Survey:
    """What the texts of all examples tell: how many answers are of each kind, are ``marked`` with
    ####, or stand in their own prompt (by kind, and the first lines), lengths in words, and the
    first ``distinct`` answers, but for case and spaces: one more than ``FEW_ANSWERS`` at most."""

    answers: Counter[str] = field(default_factory=Counter)
    marked: int = 0
    distinct: set[str] = field(default_factory=set)
    leaking: Counter[str] = field(default_factory=Counter)
    leaking_lines: list[int] = field(default_factory=list)
    prompt_words: "array[int]" = field(default_factory=lambda: array("i"))
    answer_words: "array[int]" = field(default_factory=lambda: array("i"))


def survey(examples: Sequence[Example]) -> Survey:
    """Looks at all examples, some at a time."""
    seen = Survey()
    for start in range(0, len(examples), _AT_A_TIME):
        some = list(examples[start : start + _AT_A_TIME])
        leaking = leaks(some)
        seen.answers.update(answer_kinds(some))
        seen.marked += sum("####" in example.answer for example in some)
        for example in some:
            if len(seen.distinct) > FEW_ANSWERS:
                break
            seen.distinct.add(" ".join(example.answer.casefold().split()))
        seen.leaking.update(answer_kinds(leaking))
        seen.leaking_lines += [example.line for example in leaking][: 5 - len(seen.leaking_lines)]
        seen.prompt_words.extend(_words(example.prompt) for example in some)
        seen.answer_words.extend(len(example.answer.split()) for example in some)
    return seen


def _words(turns: Sequence[tuple[str, str]]) -> int:
    return sum(len(text.split()) for _, text in turns)


def left_out(name: str, report: DataReport) -> list[str]:
    """Columns that look like a part of the question and are not used, by their name and texts.

    Beside an answer at a path (``instances.0.output``) its neighbours are looked at too.
    """
    source, split = split_source(name)
    rows = [row.value for row in islice(load_rows(source, split=split).rows, _LOOKED_AT)]
    answer = report.shapes[0][0].rpartition(" -> ")[2]
    parent = answer.rpartition(".")[0]
    first = _at(rows[0], parent) if parent else None
    beside = [f"{parent}.{key}" for key in first] if isinstance(first, dict) else []
    found = []
    for column in [*report.unused, *beside]:
        named = any(word in column.rpartition(".")[2].casefold() for word in _TEXT_COLUMNS)
        filled = sum(_is_text(_at(row, column)) for row in rows)
        if named and column != answer and filled >= 0.3 * len(rows):
            found.append(column)
    return found


def left_out_warning(columns: Sequence[str], report: DataReport) -> str:
    """What to do about ``left_out`` columns."""
    used = report.shapes[0][0].split(" -> ")[0]
    verb = "is" if len(columns) == 1 else "are"
    return (
        f"{', '.join(columns)} {verb} not used, though the question may need it: "
        f"--prompt-column {shlex.quote('+'.join(_in_order(columns, used)))}"
    )


def _in_order(columns: Sequence[str], used: str) -> list[str]:
    """A context stands before its question, the input of an instruction behind it."""
    behind = [c for c in columns if "input" in c.casefold() or "option" in c or "choice" in c]
    return [*(c for c in columns if c not in behind), used, *behind]


def _at(row: Any, path: str) -> Any:
    try:
        return value_at(row, path)
    except (BadRow, AttributeError, TypeError):
        return None


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, str) and bool(value.strip())


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """The 50th, 90th and 99th percentile, and the largest value."""
    ordered = sorted(values)
    places = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in places.items()}


# -- A model without its weights ------------------------------------------------------------------


def skeleton(folder: str, config: Any) -> tuple[Any, Any]:
    """The template and an empty model of a hub id or folder: its weights are not loaded.

    Whether think tokens of the tokenizer were trained shows only in the weights; here it is
    believed. Raises PolicyError or TemplateError.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from native_reasoning.config.errors import PolicyError
    from native_reasoning.data.template import make_template
    from native_reasoning.model.policy import load_tokenizer, read_text

    tokenizer = load_tokenizer(folder, config.trust_remote_code)
    if config.chat_template_path is not None:
        tokenizer.chat_template = read_text(config.chat_template_path)
    template = make_template(
        tokenizer,
        boundary=config.boundary,
        think=(config.think_open, config.think_close),
        boundary_text=config.boundary_text,
        system_prompt=config.system_prompt,
    )
    try:
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                shape, dtype=torch.float32, trust_remote_code=config.trust_remote_code
            )
    except Exception as error:  # whatever a kind of model makes of fields that it lacks
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise PolicyError(
            f"no configuration could be loaded from {folder}: {told}",
            why="it says how large the model is",
            fix="give a folder with config.json, or a hub id",
        ) from None
    return template, model


def rendered(group: Any, template: Any) -> dict[str, str]:
    """A row as the model sees it, special tokens and boundaries included."""
    decode = template.tokenizer.decode
    boundary = template.boundary
    return {
        "prompt": decode(group.prompt_ids),
        "trace": f"(written by the model, closed by {boundary.close_text!r})",
        "answer": decode([*template.gap_ids, *group.answer_ids]),
    }


def bytes_text(count: int) -> str:
    """1.5 GB, 320 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"
