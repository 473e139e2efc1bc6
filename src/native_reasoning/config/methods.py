"""What each method is: formula, source, how ours differs and why, and how its authors ran it, read
from methods.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Method:
    """A method as its source has it. ``formula`` is the update of one prompt, ``formulas`` that of
    a form which has another. ``differs`` says what the method's own recipe here has not as in the
    source, and why; ``forms`` says it of the others. ``published`` has the flags of the authors'
    runs that no preset sets."""

    title: str
    summary: str
    source: str
    formula: str
    differs: tuple[str, ...] = ()
    published: str = ""
    formulas: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_READ: dict[str, Any] = yaml.load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"), _LOADER
)


def _method(about: dict[str, Any]) -> Method:
    forms = {form: tuple(told) for form, told in about.get("forms", {}).items()}
    whole: dict[str, Any] = {**about, "differs": tuple(about.get("differs", ())), "forms": forms}
    return Method(**whole)


def _nrt(title: str, summary: str, reward: str, answer_weight: str) -> dict[str, Any]:
    """A method of the NRT paper, which has f (``reward``) and in the paper's form the answer's
    weights to itself."""
    shared = dict(_READ["nrt"])
    clip, update = shared.pop("clip"), shared.pop("update")

    def formula(clip: str, weight: str) -> str:
        return f"R_k  = {reward}\n{clip}\n{update}\nw_ki = {weight}"

    formulas = {
        "paper": formula(clip, f"{answer_weight}  where R_k > R_base, else 0"),
        "released": formula("R'_k = R_k", "1"),
    }
    own = {"title": title, "summary": summary, "formula": formula(clip, "1")}
    return {**own, "formulas": formulas, **shared}


METHODS: dict[str, Method] = {
    name: _method(_nrt(**about) if "reward" in about else about)
    for name, about in _READ["methods"].items()
}


def differences(method: Method, form: str) -> tuple[str, ...]:
    """What a form of a method does otherwise than its source."""
    if not form:
        return method.differs
    return ((_READ["shared"],) if form == "shared" else ()) + method.forms.get(form, ())
