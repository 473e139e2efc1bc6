"""Command lines -> settings: argparse, behind one pass that makes them plain.

Flags may be written ``--num-generations`` or ``--num_generations``, ``--key value`` or
``--key=value``, and truth values bare (``--bf16``). For verbs that take settings, a flag that is
not listed is taken for another field of NRTConfig, which says what is wrong with it.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from native_reasoning.cli.headings import OPTION_GROUPS
from native_reasoning.cli.verbs import VERBS, Flag, Verb
from native_reasoning.config.errors import ConfigError, did_you_mean
from native_reasoning.config.options import COMMON_ARGUMENTS, NRTOptions

_TRUTH = ("true", "false")
_SWITCHES = ("bf16", "activation_checkpointing", "use_cpu")


@dataclass(frozen=True)
class Parsed:
    """A command line: the positional argument (None where absent), the verb's own flags by name
    (the same), the settings of NRTConfig, still as text, and every positional argument."""

    positional: str | None
    own: dict[str, Any]
    settings: dict[str, str]
    positionals: tuple[str, ...] = ()


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
    parser, kinds = build(verb)
    if any(argument in ("-h", "--help") for argument in arguments):
        print(parser.format_help(), end="")
        return None
    plain, others = _plain(verb, arguments, kinds)
    space = vars(parser.parse_intermixed_args(plain))
    own = {_name(flag.name): space[_name(flag.name)] for flag in verb.flags}
    settings = {k: v for k, v in space.items() if k not in own and k != "positional"}
    given = space.get("positional")
    several = tuple(given) if isinstance(given, list) else (given,) if given else ()
    return Parsed(several[0] if several else None, own, {**settings, **others}, several)


class _Parser(argparse.ArgumentParser):
    """argparse, with our error shape."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(
            f"{self.prog}: {message}",
            why="the command line cannot be understood",
            fix=f"{self.prog} --help has examples",
        )


def build(verb: Verb) -> tuple[argparse.ArgumentParser, dict[str, str]]:
    """The parser of a verb, and the kind of each of its flags."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    parser = _Parser(
        prog=f"nrt {verb.name}",
        usage=_usage(verb),
        description=verb.text,
        epilog=_epilog(verb),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=34, width=width
        ),
        allow_abbrev=False,
    )
    if verb.positional:
        name, count, text = verb.positional
        parser.add_argument("positional", nargs=count or None, metavar=name, help=text)
    kinds: dict[str, str] = {}
    for flag in verb.flags:
        _add(parser, flag, kinds, default=None)
    for title in verb.groups:
        group = parser.add_argument_group(title)
        for flag in _option_flags(OPTION_GROUPS[title]):
            if flag.name not in kinds:
                _add(group, flag, kinds, default=argparse.SUPPRESS)
    if verb.common:
        group = parser.add_argument_group(
            "training (every field of transformers.TrainingArguments)"
        )
        for name, text in COMMON_ARGUMENTS.items():
            if name == "output_dir":  # --out
                continue
            kind = "bool" if name in _SWITCHES else "value"
            flag = Flag(_flag(name), text, kind=kind)
            _add(group, flag, kinds, default=argparse.SUPPRESS)
    return parser, kinds


def _add(target: Any, flag: Flag, kinds: dict[str, str], default: Any) -> None:
    kinds[flag.name] = flag.kind
    extra: dict[str, Any] = {"help": flag.help.replace("%", "%%"), "dest": _name(flag.name)}
    if flag.kind == "switch":
        target.add_argument(flag.name, action="store_true", **extra)
    elif flag.kind == "value":
        target.add_argument(flag.name, metavar=flag.metavar, default=default, **extra)
    else:
        metavar = "BOOL" if flag.kind == "bool" else flag.metavar
        extra["const"] = "true"
        target.add_argument(flag.name, metavar=metavar, nargs="?", default=default, **extra)


def _option_flags(names: Sequence[str]) -> list[Flag]:
    """Our options as flags, with their default in the help."""
    by_name = {f.name: f for f in fields(NRTOptions)}
    flags = []
    for name in names:
        f = by_name[name]
        choices, text = f.metadata["choices"], f.metadata["help"]
        if choices:
            text += f" ({' '.join(choices)})" if f.default is None else f" [{' '.join(choices)}]"
        if f.default is not None and f.default is not False and "\n" not in str(f.default):
            text += f" ({str(f.default).lower() if f.default is True else f.default})"
        kind = "bool" if f.type is bool else "value"
        flags.append(Flag(_flag(name), text, _metavar(f.type, bool(choices)), kind))
    return flags


def _metavar(kind: Any, choices: bool) -> str:
    text = str(kind)
    if choices:
        return "NAME"
    return (
        "N" if "int" in text else "X" if "float" in text else "JSON" if "dict" in text else "TEXT"
    )


def _usage(verb: Verb) -> str:
    name, count, _ = verb.positional or ("", "", "")
    first = {"?": f" [{name}]", "+": f" {name} [{name} ...]"}.get(count, f" {name}" if name else "")
    rest = " [--SETTING VALUE ...]" if verb.takes_settings else ""
    return f"nrt {verb.name}{first} [OPTIONS]{rest}"


def _epilog(verb: Verb) -> str:
    notes = ""
    if verb.takes_settings:
        notes = (
            "Every other field of transformers.TrainingArguments is accepted too. Underscores may "
            "stand for\nhyphens, --key=value for --key value.\n\n"
            if verb.common
            else "Every other setting of `nrt train` is accepted too.\n\n"
        )
    return notes + "examples:\n" + "\n".join(f"  {example}" for example in verb.examples)


def _name(flag: str) -> str:
    return flag[2:].replace("-", "_")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# -- One pass that makes a command line plain -----------------------------------------------------


def _plain(
    verb: Verb, arguments: Sequence[str], kinds: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """The arguments as ``--flag=value``, and settings whose flag is not listed."""
    plain: list[str] = []
    others: dict[str, str] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("-") or argument == "-":
            plain.append(argument)
            continue
        text, equals, value = argument.partition("=")
        flag = "--" + text.lstrip("-").replace("_", "-")
        kind = kinds.get(flag) if text.startswith("--") else None
        if kind is None and (not verb.takes_settings or not text.startswith("--")):
            raise _unknown(verb, text, kinds)
        if kind == "switch":
            if equals:
                raise _usage_error(verb, f"{flag} takes no value", f"write {flag} alone")
            plain.append(flag)
            continue
        if not equals:
            taken = _value(verb, flag, kind, waiting)
            if taken is None:  # a flag that may stand alone
                plain.append(flag)
                continue
            value = taken
        if kind is None:
            others[_name(flag)] = value
        else:
            plain.append(f"{flag}={value}")
    return plain, others


def _value(verb: Verb, flag: str, kind: str | None, waiting: list[str]) -> str | None:
    """The value after a flag, taken from ``waiting``; None for a flag that stands alone."""
    following = waiting[0] if waiting else None
    is_flag = following is None or (following.startswith("--") and len(following) > 2)
    if kind == "bool":
        return waiting.pop(0) if following in _TRUTH else "true"
    if kind == "maybe":
        return waiting.pop(0) if following and "checkpoint" in following else None
    if is_flag and kind == "value":
        raise _usage_error(verb, f"{flag} has no value", f"write {flag} VALUE")
    return "true" if is_flag else waiting.pop(0)


def _unknown(verb: Verb, text: str, kinds: dict[str, str]) -> ConfigError:
    near = did_you_mean(_name("--" + text.lstrip("-")), map(_name, kinds)).replace("'", "")
    for flag in kinds:
        near = near.replace(f" {_name(flag)}?", f" {flag}?")
    return _usage_error(
        verb, f"unknown flag {text}{near}", f"nrt {verb.name} --help lists the flags"
    )


def _usage_error(verb: Verb, what: str, fix: str) -> ConfigError:
    return ConfigError(
        f"nrt {verb.name}: {what}", why="the command line cannot be understood", fix=fix
    )


def number(own: dict[str, Any], name: str) -> int | None:
    """A flag of a verb's own that holds a whole number from 0. Raises ConfigError."""
    text = own.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(
            f"{_flag(name)} is {text!r}", why="it is a whole number", fix=f"{_flag(name)} 10"
        )
    return int(text)
