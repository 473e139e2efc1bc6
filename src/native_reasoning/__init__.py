"""native-reasoning: trains a causal language model to reason, from question–answer pairs alone.

The names below are the public door. They are imported when first used, so that ``import
native_reasoning`` and ``nrt --help`` cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from native_reasoning.config import NRTConfig
    from native_reasoning.data import load_examples
    from native_reasoning.errors import (
        ConfigError,
        DataError,
        DiskError,
        NativeReasoningError,
        PolicyError,
        RunError,
        TemplateError,
    )
    from native_reasoning.objective import Objective
    from native_reasoning.policy import load_policy
    from native_reasoning.presets import PRESETS
    from native_reasoning.report import figure, write_report
    from native_reasoning.runs import load_run
    from native_reasoning.trainer import NRTTrainer
    from native_reasoning.types import Scores, Signal

    __version__: str

__all__ = [
    "PRESETS",
    "ConfigError",
    "DataError",
    "DiskError",
    "NRTConfig",
    "NRTTrainer",
    "NativeReasoningError",
    "Objective",
    "PolicyError",
    "RunError",
    "Scores",
    "Signal",
    "TemplateError",
    "__version__",
    "figure",
    "load_examples",
    "load_policy",
    "load_run",
    "write_report",
]

_HOME = {
    "NRTConfig": "config",
    "NRTTrainer": "trainer",
    "Objective": "objective",
    "PRESETS": "presets",
    "Scores": "types",
    "Signal": "types",
    "figure": "report",
    "load_examples": "data",
    "load_policy": "policy",
    "load_run": "runs",
    "write_report": "report",
    "NativeReasoningError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "DiskError": "errors",
    "PolicyError": "errors",
    "RunError": "errors",
    "TemplateError": "errors",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(import_module(f"native_reasoning.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'native_reasoning' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("native-reasoning")
    except PackageNotFoundError:  # run from a source tree that was not installed
        return "0+source"
