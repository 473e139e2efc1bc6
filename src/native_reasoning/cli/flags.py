"""Command lines -> settings.

Help is a static table of verbs.py and settings.py, so that it answers at once. Everything else is
transformers' ``HfArgumentParser`` over NRTConfig (recipe.py): ``--num-generations 8`` or
``--num_generations=8``, truth values bare (``--bf16``), ``--objective.clip none``.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, get_args

from native_reasoning.cli.verbs import VERBS, Flag, Verb
from native_reasoning.config.checks import CHANGEABLE
from native_reasoning.config.errors import ConfigError, UsageParser, did_you_mean, nearest
from native_reasoning.config.settings import COMMON_ARGUMENTS, GROUPS, SETTINGS, NRTOptions

_TRUTH = ("true", "false", "yes", "no", "1", "0")
_METAVARS = {bool: "BOOL", int: "N", float: "X"}
_SWITCHES = ("bf16", "activation_checkpointing", "use_cpu")


@dataclass(frozen=True)
class Parsed:
    """A command line: the positional argument ("" where absent), the verb's own flags by name (None
    where absent), the settings of NRTConfig that it names, and every positional argument."""

    positional: str
    own: dict[str, Any]
    settings: dict[str, Any]
    positionals: tuple[str, ...]


def read_verb(arguments: Sequence[str]) -> Verb | None:
    """The verb of a command line; None after printing help or version. Raises ConfigError."""
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        print(overview())
        return None
    if first in ("-V", "--version", "version"):
        from native_reasoning import __version__

        print(f"nrt {__version__}")
        return None
    if first not in VERBS:
        raise ConfigError(
            f"unknown verb {first!r}{did_you_mean(first, VERBS)}",
            why="the first word says what to do",
            fix=f"one of: {', '.join(VERBS)}; nrt --help explains them",
        )
    return VERBS[first]


def overview() -> str:
    """What ``nrt --help`` prints."""
    verbs = "\n".join(f"  {verb.name:9} {verb.summary}" for verb in VERBS.values())
    return (
        "usage: nrt VERB ...\n\n"
        "Trains a causal language model to reason, from question-answer pairs alone.\n\n"
        f"verbs (nrt VERB --help explains each):\n{verbs}\n\n"
        "options:\n  --help     this page\n  --version  the version\n\n"
        "examples:\n  nrt demo\n  nrt check qa.jsonl --model HuggingFaceTB/SmolLM2-135M\n"
        "  nrt train --model HuggingFaceTB/SmolLM2-135M --data qa.jsonl --out runs/first"
    )


def parse(verb: Verb, arguments: Sequence[str]) -> Parsed | None:
    """The rest of a command line; None after printing help. Raises ConfigError."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(help_text(verb), end="")
        return None
    parser: Any = UsageParser(prog=f"nrt {verb.name}", allow_abbrev=False, add_help=False)
    if verb.groups:
        from native_reasoning.config.recipe import SettingsParser

        parser = SettingsParser(prog=f"nrt {verb.name}", conflict_handler="resolve")
    for flag in verb.flags:
        parser.add_argument(*dict.fromkeys((flag.name, f"--{flag.key}")), **_takes(flag))
    if verb.positional:
        name, count, _ = verb.positional
        parser.add_argument("positional", nargs=count or None, metavar=name)
    bare = parser.bare if verb.groups else ()
    found, rest = parser.parse_known_intermixed_args([*_plain(arguments, bare)])
    if rest:
        parser.error(_unknown(verb, rest))
    space = vars(found)
    own = {flag.key: space.pop(flag.key, None) for flag in verb.flags}
    given = space.pop("positional", None)
    several = tuple(given) if isinstance(given, list) else (given,) if given else ()
    return Parsed(several[0] if several else "", own, space, several)


def _takes(flag: Flag) -> dict[str, Any]:
    """What argparse is told of a flag."""
    if flag.kind == "switch":
        return {"action": "store_true"}
    if flag.kind == "maybe":
        return {"metavar": flag.metavar, "nargs": "?", "const": "true"}
    return {"metavar": flag.metavar, "type": int if flag.kind == "number" else str}


def _plain(arguments: Sequence[str], bare: Sequence[str]) -> Iterator[str]:
    """The arguments, with ``=true`` behind truth values that stand alone: what follows is not
    theirs. ``--resume`` is followed by a checkpoint or by something else."""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        alone = argument in bare and following.lower() not in _TRUTH
        alone |= argument == "--resume" and "checkpoint" not in following
        yield f"{argument}=true" if alone else argument


def _unknown(verb: Verb, rest: Sequence[str]) -> str:
    text = next((text for text in rest if text.startswith("-")), None)
    if text is None:
        return f"unrecognized arguments: {' '.join(rest)}"
    name = text.partition("=")[0].lstrip("-").replace("-", "_")
    own = [flag.key for flag in verb.flags]
    near = nearest(name, own)
    if verb.groups:
        from native_reasoning.config.recipe import meant

        near = meant(name, own)
    return f"unknown flag {text}" + (f" (did you mean {_flag(near)}?)" if near else "")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# -- Help ------------------------------------------------------------------------------------------


def setting_flags(title: str) -> list[Flag]:
    """Our settings under a heading of ``GROUPS`` as flags, those of ``--objective.`` behind its
    own."""
    by_name = {f.name: f for f in fields(NRTOptions)}
    flags = [_setting(name, by_name[name]) for name in GROUPS[title] if name != "objective"]
    if "objective" in GROUPS[title]:
        flags += [_setting(f"objective.{name}", SETTINGS[name]) for name in CHANGEABLE]
    return flags


def _setting(name: str, f: "Field[Any]") -> Flag:
    """A setting with its choices, and its default where no preset has one."""
    choices, text = f.metadata["choices"], f.metadata["help"]
    text += f" [{' '.join(choices)}]" if choices else ""
    if "." not in name and f.default not in (None, False) and "\n" not in str(f.default):
        text += f" ({str(f.default).lower() if f.default is True else f.default})"
    kind: Any = (get_args(f.type) or (f.type,))[0]
    metavar = "NAME" if choices else _METAVARS.get(kind, "TEXT")
    return Flag(_flag(name), text, metavar, "maybe" if f.type is bool else "value")


def common_flags() -> list[Flag]:
    """The TrainingArguments that are set most, but output_dir, which is --out."""
    return [
        Flag(_flag(name), text, *(("BOOL", "maybe") if name in _SWITCHES else ()))
        for name, text in COMMON_ARGUMENTS.items()
        if name != "output_dir"
    ]


def groups_of(verb: Verb) -> dict[str, list[Flag]]:
    """The flags that help lists, by heading: its own ("options"), ours, transformers'."""
    groups = {"options": list(verb.flags), **{title: setting_flags(title) for title in verb.groups}}
    if verb.common:
        groups["training (every field of transformers.TrainingArguments)"] = common_flags()
    return groups


def help_text(verb: Verb) -> str:
    """What ``nrt VERB --help`` prints."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    name, count, text = verb.positional or ("", "", "")
    first = {"?": f" [{name}]", "+": f" {name} [{name} ...]"}.get(count, f" {name}" if name else "")
    rest = " [--SETTING VALUE ...]" if verb.groups else ""
    notes = "Every other setting of `nrt train` is accepted too.\n\n" if verb.groups else ""
    if verb.common:
        notes = (
            "Every other field of transformers.TrainingArguments is accepted too. Underscores may "
            "stand for\nhyphens, --key=value for --key value.\n\n"
        )
    parser = argparse.ArgumentParser(
        usage=f"nrt {verb.name}{first} [OPTIONS]{rest}",
        description=verb.text,
        epilog=f"{notes}examples:\n" + "\n".join(f"  {example}" for example in verb.examples),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=34, width=width
        ),
    )
    if verb.positional:
        parser.add_argument("positional", nargs=count or None, metavar=name, help=text)
    for title, flags in groups_of(verb).items():
        group = parser if title == "options" else parser.add_argument_group(title)
        for flag in flags:
            group.add_argument(flag.name, help=flag.help.replace("%", "%%"), **_takes(flag))
    return parser.format_help()
