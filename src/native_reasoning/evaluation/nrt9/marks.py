"""Metrics of the tasks here. lm-eval calls them with a row and the model's answers."""

import json
import re
from typing import Any

from native_reasoning.evaluation.sandbox import passes

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def popqa(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """``match``: whether a possible answer stands in the text, as PopQA's own script counts
    (Mallen et al. 2023): as it is, in lower case or with a capital."""
    text = results[0]
    forms = (f for a in _possible(doc) for f in (a, a.lower(), a.capitalize()))
    return {"match": float(any(form in text for form in forms))}


def popqa_target(doc: dict[str, Any]) -> str:
    """The answer that an example shows."""
    return _possible(doc)[0]


def _possible(doc: dict[str, Any]) -> list[str]:
    return json.loads(doc["possible_answers"])  # a text that holds a list


def humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """``pass@1``: whether the completed function passes the problem's tests (Chen et al. 2021)."""
    return {"pass@1": float(passes(program(doc, results[0])))}


def program(doc: dict[str, Any], answer: str) -> str:
    """The completed function with its tests.

    An answer continues the prompt; where it has a block of code, the block does, and if that has
    the whole function, it comes after the prompt (whose imports and helpers it may use).
    """
    block = _FENCE.search(answer)
    code = block[1] if block else answer
    joint = "\n" if f"def {doc['entry_point']}(" in code else ""
    return f"{doc['prompt']}{joint}{code}\n\n{doc['test']}\n\ncheck({doc['entry_point']})\n"
