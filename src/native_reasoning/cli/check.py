"""``nrt check``: what would be read from a data file, what goes wrong later, and with ``--sample``
whether there is anything to reinforce.

``nrt train`` says what goes wrong (``look_at``) before it starts.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from tempfile import TemporaryDirectory, gettempdir
from textwrap import shorten
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.inputs import load_data, model_folder, refused_by_libraries
from native_reasoning.cli.output import (
    quiet_libraries,
    say,
    say_loading,
    show,
    show_json,
    show_row,
    show_table,
)
from native_reasoning.config.errors import ConfigError, PolicyError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.recipe import make_config
from native_reasoning.data import Examples
from native_reasoning.data.rows import Example, PromptGroup
from native_reasoning.data.template import Template
from native_reasoning.data.tokens import prepare
from native_reasoning.evaluation.grading import comparable
from native_reasoning.model.policy import (
    context_of,
    load_tokenizer,
    start_warning,
    template_for,
    warmup_warning,
)
from native_reasoning.records.metrics import METRICS
from native_reasoning.records.progress import clock_text
from native_reasoning.rollout.schedule import make_schedule, total_steps
from native_reasoning.training.forwards import ONE_STEP, full_step
from native_reasoning.training.headroom import ask, told
from native_reasoning.training.memory import fitting
from native_reasoning.training.trainer import NRTTrainer

_NUMBER = re.compile(r"[-+$€£]?\d[\d,]*(\.\d+)?(/\d+)?\s*%?\.?")
_FEW_ANSWERS, _ENOUGH_ROWS = 3, 20


def run(parsed: Parsed) -> int:
    """Checks a source; warnings do not change the exit code."""
    quiet_libraries()
    name, own = parsed.positional, parsed.own
    if own["sample"] and not own["model"]:
        raise ConfigError("--sample without --model", why="nobody is asked", fix="--model M")
    config = make_config(parsed.settings, output_dir=gettempdir(), use_cpu=True)
    data = load_data(name, config)
    held_out = load_data(own["eval_data"], config, held_out=True) if own["eval_data"] else None
    about, warnings = look_at(data, held_out, config)
    first = data.examples[0]
    found: dict[str, Any] = {
        **asdict(data.report),
        **about,
        "lengths": {
            "unit": "words",
            "prompt": percentiles(
                [sum(len(text.split()) for _, text in row.prompt) for row in data.examples]
            ),
            "answer": percentiles([len(row.answer.split()) for row in data.examples]),
        },
        "example": {
            "prompt": "\n".join(f"{role}: {text}" for role, text in first.prompt),
            "trace": "(written by the model)",
            "answer": first.answer,
        },
    }
    if own["model"]:
        about, told = with_model(own["model"], data, config)
        found |= about
        warnings += told
    found["warnings"] = [*data.report.warnings(), *warnings]
    if own["sample"]:
        found["headroom"] = headroom(own["model"], data, parsed.settings, own["sample"])
    if own["json"]:
        show_json(found)
    else:
        show("\n".join(data.report.lines()) + "\n")
        show_found(found)
    return 0


def show_found(found: Mapping[str, Any]) -> None:
    """What was found, as text on stdout."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["answers"].items())
    rows = [["answers", kinds], ["answer in its prompt", f"{found['answers_in_prompt']} rows"]]
    if "eval_data" in found:
        other = found["eval_data"]
        rows.append(["held out", f"{other['rows']} rows, {other['overlap']} of them in training"])
    if "model" in found:
        rows.append(["model", f"{found['model']} ({found['parameters']:,} parameters)"])
        rows.append(["boundary", f"{found['boundary']}: {' '.join(map(repr, found['think']))}"])
    show_table(["", ""], rows)
    lengths, limits = dict(found["lengths"]), found.get("limits", {})
    show("")
    header = [f"length in {lengths.pop('unit')}", "median", "90 %", "99 %", "longest", "limit"]
    numbers = {part: [*map(str, of.values())] for part, of in lengths.items()}
    show_table(header, [[p, *of, str(limits.get(p, "-"))] for p, of in numbers.items()])
    seen = ", as the model sees it" if "model" in found else ""
    show_row(f"\nfirst row{seen}", found["example"])
    show("\nwarnings:" if found["warnings"] else "\nno warnings")
    for warning in found["warnings"]:
        show(f"  ! {warning}")
    if "model" not in found:
        show("--model M adds lengths in tokens and boundaries")
    elif "headroom" not in found:
        show("--sample 32 asks the model: is there anything to reinforce?")
    else:
        show_headroom(found["headroom"])


# -- What a person should look at ------------------------------------------------------------------


def look_at(
    data: Examples, held_out: Examples | None, config: NRTConfig, most: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What the texts of a source are like, and what goes wrong later with them. Of its rows the
    answers of the first ``most`` are looked at."""
    lines: list[str] = []
    seen = data.examples[:most]
    found, told = _answers(seen, data.report.unit, config.answer_regex is None)
    if held_out is not None:
        shared = overlap(data.examples, held_out.examples)
        found["eval_data"] = {"rows": len(held_out), "overlap": len(shared)}
        if shared:
            lines.append(
                f"{len(shared)} of {len(held_out)} held-out questions are training questions too "
                f"(first: {held_out.report.unit} {shared[0]}); their accuracy says nothing"
            )
    where = f"in the first {len(seen)} rows: " if len(seen) < len(data) else ""
    return found, [*lines, *(where + line for line in told)]


def _answers(seen: Sequence[Example], unit: str, whole: bool) -> tuple[dict[str, Any], list[str]]:
    """``whole``: no --answer-regex cut the answers."""
    lines: list[str] = []
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
    kinds = Counter(map(answer_kind, answers))
    leaking = [example for example in seen if leaks(example)]
    leaked = Counter(answer_kind(example.answer) for example in leaking)
    if leaked["long"] or leaked["short"] > 0.2 * rows:
        first = ", ".join(str(example.line) for example in leaking[:5])
        lines.append(
            f"{len(leaking)} answers stand word by word in their own prompt ({unit} {first}): such "
            "rows need no thought"
        )
    if kinds["long"] > 0.5 * rows:
        lines.append(
            "most answers are long, so hardly any will be matched word by word: of an evaluation, "
            "read uplift and word overlap, not accuracy"
        )
    return {"answers": kinds, "answers_in_prompt": len(leaking)}, lines


def answer_kind(answer: str) -> str:
    """ "number", "short" where accuracy says something (``comparable``), or "long"."""
    if _NUMBER.fullmatch(answer.strip()):
        return "number"
    return "short" if comparable(answer) else "long"


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


# -- A model without its weights ------------------------------------------------------------------


def skeleton(folder: str, config: NRTConfig) -> tuple[Template, Any]:
    """The template and an empty model of a hub id or folder: its weights are not loaded, so that
    think tokens count as trained. Raises PolicyError or TemplateError."""
    template = template_for(None, load_tokenizer(folder, config), config)
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


def with_model(name: str, data: Examples, config: NRTConfig) -> tuple[dict[str, Any], list[str]]:
    """What tokenizer and configuration of a model add, and what goes wrong with them; its weights
    are not loaded."""
    template, model = skeleton(model_folder(name)[0], config)
    prepared = prepare(data.examples, template)
    shown = prepared.prompt_sizes >= 0
    if not shown.any():
        template.group(data.examples[0])  # raises, and says why
    sizes = {"prompt": prepared.prompt_sizes, "answer": prepared.answer_sizes}
    limits = {"prompt": config.max_prompt_length, "answer": config.max_answer_length}
    warnings = [start_warning(template), warmup_warning(template, config)]
    fits = shown
    for part, limit in limits.items():
        if too_long := int((sizes[part] > limit).sum()):
            warnings.append(
                f"{too_long} rows have {part}s of more than {limit} tokens and will be dropped: "
                f"--max-{part}-length {sizes[part].max()} keeps them"
            )
        fits = fits & (sizes[part] <= limit)
    context = context_of(model)
    both = (sizes["prompt"] + sizes["answer"])[fits]
    longest = int(both.max(initial=0)) + config.max_trace_length
    if context and longest > context:
        warnings.append(
            f"a row with a full trace has up to {longest} tokens, and the model was built for "
            f"{context}: lower --max-trace-length or --max-prompt-length"
        )
    if refused := int((~shown).sum()):
        warnings.append(f"{refused} rows are refused by the chat template")
    first = int((fits if fits.any() else shown).argmax())
    found = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "boundary": template.boundary.mode,
        "think": [template.boundary.open_text, template.boundary.close_text],
        "lengths": {
            "unit": "tokens",
            **{part: percentiles(sizes[part][shown].tolist()) for part in sizes},
        },
        "limits": limits,
        "longest_row": {"tokens": longest, "context": context},
        "example": rendered(template.group(data.examples[first]), template),
    }
    return found, [line for line in warnings if line]


# -- A model that is asked -------------------------------------------------------------------------


def headroom(name: str, data: Examples, settings: Mapping[str, Any], count: int) -> dict[str, Any]:
    """What ``training.headroom.ask`` says of a model and these rows, and what a step of full length
    takes; nothing is kept. Raises ConfigError for a preset that samples no traces."""
    folder = model_folder(name)[0]
    with (
        TemporaryDirectory() as nowhere,
        fitting("the traces of these questions", "a smaller --max-tokens-per-forward or --sample"),
    ):
        say_loading(folder)
        with refused_by_libraries():
            args = make_config({**settings}, output_dir=nowhere)
            once = make_config({**settings, **ONE_STEP}, output_dir=nowhere)
            if args.resolved_objective().traces != "sampled":
                raise ConfigError(
                    f"--sample with preset {args.preset!r}",
                    why="it samples no traces, so there is nothing to compare",
                    fix="leave --preset out, or name one that does",
                )
            trainer = NRTTrainer(folder, once, data)
        found = ask(trainer, count, say)
        say("one step of full length")
        steps = total_steps(make_schedule(len(trainer.train_groups), args), args)
        return {**found, "steps": steps, **full_step(trainer)}


def show_headroom(found: Mapping[str, Any]) -> None:
    """The numbers of a model that was asked, and the verdict, as text on stdout."""
    share, k = METRICS["eval_accuracy"], found["traces"]
    names = {
        "accuracy_no_think": "right without a trace",
        "accuracy": "right after a trace (pass@1)",
        "pass_at_k": f"right after one of {k} (pass@{k})",
        "best_beats_none": f"reference likelier after the best of {k} than after none",
        "closed": "traces that close themselves",
        "distinct": "distinct traces of a question",
        "flat_groups": "groups of equal rewards",
    }
    rows = []
    for key, label in names.items():
        ends = (found.get(f"{key}_{end}") for end in ("low", "high"))
        low, high = (None if end is None else f"{100 * end:.0f}" for end in ends)
        rows.append([label, share.text(found[key]) + (f" ({low} to {high})" if low else "")])
    memory = found["memory"]
    size = "" if memory is None else f", {memory / 1e9:.3g} GB at the peak"
    seconds, steps = found["seconds_per_step"], found["steps"]
    rows += [
        ["trace entropy (nats per token)", f"{found['trace_entropy']:.2f}"],
        ["head-room (probability)", told(found, "headroom")],
        ["a step of full length", f"{seconds:.3g} s{size}"],
        [f"all {steps} steps", f"at most about {clock_text(seconds * steps)}"],
    ]
    show("")
    show_table([f"{found['questions']} questions x {k} traces", ""], rows)
    show(f"in brackets: 95 % interval over questions\n\n{found['reason']}")
