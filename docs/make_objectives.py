"""Every objective for docs/objectives.md, where the site is built (conf.py): the whole table, then
each method with all of its forms."""

from native_reasoning.cli.show import command, setting_rows
from native_reasoning.config.methods import METHODS, differences
from native_reasoning.config.papers import PRESETS, Preset
from native_reasoning.config.settings import ObjectiveSettings

NOT_RUN = "<!-- not run: a model of your choice, at the authors' sizes -->"
COLUMNS = (
    *("preset", "f", "R_base, clip", "centre, scale", "answer", "policy tokens"),
    *("ratio", "filter", "KL", "bad format"),
)
TOKENS = {"trace": "z", "trace_tag": "z + tag", "trace_tag_answer": "z + tag + ŷ"}
FORMS = {
    "": "The recipe of its own",
    "paper": "With the paper's answer weights",
    "released": "As the released code has it",
    "shared": "Under the shared recipe",
}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def table_row(name: str, preset: Preset) -> list[str]:
    """A preset as a row under ``COLUMNS``."""
    s = preset.settings
    if s.reward == "none":
        sampled = "z" if s.traces == "sampled" else "empty trace"
        return [name, "-", "-", "-", answer(s), f"none ({sampled})", "-", "-", "-", s.bad_format]
    kl = f"{s.beta:g}" if s.beta else f"{s.kl_in_reward:g} in R" if s.kl_in_reward else "-"
    clip = s.clip if s.clip != "none" else ""
    forced = f" + {s.format_loss_coef:g}" if s.format_loss_coef else ""
    return [
        name,
        reward(s),
        ", ".join(filter(None, (s.baseline if s.baseline != "none" else "-", clip))),
        f"{s.centre}, {scale(s)}" + (", permuted" if s.advantages == "permuted" else ""),
        answer(s),
        TOKENS[s.policy_tokens],
        s.ratio if s.ratio == "none" else f"{s.ratio} {s.ratio_low:g}/{s.ratio_high:g}",
        "-" if s.filter == "none" else f"{s.filter} {s.filter_coef:g}",
        kl,
        s.bad_format + forced,
    ]


def reward(s: ObjectiveSettings) -> str:
    """f and what is added to it."""
    added = {
        "format": s.format_reward,
        "efficiency": s.efficiency_reward,
        "repetition": -s.repetition_penalty,
    }
    first = s.reward if s.reward_coef == 1 else f"{s.reward_coef:g} {s.reward}"
    return first + "".join(f" {value:+g} {name}" for name, value in added.items() if value)


def scale(s: ObjectiveSettings) -> str:
    """What advantages are divided by, and their bound."""
    divisor = s.scale if s.std_eps is None else f"{s.scale} + {s.std_eps:g}"
    return divisor if s.adv_clip is None else f"{divisor}, clip {s.adv_clip:g}"


def answer(s: ObjectiveSettings) -> str:
    """The weight of an answer token."""
    coef = "" if s.answer_coef == 1 or s.answer_weight == "none" else f"{s.answer_coef:g} "
    return coef + s.answer_weight + (", where R > R_base" if s.answer_gate == "relu" else "")


def forms_of(name: str) -> dict[str, Preset]:
    """The presets that are forms of a method."""
    return {key: preset for key, preset in PRESETS.items() if preset.method is METHODS[name]}


def form_text(key: str, preset: Preset) -> str:
    """One form: its line of the table, what differs from the source, settings unlike nrt-ws."""
    parts = [f"### `{key}`: {FORMS[preset.form][0].lower()}{FORMS[preset.form][1:]}"]
    if other := preset.method.formulas.get(preset.form):
        parts.append(f"```\n{other}\n```")
    if told := differences(preset.method, preset.form):
        parts += ["What differs from the source, and why:", "\n".join(f"- {x}" for x in told)]
    rows = [[f"`{n}`", f"`{v}`", text] for n, v, text in setting_rows(preset)]
    changed = [[n, v.replace("*", ""), text] for n, v, text in rows if v.endswith("*`")]
    if changed:
        header = ["setting", "value", "what"]
        parts += ["Settings unlike those of `nrt-ws`:", table(header, changed)]
    else:
        parts += ["Every setting is that of `nrt-ws`."]
    return "\n\n".join(parts)


def method_text(name: str) -> str:
    """A method: formula, source, forms, and how its authors ran it."""
    method = METHODS[name]
    parts = [
        f"## {method.title}",
        f"{method.summary[0].upper()}{method.summary[1:]}.",
        f"Source: {method.source}.",
        f"```\n{method.formula}\n```",
        *(form_text(key, preset) for key, preset in forms_of(name).items()),
    ]
    if method.published:
        told = (
            "With the settings of the authors' runs, which a preset does not set, on one device "
            "(a micro-batch is one prompt with its traces):"
        )
        block = f"{NOT_RUN}\n```sh\n{command(name, PRESETS[name])}\n```"
        parts += [told, block]
    return "\n\n".join(parts)


def page() -> str:
    """The whole of it, in Markdown."""
    rows = [[f"`{key}`", *table_row(key, preset)[1:]] for key, preset in PRESETS.items()]
    parts = [table(list(COLUMNS), rows), *map(method_text, METHODS)]
    return "\n\n".join(parts)
