"""native-reasoning: trains a causal language model to reason, from question–answer pairs alone.

The names below are the public door. They are imported when first used, so that ``import
native_reasoning`` and ``nrt --help`` cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from native_reasoning.config.errors import (
        ConfigError,
        DataError,
        DiskError,
        NativeReasoningError,
        PolicyError,
        RunError,
        TemplateError,
    )
    from native_reasoning.config.nrt_config import NRTConfig
    from native_reasoning.config.papers import PRESETS
    from native_reasoning.data import load_examples
    from native_reasoning.model.policy import load_policy
    from native_reasoning.objective.credit import Objective
    from native_reasoning.objective.types import Scores, Signal
    from native_reasoning.report import figure, write_report
    from native_reasoning.report.runs import load_run
    from native_reasoning.training.trainer import NRTTrainer

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

_HOMES = {
    "config.errors": (
        *("ConfigError", "DataError", "DiskError", "NativeReasoningError"),
        *("PolicyError", "RunError", "TemplateError"),
    ),
    "config.nrt_config": ("NRTConfig",),
    "config.papers": ("PRESETS",),
    "data": ("load_examples",),
    "model.policy": ("load_policy",),
    "objective.credit": ("Objective",),
    "objective.types": ("Scores", "Signal"),
    "report": ("figure", "write_report"),
    "report.runs": ("load_run",),
    "training.trainer": ("NRTTrainer",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif home := next((home for home, names in _HOMES.items() if name in names), None):
        value = getattr(import_module(f"native_reasoning.{home}"), name)
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
