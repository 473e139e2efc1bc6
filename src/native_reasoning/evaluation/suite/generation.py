"""The settings of ``--gen-kwargs``, checked before anything is loaded."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from native_reasoning.config.errors import ConfigError, did_you_mean

#: Settings that change nothing where the likeliest token is always taken.
_OF_SAMPLING = ("top_p", "top_k", "min_p")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_gen_toks": (lambda v: _whole(v) and v >= 1, "a whole number from 1 on"),
    "temperature": (lambda v: _number(v) and v >= 0, "a number from 0 on"),
    "do_sample": (lambda v: isinstance(v, bool), "true or false"),
    "top_p": (lambda v: _number(v) and 0 < v <= 1, "a number above 0 and at most 1"),
    "top_k": (lambda v: _whole(v) and v >= 1, "a whole number from 1 on"),
    "min_p": (lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "repetition_penalty": (lambda v: _number(v) and v > 0, "a number above 0"),
    "until": (lambda v: isinstance(v, str) and v != "", "text"),
}


def generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with ``do_sample`` as the temperature says: the tasks' own files have it false,
    and lm-eval would then take the temperature for 0. Raises ConfigError.

    >>> generation({"temperature": 0.7})
    {'temperature': 0.7, 'do_sample': True}
    """
    for name, value in settings.items():
        if name not in _CHECKS:
            raise ConfigError(
                f"--gen-kwargs has no setting {name!r}{did_you_mean(name, _CHECKS)}",
                why="it would change nothing, or the model would refuse it",
                fix=f"some of: {' '.join(_CHECKS)}",
            )
        good, wanted = _CHECKS[name]
        if not good(value):
            raise ConfigError(
                f"--gen-kwargs has {name}={value}",
                why="no answer can be generated with it",
                fix=f"{name} is {wanted}",
            )
    warm = settings.get("temperature", 0.0) > 0
    if settings.get("do_sample", warm) != warm:
        raise ConfigError(
            f"--gen-kwargs has do_sample={settings['do_sample']} and temperature "
            f"{settings.get('temperature', 0)}",
            why="sampling needs a temperature above 0, and a temperature needs sampling",
            fix="--gen-kwargs temperature=0.7",
        )
    idle = [name for name in _OF_SAMPLING if name in settings and not warm]
    if idle:
        raise ConfigError(
            f"--gen-kwargs has {idle[0]} without a temperature",
            why="the likeliest token is always taken then, and it changes nothing",
            fix=f"--gen-kwargs temperature=0.7,{idle[0]}={settings[idle[0]]}",
        )
    return {**settings, "do_sample": warm} if "temperature" in settings else dict(settings)
