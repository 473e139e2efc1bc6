"""What users build on: public names, their signatures, flags, settings; all of it documented.

``python tests/test_public.py`` writes public.json anew: a change of it belongs into CHANGELOG.md.
"""

import dataclasses
import inspect
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import native_reasoning
from native_reasoning.cli.flags import groups_of
from native_reasoning.cli.verbs import VERBS
from native_reasoning.config.errors import NativeReasoningError
from native_reasoning.config.papers import Preset
from native_reasoning.config.settings import NRTOptions
from native_reasoning.data import DataReport, Examples
from native_reasoning.data.rows import Example
from native_reasoning.evaluation.grading import Interval
from native_reasoning.evaluation.held_out import Outcome
from native_reasoning.model.policy import Policy
from native_reasoning.report.runs import Run

ROOT = Path(__file__).parents[1]
FROZEN = Path(__file__).parent / "public.json"
PUBLIC = {name: getattr(native_reasoning, name) for name in native_reasoning.__all__}
#: What public names return.
RETURNED = {
    kind.__name__: kind
    for kind in (DataReport, Example, Examples, Interval, Outcome, Policy, Preset, Run)
}
CLASSES = {n: c for n, c in {**PUBLIC, **RETURNED}.items() if inspect.isclass(c)}
FUNCTIONS = {name: f for name, f in PUBLIC.items() if inspect.isfunction(f)}


def ours(kind: type) -> list[type]:
    """The class and its bases that this package defines."""
    return [base for base in kind.__mro__ if base.__module__.startswith("native_reasoning")]


def members(kind: type) -> dict[str, Any]:
    """Public methods and properties that this package defines, the most derived of each name."""
    found: dict[str, Any] = {}
    for base in reversed(ours(kind)):
        for name, value in vars(base).items():
            plain = getattr(value, "__func__", value)
            if not name.startswith("_") and (
                inspect.isfunction(plain) or isinstance(plain, property | cached_property)
            ):
                found[name] = plain
    return found


def listed(kind: type) -> set[str]:
    """The members that docs/api.md names, of a class whose other ones are transformers' or ours."""
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    found = re.search(rf"native_reasoning\.{kind.__name__}.*\n   :members: (.+)", page)
    return set(found[1].split(", ")) if found else set(members(kind))


def signature(function: Any) -> list[str]:
    """The parameters with their defaults, without annotations."""
    return [
        str(p.replace(annotation=inspect.Parameter.empty))
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    ]


def surface() -> dict[str, Any]:
    """Names, signatures and fields of the public door and of what it returns; verbs and flags."""
    door = {}
    for name, value in {**PUBLIC, **RETURNED}.items():
        if inspect.isfunction(value):
            door[name] = signature(value)
        elif inspect.isclass(value):
            door[name] = {
                member: signature(f) if inspect.isfunction(f) else "property"
                for member, f in sorted(members(value).items())
                if member in listed(value) or dataclasses.is_dataclass(value)
            }
            if dataclasses.is_dataclass(value) and name != "NRTConfig":
                door[name]["fields"] = [f.name for f in dataclasses.fields(value)]
            elif not issubclass(value, NativeReasoningError):
                door[name]["()"] = [] if name == "NRTConfig" else signature(value)
            else:
                door[name] = [base.__name__ for base in value.__mro__[1:-2]]
        else:
            door[name] = type(value).__name__
    own = {f.name: repr(f.default) for f in dataclasses.fields(NRTOptions)}
    return {
        "python": door,
        "settings": own,
        "presets": sorted(native_reasoning.PRESETS),
        "commands": {
            verb.name: [
                *(verb.positional or ())[:1],
                *sorted(flag.name for flags in groups_of(verb).values() for flag in flags),
            ]
            for verb in VERBS.values()
        },
    }


def test_the_public_surface_is_the_one_that_was_agreed_on():
    frozen = json.loads(FROZEN.read_text("utf-8"))
    now = json.loads(json.dumps(surface()))
    for part in now:
        assert now[part] == frozen[part], (
            f"{part} changed: if that is wanted, `python tests/test_public.py` and a line in "
            "CHANGELOG.md; removals and renamings break users"
        )
    assert now == frozen


# -- Documented ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLASSES, *FUNCTIONS])
def test_every_public_name_has_a_docstring(name):
    value = CLASSES.get(name) or FUNCTIONS[name]
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert text and len(text.split()) >= 3
    assert not text.startswith(f"{name}(")  # what dataclass writes where nobody did


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_member_has_a_docstring_and_every_field_is_explained(name):
    kind = CLASSES[name]
    for member, value in members(kind).items():
        assert value.__doc__ and len(value.__doc__.split()) >= 3, f"{name}.{member}"
    if dataclasses.is_dataclass(kind) and name != "NRTConfig":
        text = " ".join(vars(base).get("__doc__") or "" for base in ours(kind))
        for f in dataclasses.fields(kind):
            told = re.search(rf"``[^`]*\b{f.name}\b[^`]*``", text)
            assert told or f.metadata.get("help"), f"{name}.{f.name}"


def test_every_setting_has_a_sentence():
    for f in dataclasses.fields(NRTOptions):
        assert len(f.metadata["help"].split()) >= 3, f.name


RAISES = re.compile(r"raise [A-Za-z_.]*?(\w+Error)\b")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_names_the_errors_that_it_raises_and_its_parameters(name):
    text = FUNCTIONS[name].__doc__
    assert set(RAISES.findall(inspect.getsource(FUNCTIONS[name]))) <= set(re.findall(r"\w+", text))
    kinds = inspect.Parameter
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        if parameter.kind is not kinds.VAR_POSITIONAL and parameter.name != "name":
            assert f"``{parameter.name}``" in text, parameter.name


@pytest.mark.parametrize("name", ["Scores", "Signal"])
def test_shapes_and_units_of_tensors_are_told(name):
    text = CLASSES[name].__doc__
    for f in dataclasses.fields(CLASSES[name]):
        if "Tensor" in str(f.type) and "None" not in str(f.type):
            assert re.search(rf"``{f.name}`` \((K|T|K, L|K, T|)[,)]", text), f.name
    assert "nats" in CLASSES["Scores"].__doc__


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    found = set(re.findall(r"auto\w+:: native_reasoning\.(?:[a-z_]+\.)*(\w+)", page))
    assert found == {*native_reasoning.__all__, *RETURNED} - {"__version__"}


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(surface(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
