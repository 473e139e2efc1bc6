"""``nrt check``: what would be read from a data file, and what goes wrong later."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from tempfile import gettempdir
from typing import Any

from native_reasoning.cli import doctor
from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.inputs import load_data, model_folder
from native_reasoning.cli.output import quiet_libraries, show, show_json, show_row, show_table
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.recipe import make_config
from native_reasoning.data import Examples
from native_reasoning.data.tokens import prepare
from native_reasoning.model.policy import context_of, start_warning, warmup_warning


def run(parsed: Parsed) -> int:
    """Checks a source; warnings do not change the exit code."""
    quiet_libraries()
    name, own = parsed.positional, parsed.own
    config = make_config(parsed.settings, output_dir=gettempdir(), use_cpu=True)
    data = load_data(name, config)
    held_out = load_data(own["eval_data"], config) if own["eval_data"] else None
    warnings = doctor.data_warnings(name, data, held_out, config, data.examples)
    first = data.examples[0]
    found: dict[str, Any] = {
        **asdict(data.report),
        "answers": Counter(doctor.answer_kind(row.answer) for row in data.examples),
        "answers_in_prompt": sum(map(doctor.leaks, data.examples)),
        "lengths": {
            "unit": "words",
            "prompt": doctor.percentiles(
                [sum(len(text.split()) for _, text in row.prompt) for row in data.examples]
            ),
            "answer": doctor.percentiles([len(row.answer.split()) for row in data.examples]),
        },
        "example": {
            "prompt": "\n".join(f"{role}: {text}" for role, text in first.prompt),
            "trace": "(written by the model)",
            "answer": first.answer,
        },
    }
    if held_out is not None:
        shared = doctor.overlap(data.examples, held_out.examples)
        found["eval_data"] = {"rows": len(held_out), "overlap": len(shared)}
    if own["model"]:
        about, told = with_model(own["model"], data, config)
        found |= about
        warnings += told
    found["warnings"] = warnings + [line for line in [data.report.warning()] if line]
    if own["json"]:
        show_json(found)
    else:
        show("\n".join(data.report.lines()) + "\n")
        show_found(found)
    return 0


def with_model(name: str, data: Examples, config: NRTConfig) -> tuple[dict[str, Any], list[str]]:
    """What tokenizer and configuration of a model add, and what goes wrong with them; its weights
    are not loaded."""
    template, model = doctor.skeleton(model_folder(name)[0], config)
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
            **{part: doctor.percentiles(sizes[part][shown].tolist()) for part in sizes},
        },
        "limits": limits,
        "longest_row": {"tokens": longest, "context": context},
        "example": doctor.rendered(template.group(data.examples[first]), template),
    }
    return found, [line for line in warnings if line]


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
