"""Recipes and flags: named settings, perhaps still text, to an ``NRTConfig``."""

from collections.abc import Container, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from native_reasoning.config.errors import ConfigError, did_you_mean
from native_reasoning.config.guards import VOUCHER, check_recipe
from native_reasoning.config.nrt_config import NRTConfig, json_object

#: What a recipe may hold besides the fields of NRTConfig.
RECIPE_KEYS = ("model", "data", "eval_data")
#: Characters of a recipe, and opening brackets: reading takes the square of their depth.
_LONGEST, _BRACKETS = 100_000, 1_000


def read_recipe(
    path: str | Path, given: Container[str] = (), *, going_on: bool = False
) -> dict[str, Any]:
    """A YAML recipe as a dictionary, with underscores in its names.

    ``given`` are settings that the user has named beside it; ``going_on``: it is the config.yaml of
    a run that the user has named.

    Raises ConfigError if it is absent, not a mapping, or asks for what its user has to ask for.
    """
    try:
        values = _yaml(Path(path).read_text(encoding="utf-8"))
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
    if not isinstance(values, dict):
        raise ConfigError(
            f"recipe {path} holds {type(values).__name__}, not settings",
            why="a recipe is a YAML file of `setting: value` lines",
            fix="start from one in recipes/",
        )
    of_run = isinstance(values.get("config"), dict)  # the config.yaml of a run is a recipe too
    named = _by_name(values["config"] if of_run else values, path)
    dropped = ("resolved_objective", VOUCHER) if of_run else ()
    named = {key: value for key, value in named.items() if key not in dropped}
    for key, value in named.items():
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(
                f"{key} in recipe {path} is {value!r}",
                why="a null character is in no path and no name",
                fix=f"mend {key}",
            )
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


def _by_name(values: Mapping[Any, Any], path: str | Path) -> dict[str, Any]:
    """The values by their names with underscores. Raises ConfigError where one comes twice."""
    named = {str(key).replace("-", "_"): value for key, value in values.items()}
    if len(named) < len(values):
        raise ConfigError(
            f"recipe {path} names a setting twice, with - and with _",
            why="it is not clear which of the two is meant",
            fix="keep one of them",
        )
    return named


def make_config(settings: Mapping[str, Any], **fixed: Any) -> NRTConfig:
    """An NRTConfig from named settings whose values may still be text ("2e-6", "true").

    Raises ConfigError for an unknown name, with the nearest known one, and for a value of the wrong
    type.
    """
    by_name = {f.name: f for f in fields(NRTConfig) if f.init}
    values: dict[str, Any] = {}
    for raw_name, value in settings.items():
        name = str(raw_name).replace("-", "_")
        if name not in by_name:
            known = [*by_name, *RECIPE_KEYS]
            raise ConfigError(
                f"unknown setting {raw_name!r}{did_you_mean(str(raw_name), known)}",
                why="a setting that nothing reads would change nothing",
                fix="nrt train --help lists ours; the others are transformers' TrainingArguments",
            )
        values[name] = coerce(name, value, str(by_name[name].type))
    try:
        return NRTConfig(**{**values, **fixed})
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(
            " ".join(str(error).split()), why="transformers refuses the setting", fix="change it"
        ) from error


def coerce(name: str, value: Any, annotation: str) -> Any:
    """``value`` as the field's type has it: YAML reads 2e-6 as text. Raises ConfigError."""
    if not isinstance(value, str):
        if not _fits(value, annotation):
            raise ConfigError(
                f"{name} is {value!r}",
                why=f"it is {annotation_text(annotation)}",
                fix=f"change {name}",
            )
        return value
    lowered = value.strip().lower()
    if lowered in ("null", "none") and ("None" in annotation and "str" not in annotation):
        return None
    if "bool" in annotation and lowered in ("true", "false"):
        return lowered == "true"
    for kind in (int, float):
        if kind.__name__ in annotation:
            try:
                return kind(value)
            except ValueError:
                pass
    if "dict" in annotation and lowered.startswith("{"):
        return json_object(value, name)
    if "str" in annotation or "Any" in annotation or "Strategy" in annotation:
        return value
    raise ConfigError(
        f"{name} is {value!r}", why=f"it is {annotation_text(annotation)}", fix=f"change {name}"
    )


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value that YAML gave is of the option's type."""
    if value is None:
        return "None" in annotation
    if isinstance(value, bool):
        return "bool" in annotation
    kinds = {int: ("int", "float"), float: ("float",), dict: ("dict",), list: ("list",)}
    return any(kind in annotation for kind in kinds.get(type(value), ()))


def annotation_text(annotation: str) -> str:
    """A field's type in words, for messages."""
    kind = annotation.replace("<class '", "").replace("'>", "").replace(" | None", "")
    return {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(kind, kind)
