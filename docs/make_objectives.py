"""Writes docs/objectives/ from the tables of the package: ``python docs/make_objectives.py``.

One page per method with all of its forms, and README.md with the whole table. A test compares the
pages with what this would write.
"""

from pathlib import Path

from native_reasoning.cli.show import COLUMNS, command, setting_rows, table_row
from native_reasoning.config.methods import METHODS, differences
from native_reasoning.config.papers import PRESETS, Preset

FOLDER = Path(__file__).parent / "objectives"
NOTE = "<!-- written by docs/make_objectives.py -->"
INTRODUCTION = """Every preset is a choice of settings of one computation
([settings.py](../../src/native_reasoning/config/settings.py)); each can be changed by itself:
`nrt train --preset verifree --objective.beta 0.001`. A rival has two forms: its own recipe, and
`@shared`, which takes only f and the answer weight from it and all else from `nrt-ws`. `-paper`
has the exact answer weights, `-released` no clip."""
LEGEND = """f: what a trace is worth. R_base: the empty trace's worth, and with whose weights.
answer: what a reference token weighs. policy tokens: sampled tokens with policy gradient, ŷ a
sampled answer. KL: coefficient. bad format: what happens to a trace without its tag, + the loss on
a tag that was spliced in."""
NOT_RUN = "<!-- not run: a model of your choice, at the authors' sizes -->"
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


def forms_of(name: str) -> dict[str, Preset]:
    """The presets that are forms of a method."""
    return {key: preset for key, preset in PRESETS.items() if preset.method is METHODS[name]}


def form_text(key: str, preset: Preset) -> str:
    """One form: its line of the table, what differs from the source, settings unlike nrt-ws."""
    parts = [f"## `{key}`: {FORMS[preset.form][0].lower()}{FORMS[preset.form][1:]}"]
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


def page(name: str) -> str:
    """The page of a method."""
    method = METHODS[name]
    parts = [
        NOTE,
        f"# {method.title}",
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
        parts += ["## As its authors ran it", told, block]
    parts.append(f"`nrt presets {name}` prints every setting. [All objectives](README.md)")
    return "\n\n".join(parts) + "\n"


def index() -> str:
    """The page with the whole table."""
    rows = []
    for key, preset in PRESETS.items():
        name = next(name for name, method in METHODS.items() if method is preset.method)
        rows.append([f"[`{key}`]({name}.md)", *table_row(key, preset)[1:]])
    parts = [NOTE, "# Objectives", INTRODUCTION, table(list(COLUMNS), rows), LEGEND]
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"README.md": index(), **{f"{name}.md": page(name) for name in METHODS}}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
