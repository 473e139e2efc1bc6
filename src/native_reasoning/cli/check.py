"""``nrt check``: what would be read from a data file, and what goes wrong later."""

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from native_reasoning.cli import doctor
from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.inputs import load_data, model_folder
from native_reasoning.cli.output import (
    indented,
    quiet_libraries,
    show,
    show_json,
    show_table,
)
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.recipe import make_config
from native_reasoning.data import Examples

_EXAMPLE_LENGTH = 1500
_ENOUGH_ROWS = 20
_FIRST_ROWS = 1000


def run(parsed: Parsed) -> int:
    """Checks a source; warnings do not change the exit code."""
    from tempfile import gettempdir

    quiet_libraries()
    assert parsed.positional is not None
    name, own = parsed.positional, parsed.own
    config = make_config(parsed.settings, output_dir=gettempdir(), use_cpu=True)
    data = load_data(name, config)
    held_out = load_data(own["eval_data"], config) if own["eval_data"] else None
    found = examine(name, data, config)
    if held_out is not None:
        shared = doctor.overlap(data.examples, held_out.examples)
        found["eval_data"] = {"rows": len(held_out), "overlap": len(shared), "lines": shared[:5]}
    if own["model"]:
        found |= with_model(own["model"], data, config)
    found["warnings"] = warnings_of(found, config)
    if found["question_columns"] and config.prompt_column is None:
        found["warnings"].insert(0, doctor.left_out_warning(found["question_columns"], data.report))
    if own["json"]:
        show_json(found)
    else:
        show_found(found)
    return 0


# -- Looking --------------------------------------------------------------------------------------


def examine(name: str, data: Examples, config: NRTConfig) -> dict[str, Any]:
    """All that the texts alone tell."""
    report, first = data.report, data.examples[0]
    seen = doctor.survey(data.examples)
    return {
        "source": report.source,
        "unit": report.unit,
        "read": report.read,
        "kept": report.kept,
        "columns": [{"used": shape, "rows": count} for shape, count in report.shapes],
        "unused": list(report.unused),
        "question_columns": doctor.left_out(name, report),
        "dropped": [
            {"reason": d.reason, "rows": d.count, "places": d.places, "line": d.line()}
            for d in report.dropped
        ],
        "repeated_prompts": report.repeated_prompts,
        "about_rows": [line for line in [report.warning()] if line],
        **_of_answers(seen),
        "words": {
            "prompt": doctor.percentiles(seen.prompt_words),
            "answer": doctor.percentiles(seen.answer_words),
        },
        "example": {
            "prompt": "\n".join(f"{role}: {text}" for role, text in first.prompt),
            "trace": "(written by the model)",
            "answer": first.answer,
        },
    }


def _of_answers(seen: doctor.Survey) -> dict[str, Any]:
    """What ``_about_answers`` judges."""
    return {
        "answers": dict(seen.answers),
        "marked_answers": seen.marked,
        "few_answers": sorted(seen.distinct) if len(seen.distinct) <= doctor.FEW_ANSWERS else None,
        "leaks": {
            "rows": seen.leaking.total(),
            "long": seen.leaking["long"],
            "numbers": seen.leaking["number"],
            "lines": seen.leaking_lines,
        },
    }


def early_warnings(data: Examples, config: NRTConfig) -> list[str]:
    """What is wrong with the answers, seen from the first rows: a large file is not read again."""
    some = data.examples[:_FIRST_ROWS]
    found = {"kept": len(some), "unit": data.report.unit, **_of_answers(doctor.survey(some))}
    where = f"in the first {len(some)} rows: " if len(some) < len(data) else ""
    return [where + line for line in _about_answers(found, config)]


def with_model(name: str, data: Examples, config: NRTConfig) -> dict[str, Any]:
    """What tokenizer and configuration of a model add; its weights are not loaded."""
    from native_reasoning.data.prepared import prepare
    from native_reasoning.model.policy import context_of, start_warning, warmup_warning

    folder, _ = model_folder(name)
    template, model = doctor.skeleton(folder, config)
    prepared = prepare(data.examples, template)
    shown = prepared.prompt_sizes >= 0
    if not shown.any():
        template.group(data.examples[0])  # raises, and says why
    prompts, answers = prepared.prompt_sizes, prepared.answer_sizes
    short = (prompts <= config.max_prompt_length) & (answers <= config.max_answer_length)
    fits = shown & short
    first = int((fits if fits.any() else shown).argmax())
    boundary = template.boundary
    longest = int((prompts + answers)[fits].max(initial=0)) + config.max_trace_length
    told = (start_warning(template), warmup_warning(template, config))
    return {
        "model": name,
        "about_model": [line for line in told if line],
        "context": {"longest_row": longest, "limit": context_of(model)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "boundary": {
            "mode": boundary.mode,
            "open": boundary.open_text,
            "close": boundary.close_text,
        },
        "refused": int((~shown).sum()),
        "tokens": {
            "prompt": doctor.percentiles(prompts[shown].tolist()),
            "answer": doctor.percentiles(answers[shown].tolist()),
            "prompts_too_long": int((prompts > config.max_prompt_length).sum()),
            "answers_too_long": int((answers > config.max_answer_length).sum()),
            "max_prompt_length": config.max_prompt_length,
            "max_answer_length": config.max_answer_length,
            "fitting": int(fits.sum()),
        },
        "example": doctor.rendered(prepared.group(first), template),
    }


# -- Judging --------------------------------------------------------------------------------------


def warnings_of(found: Mapping[str, Any], config: NRTConfig) -> list[str]:
    """What a person should look at, the worst first."""
    return [*_about_rows(found), *_about_answers(found, config)]


def _about_rows(found: Mapping[str, Any]) -> list[str]:
    lines = [*found.get("about_model", ())]
    unit = found["unit"]
    tokens = found.get("tokens")
    if tokens:
        for what in ("prompt", "answer"):
            count, limit = tokens[f"{what}s_too_long"], tokens[f"max_{what}_length"]
            if count:
                lines.append(
                    f"{count} rows have {what}s of more than {limit} tokens and will be dropped: "
                    f"--max-{what}-length {tokens[what]['max']} keeps them"
                )
    context = found.get("context")
    if context and context["limit"] and context["longest_row"] > context["limit"]:
        lines.append(
            f"a row with a full trace has up to {context['longest_row']} tokens, and the model was "
            f"built for {context['limit']}: lower --max-trace-length or --max-prompt-length"
        )
    if found.get("refused"):
        lines.append(f"{found['refused']} rows are refused by the chat template")
    if found.get("eval_data", {}).get("overlap"):
        other = found["eval_data"]
        lines.append(
            f"{other['overlap']} of {other['rows']} held-out questions are training questions too "
            f"({unit} {', '.join(map(str, other['lines']))} of the held-out data)"
        )
    return [*lines, *found["about_rows"]]


def _about_answers(found: Mapping[str, Any], config: NRTConfig) -> list[str]:
    lines = []
    kept, leaking = found["kept"], found["leaks"]
    if found["marked_answers"] > 0.5 * kept and config.answer_regex is None:
        lines.append(
            r"most answers hold a worked solution before '####': --answer-regex '####\s*(.*)' "
            "keeps the final answer, so that the model writes its own"
        )
    few = found["few_answers"]
    if few and kept >= _ENOUGH_ROWS:
        told = ", ".join(repr(shorten(answer, 40, placeholder=" ...")) for answer in few)
        lines.append(
            f"not more than {len(few)} distinct answer{'s' * (len(few) > 1)} ({told}): "
            "hard to learn from, because a trace that merely names one helps many of them"
        )
    if leaking["long"] or leaking["rows"] - leaking["numbers"] > 0.2 * kept:
        lines.append(
            f"{leaking['rows']} answers stand word by word in their own prompt "
            f"({found['unit']} {', '.join(map(str, leaking['lines']))}): such rows need no thought"
        )
    if found["answers"]["long"] > 0.5 * kept:
        lines.append(
            "most answers are long, so hardly any will be matched word by word: of an evaluation, "
            "read uplift and word overlap, not accuracy"
        )
    return lines


# -- Telling --------------------------------------------------------------------------------------


def show_found(found: Mapping[str, Any]) -> None:
    """All of it on stdout."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["answers"].items() if count)
    columns = "; ".join(
        c["used"] if len(found["columns"]) == 1 else f"{c['used']} ({c['rows']})"
        for c in found["columns"]
    )
    rows = [
        ["data", found["source"]],
        ["rows", f"{found['kept']} of {found['read']} kept"],
        *(["", d["line"]] for d in found["dropped"]),
        ["columns used", columns],
        ["NOT used", ", ".join(found["unused"]) or "(all are used)"],
        ["answers", kinds],
        ["repeated prompts", f"{found['repeated_prompts']}, with another answer"],
        ["answer in its prompt", f"{found['leaks']['rows']} rows"],
    ]
    if "eval_data" in found:
        other = found["eval_data"]
        rows.append(["held out", f"{other['rows']} rows, {other['overlap']} of them in training"])
    show_table(["", ""], rows + (_model_rows(found) if "model" in found else []))
    _show_lengths(found)
    show("\nfirst row, as the model sees it:" if "model" in found else "\nfirst row:")
    for part, text in found["example"].items():
        cut = text if len(text) <= _EXAMPLE_LENGTH else text[:_EXAMPLE_LENGTH] + " ..."
        show(f"{part}:\n{indented(cut)}")
    if found["warnings"]:
        show("\nwarnings:")
        for warning in found["warnings"]:
            show(f"  ! {warning}")
    else:
        show("\nno warnings")
    if "model" not in found:
        show("--model M adds lengths in tokens and boundaries")


def _model_rows(found: Mapping[str, Any]) -> list[list[str]]:
    boundary = found["boundary"]
    how = {
        "existing": "think tokens of the tokenizer (if the weights show that they were trained)",
        "new": "new tokens",
        "text": "plain text, which servers will not split off",
    }[boundary["mode"]]
    return [
        ["model", f"{found['model']} ({found['parameters']:,} parameters)"],
        ["boundary", f"{boundary['mode']}: {boundary['open']!r} {boundary['close']!r}, {how}"],
    ]


def _show_lengths(found: Mapping[str, Any]) -> None:
    unit = "tokens" if "tokens" in found else "words"
    lengths = found[unit]
    names = ("p50", "p90", "p99", "max")
    limits = (
        [str(lengths[f"max_{what}_length"]) for what in ("prompt", "answer")]
        if (unit == "tokens")
        else ["-", "-"]
    )
    rows = [
        [what, *(str(lengths[what][name]) for name in names), limit]
        for what, limit in zip(("prompt", "answer"), limits, strict=True)
    ]
    show("")
    show_table([f"length in {unit}", "median", "90 %", "99 %", "longest", "limit"], rows)
