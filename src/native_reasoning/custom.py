"""Objectives and reward functions of the user's own: finding them, calling them, checking them.

A name is ``module:function``. Importing a module runs it, so modules are taken from the working
folder; from elsewhere only where ``trust_imports`` says so.
"""

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from native_reasoning.errors import ConfigError, RunError
from native_reasoning.objective import Objective
from native_reasoning.types import Scores, Signal


def load_callable(name: str, trust_imports: bool = False) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Raises ConfigError if there is none, or if the module lies outside the working folder and
    ``trust_imports`` is not set.
    """
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise ConfigError(
            f"{name!r} does not name a function",
            why="it is written module:function",
            fix="my_module:my_function, with my_module.py in the working folder",
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        _check_origin(module_name, Path(here), trust_imports)
        found = getattr(importlib.import_module(module_name), function, None)
    except ImportError as error:
        raise ConfigError(
            f"{module_name} cannot be imported: {error}",
            why=f"{name} is asked for",
            fix=f"put {module_name.split('.')[0]}.py into {here}, or run nrt from its folder",
        ) from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError(
            f"{module_name} has no function {function!r}",
            why=f"{name} is asked for",
            fix=f"define {function} at the top level of {module_name}",
        )
    return found


def _check_origin(module_name: str, here: Path, trust_imports: bool) -> None:
    """Refuses a module from elsewhere before it is imported, and so before any of it runs."""
    top = module_name.split(".")[0]
    loaded = sys.modules.get(top)
    spec = importlib.util.find_spec(top) if loaded is None else loaded.__spec__
    if spec is None:
        raise ImportError(f"no module named {top!r}")
    # built-in and frozen modules have no place, a package without __init__ has several
    found = [spec.origin] if spec.has_location else spec.submodule_search_locations
    places = [Path(str(place)).resolve() for place in found or ()]
    inside = [place.is_relative_to(here.resolve()) for place in places]
    if not trust_imports and not (inside and all(inside)):
        raise ConfigError(
            f"{module_name} lies outside the working folder, at {spec.origin or places}",
            why="importing it runs its code, and a recipe may come from anybody",
            fix="trust_imports true, if you know the module",
        )


def find_custom(
    args: Any,
    objective: Callable[[Scores], Signal] | None = None,
    reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
) -> tuple[Callable[[Scores], Signal] | None, "RewardFunctions"]:
    """The objective and the reward functions that are given, or that ``args`` (NRTConfig) names.

    Raises ConfigError where a name leads nowhere.
    """
    trust = args.trust_imports
    if objective is None and args.objective is not None:
        objective = load_callable(args.objective, trust)
    functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
    functions = functions or [load_callable(name, trust) for name in args.reward_funcs or ()]
    return objective, RewardFunctions(functions, args.reward_weights)


def given_names(
    settings: Mapping[str, Any], objective: Callable[[Scores], Signal], rewards: "RewardFunctions"
) -> dict[str, Any]:
    """What config.yaml calls an objective and reward functions that ``settings`` do not name."""
    names: dict[str, Any] = {}
    if type(objective) is not Objective and not settings["objective"]:
        names["objective"] = name_of(objective)
    if rewards and not settings["reward_funcs"]:
        names["reward_funcs"] = [name_of(function) for function in rewards.functions]
    return names


def name_of(function: Callable[..., Any]) -> str:
    """What an error calls a function."""
    return getattr(function, "__name__", type(function).__name__)


# -- Objectives ------------------------------------------------------------------------------------


def check_signal(signal: Any, scores: Scores, name: str) -> Signal:
    """The signal of a custom objective, if it fits the scores.

    Raises RunError for a wrong type or shape, a number that is not finite, or a weight on a token
    that was not sampled, and names the objective, the axis and the row.
    """
    if not isinstance(signal, Signal):
        raise _refused(name, f"returned {type(signal).__name__}, not a Signal")
    (k, t), length = scores.answer.shape, scores.trace.shape[1]
    shapes = {
        "rewards": {"trace": k},
        "baseline_reward": {},
        "advantages": {"trace": k},
        "answer_weights": {"trace": k, "answer": t},
        "trace_weights": {"trace": k, "token": length},
    }
    for field, axes in shapes.items():
        value = getattr(signal, field)
        if field != "trace_weights" or value is not None:
            _check_tensor(value, axes, f"{name}: {field}")
    if signal.trace_weights is not None:
        outside = (signal.trace_weights != 0) & ~scores.trace_mask
        if outside.any():
            row, token = outside.nonzero()[0].tolist()
            raise _refused(
                name,
                f"trace_weights, axis token, trace {row}: token {token} was not sampled, its weight"
                f" is {signal.trace_weights[row, token].item():g}",
            )
    return signal


def _check_tensor(value: Any, axes: dict[str, int], where: str) -> None:
    name, _, field = where.partition(": ")
    if not isinstance(value, Tensor):
        raise _refused(name, f"{field} is {type(value).__name__}, not a tensor")
    if value.dim() != len(axes):
        wanted = ", ".join(f"{axis} {n}" for axis, n in axes.items()) or "none"
        raise _refused(name, f"{field} has the shape {tuple(value.shape)}, its axes are: {wanted}")
    for (axis, wanted), got in zip(axes.items(), value.shape, strict=True):
        if got != wanted:
            raise _refused(name, f"{field}, axis {axis}: {got} entries, not {wanted}")
    bad = ~value.isfinite()
    if bad.any():
        place = bad.nonzero()[0].tolist()
        at = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place, strict=True))
        raise _refused(name, f"{field} is {value[tuple(place)].item()} at {at or 'its only entry'}")


def _refused(name: str, what: str) -> RunError:
    return RunError(
        f"objective {name}: {what}",
        why="the update would be wrong, or not a number, without a word",
        fix="native_reasoning.types.Signal says what each field holds",
    )


# -- Reward functions ------------------------------------------------------------------------------


class RewardFunctions:
    """Reward functions with TRL's signature and their weights: ``weights`` None means 1 each.

    Each is called once per rollout, for all traces of this process, as
    ``f(prompts=…, completions=…, completion_ids=…, answer=…, trainer_state=…, **columns)`` and
    returns one number per completion; None counts as 0. Functions may be coroutines.
    """

    def __init__(
        self, functions: Sequence[Callable[..., Any]], weights: Sequence[float] | None = None
    ) -> None:
        self.functions = tuple(functions)
        self.weights = (1.0,) * len(self.functions) if weights is None else tuple(weights)
        if len(self.weights) != len(self.functions):
            raise ConfigError(
                f"{len(self.weights)} reward_weights for {len(self.functions)} reward_funcs",
                why="each reward function has one weight",
                fix="give as many weights as functions, or leave reward_weights out",
            )

    def __bool__(self) -> bool:
        return bool(self.functions)

    def __call__(self, count: int, **columns: Any) -> Tensor:
        """The weighted sum (count,), float32. Raises RunError where a function does not answer."""
        total = torch.zeros(count, dtype=torch.float64)
        for function, weight in zip(self.functions, self.weights, strict=True):
            total += weight * torch.tensor(self._ask(function, count, columns)).double()
        return total.float()

    def _ask(
        self, function: Callable[..., Any], count: int, columns: dict[str, Any]
    ) -> list[float]:
        name = name_of(function)
        try:
            given = function(**columns)
            if inspect.isawaitable(given):
                given = asyncio.run(_wait(given))
        except TypeError as error:
            raise _no_reward(name, f"failed: {error}", columns) from error
        values = [0.0 if value is None else float(value) for value in given]
        if len(values) != count:
            raise _no_reward(name, f"returned {len(values)} rewards for {count} traces", columns)
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise _no_reward(name, f"returned {value} for completion {i}", columns)
        return values


async def _wait(value: Any) -> Any:
    return await value


def _no_reward(name: str, what: str, columns: dict[str, Any]) -> RunError:
    return RunError(
        f"reward function {name} {what}",
        why="every trace needs a reward, and one number each",
        fix=f"it is given {', '.join(columns)}, each a list with one entry per trace",
    )
