"""The verbs and flags of ``nrt`` for docs/cli.md, where the site is built (conf.py)."""

from native_reasoning.cli.flags import common_flags, setting_flags
from native_reasoning.cli.verbs import VERBS, Flag, Verb
from native_reasoning.config.settings import GROUPS

EXAMPLES = "<!-- not run: examples of the help, with models of the hub -->"
EXIT_CODES = """| exit code | |
| --- | --- |
| 0 | done |
| 1 | a file could not be written, a run of `nrt compare` failed, or a mistake of ours (traceback) |
| 2 | something that you can mend: three lines on stderr, what, why and fix |
| 130, 143 | stopped by Ctrl-C or SIGTERM, saved; `--resume` goes on |"""
SETTINGS = """Every setting is a flag of `nrt train`, a line of a recipe (`num_generations: 8`)
and a field of `NRTConfig` (`NRTConfig(num_generations=8)`). Those that a verb lists under
*settings* are its flags too. Values stand in square brackets, the default in round ones.

`--objective.NAME` takes the place of one setting of the preset (`nrt presets NAME` lists them):
`objective: {clip: none}` in a recipe, `NRTConfig(objective={"clip": "none"})` in Python."""


def cell(text: object) -> str:
    """Text inside a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", "\\n")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def flag_row(flag: Flag) -> list[str]:
    """A flag and its sentence."""
    taken = {"switch": "", "maybe": f" [{flag.metavar}]"}
    return [f"`{flag.name}{taken.get(flag.kind, f' {flag.metavar}')}`", flag.help]


def verb_text(verb: Verb) -> str:
    """A verb: what it does, its flags, its groups of settings, examples."""
    positional = f" {verb.positional[0]}" if verb.positional else ""
    parts = [f"## `nrt {verb.name}{positional}`", " ".join(verb.text.split())]
    rows = [flag_row(flag) for flag in verb.flags]
    if verb.positional:
        name, count, text = verb.positional
        told = {"?": "may be left out", "+": "one or more"}.get(count)
        rows.insert(0, [f"`{name}`", f"{text} ({told})" if told else text])
    parts.append(table(["argument", "what"], rows))
    if verb.groups:
        theirs = " and every field of transformers' `TrainingArguments`" if verb.common else ""
        named = ", ".join(f"[{group}](#{anchor(group)})" for group in verb.groups)
        parts.append(f"Settings: {named}{theirs}.")
    examples = "\n".join(verb.examples)
    parts.append(f"{EXAMPLES}\n```sh\n{examples}\n```")
    return "\n\n".join(parts)


def anchor(title: str) -> str:
    """The anchor of a heading, as code hosts make it."""
    return "".join(c for c in title.lower() if c.isalnum() or c in " -_").replace(" ", "-")


def page() -> str:
    """All of it, in Markdown."""
    verbs = table(
        ["verb", "what"], [[f"[`{v.name}`](#{verb_anchor(v)})", v.summary] for v in VERBS.values()]
    )
    parts = [verbs, EXIT_CODES]
    parts += [verb_text(verb) for verb in VERBS.values()]
    parts += ["## Settings", SETTINGS]
    header = ["flag", "what"]
    for title in GROUPS:
        parts += [f"### {title}", table(header, list(map(flag_row, setting_flags(title))))]
    note = "Those that are set most, with their defaults; every other field is accepted too."
    told = table(header, list(map(flag_row, common_flags())))
    parts += ["### transformers' TrainingArguments", note, told]
    return "\n\n".join(parts) + "\n"


def verb_anchor(verb: Verb) -> str:
    """The anchor of a verb's heading."""
    return anchor(f"nrt {verb.name}" + (f" {verb.positional[0]}" if verb.positional else ""))
