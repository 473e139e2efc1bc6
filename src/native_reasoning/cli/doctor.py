"""What can be known of data before training: lengths, leaks, kinds of answers, and what goes wrong
later."""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from textwrap import shorten
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from native_reasoning.cli.inputs import split_source
from native_reasoning.config.errors import PolicyError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data import DataReport, Examples, load_rows
from native_reasoning.data.rows import Example, PromptGroup
from native_reasoning.data.shapes import BadRow, value_at
from native_reasoning.data.template import Template, make_template
from native_reasoning.model.policy import load_tokenizer, read_text

_LOOKED_AT = 200
#: How the columns are named that a question may need.
_TEXT_COLUMNS = (
    *("body", "context", "passage", "background", "article", "story", "paragraph"),
    *("input", "text", "options", "choice"),
)
_NUMBER = re.compile(r"[-+$€£]?\d[\d,]*(\.\d+)?(/\d+)?\s*%?\.?")
_SHORT_WORDS = 5
_FEW_ANSWERS, _ENOUGH_ROWS = 3, 20


def answer_kind(answer: str) -> str:
    """ "number", "short" (up to five words) or "long"."""
    if _NUMBER.fullmatch(answer.strip()):
        return "number"
    return "short" if len(answer.split()) <= _SHORT_WORDS else "long"


def leaks(example: Example) -> bool:
    """Whether the answer stands word by word in its own prompt."""
    answer, prompt = _folded(example.answer), _folded(_text(example))
    return answer in prompt and bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", prompt))


def overlap(train: Sequence[Example], held_out: Sequence[Example]) -> list[int]:
    """Lines of held-out examples whose prompt, but for case and spaces, is a training prompt."""
    known = {hash(_folded(_text(example))) for example in train}
    return [example.line for example in held_out if hash(_folded(_text(example))) in known]


def _text(example: Example) -> str:
    return "\n".join(text for _, text in example.prompt)


def _folded(text: str) -> str:
    """Without case, and with one space for several."""
    return " ".join(text.casefold().split())


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """The 50th, 90th and 99th percentile, and the largest value."""
    ordered = sorted(values)
    places = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in places.items()}


# -- What a person should look at ------------------------------------------------------------------


def data_warnings(
    name: str,
    data: Examples,
    held_out: Examples | None,
    config: NRTConfig,
    seen: Sequence[Example],
) -> list[str]:
    """What goes wrong later with the data of a source, as far as the texts of those ``seen``
    tell."""
    lines = []
    if config.prompt_column is None and (columns := left_out(name, data.report)):
        lines.append(left_out_warning(columns, data.report))
    if held_out is not None and (shared := overlap(data.examples, held_out.examples)):
        lines.append(
            f"{len(shared)} of {len(held_out)} held-out questions are training questions too "
            f"(first: {held_out.report.unit} {shared[0]}); their accuracy says nothing"
        )
    where = f"in the first {len(seen)} rows: " if len(seen) < len(data) else ""
    told = _about_answers(seen, data.report.unit, config.answer_regex is None)
    return [*lines, *(where + line for line in told)]


def _about_answers(seen: Sequence[Example], unit: str, whole: bool) -> list[str]:
    """``whole``: no --answer-regex cut the answers."""
    lines = []
    rows, answers = len(seen), [example.answer for example in seen]
    if whole and sum("####" in answer for answer in answers) > 0.5 * rows:
        lines.append(
            r"most answers hold a worked solution before '####': --answer-regex '####\s*(.*)' "
            "keeps the final answer, so that the model writes its own"
        )
    distinct = sorted(set(map(_folded, answers)))
    if len(distinct) <= _FEW_ANSWERS and rows >= _ENOUGH_ROWS:
        cut = (shorten(answer, 40, placeholder=" ...") for answer in distinct)
        lines.append(
            f"not more than {len(distinct)} distinct answer{'s' * (len(distinct) > 1)} "
            f"({', '.join(map(repr, cut))}): hard to learn from, because a trace that merely names "
            "one helps many of them"
        )
    leaking = [example for example in seen if leaks(example)]
    kinds = Counter(answer_kind(example.answer) for example in leaking)
    if kinds["long"] or kinds["short"] > 0.2 * rows:
        first = ", ".join(str(example.line) for example in leaking[:5])
        lines.append(
            f"{len(leaking)} answers stand word by word in their own prompt ({unit} {first}): such "
            "rows need no thought"
        )
    if sum(answer_kind(answer) == "long" for answer in answers) > 0.5 * rows:
        lines.append(
            "most answers are long, so hardly any will be matched word by word: of an evaluation, "
            "read uplift and word overlap, not accuracy"
        )
    return lines


def left_out(name: str, report: DataReport) -> list[str]:
    """Columns that look like a part of the question and are not used, by their name and texts;
    beside an answer at a path (``instances.0.output``) its neighbours too."""
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
    """What to do about ``left_out`` columns: a context stands before its question, the input of an
    instruction behind it."""
    used = report.shapes[0][0].split(" -> ")[0]
    behind = [c for c in columns if "input" in c.casefold() or "option" in c or "choice" in c]
    whole = [*(c for c in columns if c not in behind), used, *behind]
    verb = "is" if len(columns) == 1 else "are"
    return (
        f"{', '.join(columns)} {verb} not used, though the question may need it: "
        f"--prompt-column {shlex.quote('+'.join(whole))}"
    )


def _at(row: Any, path: str) -> Any:
    try:
        return value_at(row, path)
    except (BadRow, AttributeError, TypeError):
        return None


def _is_text(value: Any) -> bool:
    items: list[Any] = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, str) and item.strip() for item in items)


# -- A model without its weights ------------------------------------------------------------------


def skeleton(folder: str, config: NRTConfig) -> tuple[Template, Any]:
    """The template and an empty model of a hub id or folder: its weights are not loaded, so that
    think tokens count as trained. Raises PolicyError or TemplateError."""
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
            return template, AutoModelForCausalLM.from_config(
                shape, dtype=torch.float32, trust_remote_code=config.trust_remote_code
            )
    except Exception as error:  # whatever a kind of model makes of fields that it lacks
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise PolicyError(
            f"no configuration could be loaded from {folder}: {told}",
            why="it says how large the model is",
            fix="give a folder with config.json, or a hub id",
        ) from None


def rendered(group: PromptGroup, template: Template) -> dict[str, str]:
    """A row as the model sees it, special tokens and boundaries included."""
    decode: Any = template.tokenizer.decode
    return {
        "prompt": decode(group.prompt_ids),
        "trace": f"(written by the model, closed by {template.boundary.close_text!r})",
        "answer": decode([*template.gap_ids, *group.answer_ids]),
    }
