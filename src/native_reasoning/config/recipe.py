"""Recipes and flags: named settings, perhaps still text, to an ``NRTConfig``; and what a recipe may
not do unasked, as it may come from anybody (SECURITY.md has it in words)."""

import argparse
import os
import re
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from native_reasoning.config.checks import CHANGEABLE
from native_reasoning.config.errors import ConfigError, UsageParser, nearest
from native_reasoning.config.nrt_config import HARMLESS, NRTConfig
from native_reasoning.config.papers import find_preset

#: How the name of a setting of the objective begins, as a flag and among settings.
_PART = "objective."
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
#: Characters of a recipe, and opening brackets: reading takes the square of their depth.
_LONGEST, _BRACKETS = 100_000, 1_000
#: What only a person who runs a recipe may set.
VOUCHER = "trust_imports"
_CODE = "it can run code that comes with a model"
_SENDS = "it sends what a run makes to a place that the recipe names, in your name"
_LIBRARY = "it hands other libraries files or patterns that nobody has looked at"
#: What a recipe, or a run's config.yaml, from outside the working folder may not set, and why.
GUARDED_ALWAYS = {"trust_remote_code": _CODE, "model_init_kwargs": _CODE}
#: The same for recipes alone: a run is gone on with as it was begun.
GUARDED_IN_RECIPES = {
    "report_to": _SENDS,
    "project": _SENDS,
    "trackio_space_id": _SENDS,
    "trackio_bucket_id": _SENDS,
    "trackio_static_space_id": _SENDS,
    "vllm_server_base_url": _SENDS,
    "deepspeed": _LIBRARY,
    "fsdp_config": _LIBRARY,
    "accelerator_config": _LIBRARY,
    "parallelism_config": _LIBRARY,
    "optim_target_modules": _LIBRARY,
}
_OFF = (None, False, "", "false", "False", "no", "none", "None", "[]", (), [], {})


def read_recipe(
    path: str | Path, given: Container[str] = (), *, going_on: bool = False
) -> dict[str, Any]:
    """A YAML recipe as a dictionary, with underscores in its names.

    ``given`` are settings that the user has named beside it; ``going_on``: it is the config.yaml of
    a run that the user has named. Raises ConfigError if it is absent, not a mapping, or asks for
    what its user has to ask for.
    """
    try:
        values = _yaml(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError(f"it holds {type(values).__name__}, not settings")
        if "\\x00" in repr(values):
            raise ValueError("a null character is in no path and no name")
    except FileNotFoundError:
        raise ConfigError(
            f"recipe {path} does not exist", why="it holds the settings", fix="check the path"
        ) from None
    except (yaml.YAMLError, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"recipe {path} cannot be read: {' '.join(str(error).split())[:300]}",
            why="a recipe is a YAML file of `setting: value` lines",
            fix="mend it, or start from one in recipes/",
        ) from None
    of_run = isinstance(values.get("config"), dict)  # the config.yaml of a run is a recipe too
    dropped = ("resolved_objective", VOUCHER) if of_run else ()
    settings = values["config"] if of_run else values
    named = {str(key).replace("-", "_"): value for key, value in settings.items()}
    named = {key: value for key, value in named.items() if key not in dropped}
    check_recipe(named, Path(path), given, going_on=going_on)
    return named


def _yaml(text: str) -> Any:
    """What a YAML text says. Raises ValueError where a few lines would become a giant: a value that
    is named once and repeated (``*name``) can double with every line."""
    brackets = text.count("[") + text.count("{")
    if len(text) > _LONGEST or brackets > _BRACKETS:
        raise ValueError(f"{len(text):,} characters, {brackets:,} brackets: no list of settings")
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise ValueError("it repeats a value by name (*name); write it out")
    return yaml.safe_load(text)


def check_recipe(
    named: Mapping[str, Any], path: Path, given: Container[str], *, going_on: bool
) -> None:
    """Raises ConfigError where a recipe asks for what its user has to ask for, and has not
    ``given`` beside it; ``going_on``: it is that of a run that the user has named."""
    if named.get(VOUCHER) not in _OFF:
        raise ConfigError(
            f"{VOUCHER} in recipe {path}",
            why="it lets a recipe run any installed code, and a recipe cannot vouch for itself",
            fix="leave it out of the recipe; --trust-imports, if you know what the recipe names",
        )
    if in_working_folder(path):
        return
    guarded = GUARDED_ALWAYS | ({} if going_on else GUARDED_IN_RECIPES)
    for name, reason in guarded.items():
        value = named.get(name)
        if name in given or value in _OFF or (name == "model_init_kwargs" and _harmless(value)):
            continue
        raise ConfigError(
            f"{name} in recipe {path}",
            why=f"{reason}, and the recipe is not from the working folder",
            fix=f"--{name.replace('_', '-')} on the command line as well, if you know what it does",
        )


def check_place(folder: Any) -> None:
    """Raises ConfigError where a recipe's output_dir leads out of the working folder."""
    if not in_working_folder(str(folder)):
        raise ConfigError(
            f"output_dir {folder!r} in the recipe",
            why="a recipe may come from anybody, and writes into the working folder only",
            fix="leave it out of the recipe; --out names the folder where you want the run",
        )


def _harmless(kwargs: Any) -> bool:
    return isinstance(kwargs, Mapping) and all(
        value in HARMLESS.get(str(name), ()) for name, value in kwargs.items()
    )


def in_working_folder(path: str | Path) -> bool:
    """Whether a path, links followed, leads into the working folder. ``~`` is the home folder, as
    transformers reads it."""
    try:
        return Path(os.path.expanduser(path)).resolve().is_relative_to(Path.cwd().resolve())
    except (OSError, ValueError, RuntimeError):  # a name that cannot be, a ring of links
        return False


# -- Named settings --------------------------------------------------------------------------------


class SettingsParser(UsageParser, HfArgumentParser):
    """transformers' parser of every field of NRTConfig, and of ``--objective.NAME``, whose result
    has what was given and no defaults."""

    def __init__(self, **kwargs: Any) -> None:
        self.bare: set[str] = set()
        kind: Any = NRTConfig
        super().__init__(kind, allow_abbrev=False, add_help=False, **kwargs)
        for name in CHANGEABLE:
            flags = dict.fromkeys((f"{_PART}{name}", f"{_PART}{name.replace('_', '-')}"))
            self.add_argument(*(f"--{flag}" for flag in flags), dest=f"{_PART}{name}")

    def add_argument(self, *flags: Any, **about: Any) -> argparse.Action:
        """As argparse's, without a default, and without choices: NRTConfig says more of a wrong
        value. ``bare`` are the flags of truth values, which may stand alone."""
        if about.get("type") is string_to_bool:
            self.bare.update(flags)
        known: Any = {k: v for k, v in about.items() if k not in ("choices", "within")}
        return super().add_argument(*flags, **known | {"default": argparse.SUPPRESS})


def meant(name: str, others: Iterable[str] = ()) -> str:
    """The setting, or one of the ``others``, that a misspelt name is nearest to; "" for none."""
    if name in CHANGEABLE:
        return _PART + name
    ours = ("model", "data", "eval_data", *(_PART + part for part in CHANGEABLE))
    return nearest(name, [*_kinds(), *ours, *others])


def make_config(settings: Mapping[str, Any], **fixed: Any) -> NRTConfig:
    """An NRTConfig from named settings whose values may still be text ("2e-6", "true");
    ``objective.clip`` is a setting of ``objective``. Raises ConfigError for an unknown name and for
    a value of the wrong type.
    """
    named = {str(name).replace("-", "_"): value for name, value in settings.items()}
    parts = {name: named.pop(name) for name in list(named) if name.startswith(_PART)}
    values = {name: _typed(name, value) for name, value in named.items()}
    given = values.get("objective")
    if parts and not isinstance(given, str):
        parts = {name.removeprefix(_PART): value for name, value in parts.items()}
        values["objective"] = {**(given or {}), **parts}
    try:
        return NRTConfig(**{**values, **fixed})
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(
            " ".join(str(error).split()), why="transformers refuses the setting", fix="change it"
        ) from error


@cache
def _kinds() -> dict[str, tuple[Any, ...]]:
    """The types that each setting may have."""
    hints = get_type_hints(NRTConfig)
    unions = {n: get_origin(hint) in (Union, UnionType) for n, hint in hints.items()}
    kinds = {n: get_args(hint) if unions[n] else (hint,) for n, hint in hints.items()}
    return {f.name: kinds[f.name] for f in fields(NRTConfig) if f.init}


def _typed(name: str, value: Any) -> Any:
    """A value as the setting has it; what is no list and no mapping is read as a flag's text is,
    because YAML takes 2e-6 for a text. Raises ConfigError."""
    if name not in _kinds():
        near = meant(name)
        raise ConfigError(
            f"unknown setting {name!r}" + (f" (did you mean {near!r}?)" if near else ""),
            why="a setting that nothing reads would change nothing",
            fix="nrt train --help lists ours; the others are transformers' TrainingArguments",
        )
    kinds = _kinds()[name]
    if value is None or isinstance(value, dict | list):
        if type(value) in {get_origin(kind) or kind for kind in kinds}:
            return value
    else:
        with suppress(ConfigError):
            return getattr(_parser().parse_args([f"--{name}={value}"]), name)
    kind = get_origin(kinds[0]) or kinds[0]
    raise ConfigError(
        f"{name} is {value!r}", why=f"it is {_WORDS.get(kind, 'text')}", fix=f"change {name}"
    )


_parser = cache(SettingsParser)


# -- Arms of a comparison --------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """What is trained in one way: its ``label`` as the command line has it, the ``preset``, and the
    ``settings`` that it has for itself, as text."""

    label: str
    preset: str
    settings: Mapping[str, str]

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^\w.@=+-]", "_", self.label)


def read_arms(text: str) -> tuple[Arm, ...]:
    """The arms of ``sft,nrt-ws,verifree:learning_rate=1e-6``: presets, with commas between, each
    with settings of its own behind colons. Raises ConfigError."""
    arms = [_read_arm(part.strip()) for part in text.split(",") if part.strip()]
    folders = [arm.folder for arm in arms]
    for arm in arms:
        if folders.count(arm.folder) > 1:
            raise ConfigError(
                f"{arm.label} stands twice in --presets",
                why="each arm has a folder of its own",
                fix="leave one of them out",
            )
    if not arms:
        raise ConfigError(
            "no preset was given", why="there is nothing to compare", fix="--presets sft,nrt-ws"
        )
    return tuple(arms)


def _read_arm(label: str) -> Arm:
    preset, *parts = label.split(":")
    find_preset(preset)
    settings: dict[str, str] = {}
    name = ""
    for part in parts:
        key, equals, value = part.partition("=")
        if equals:
            name = key.strip().replace("-", "_")
            settings[name] = value.strip()
        elif name:  # a colon of the value, as in module:function
            settings[name] += f":{part}"
        else:
            raise ConfigError(
                f"{label!r} in --presets",
                why=f"{part!r} is no setting",
                fix=f"{preset}:learning_rate=1e-6, as in nrt train, with = between",
            )
    return Arm(label, preset, settings)
