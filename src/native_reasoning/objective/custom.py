"""Objectives and reward functions of the user's own: finding them, calling them, checking them.

A name is ``module:function``. Importing a module runs it, so modules are taken from the working
folder; from elsewhere only where ``trust_imports`` says so.
"""

import asyncio
import importlib
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from native_reasoning.config.checks import check_together
from native_reasoning.config.errors import ConfigError, RunError
from native_reasoning.objective.credit import objective_of
from native_reasoning.objective.types import Scores, Signal

#: An objective of whatever kind.
AnyObjective = Callable[[Scores], Signal]
_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
#: A reward that float32 holds, also after weights and sums.
LARGEST_REWARD = 1e30


def load_callable(name: str, trust_imports: bool = False) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    The working folder is added to the end of ``sys.path``, so that the function may import from it
    when it is called. Raises ConfigError if there is no such function, or if the module lies
    outside the working folder and ``trust_imports`` is not set.
    """
    module_name, _, function = name.partition(":")
    parts = module_name.split(".")
    if not function or parts[-1] == "py" or not all(map(str.isidentifier, parts)):
        raise ConfigError(
            f"{name!r} does not name a function",
            why="it is written module:function, and a function from Python has no such name",
            fix="my_module:my_function, with my_module.py in the working folder; a run that was "
            "given a function from Python goes on from Python",
        )
    here = str(Path.cwd())
    path = list(sys.path)
    sys.path.insert(0, here)
    try:
        module = _import(module_name, Path(here), trust_imports)
    finally:
        sys.path[:] = path
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(
            f"{module_name} has no function {function!r}",
            why=f"{name} is asked for",
            fix=f"define {function} at the top level of {module_name}",
        )
    if here not in path:
        sys.path.append(here)
    return found


def _import(module_name: str, here: Path, trust_imports: bool) -> Any:
    """The module, after each of its packages and itself were found to lie in ``here``."""
    names = module_name.split(".")
    try:
        for i in range(len(names)):
            _check_origin(".".join(names[: i + 1]), here, trust_imports)
        return importlib.import_module(module_name)
    except ConfigError:
        raise
    except Exception as error:  # the user's module runs, and may do anything
        itself = {".".join(names[: i + 1]) for i in range(len(names))}
        if isinstance(error, ModuleNotFoundError) and error.name in itself:
            fix = f"put {names[0]}.py into {here}, or run nrt from its folder"
        else:
            fix = f"mend {module_name}: python -c 'import {module_name}' shows where it fails"
        raise ConfigError(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}",
            why="a function of it is asked for",
            fix=fix,
        ) from error


def _check_origin(name: str, here: Path, trust_imports: bool) -> None:
    """Refuses a module from elsewhere before it is imported, and so before any of it runs.

    Installed packages are elsewhere, also where their environment lies in the working folder.
    """
    loaded = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if loaded is None else loaded.__spec__
    if spec is None:
        raise ModuleNotFoundError(f"no module named {name!r}", name=name)
    # built-in and frozen modules have no place, a package without __init__ has several
    found = [spec.origin] if spec.has_location else spec.submodule_search_locations
    places = [Path(str(place)).resolve() for place in found or ()]
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in _INSTALLED]
    own = [
        place.is_relative_to(here.resolve())
        and not any(place.is_relative_to(folder) for folder in installed)
        for place in places
    ]
    if not trust_imports and not (own and all(own)):
        raise ConfigError(
            f"{name} lies outside the working folder, at {spec.origin or places}",
            why="importing it runs its code, and a recipe may come from anybody",
            fix="trust_imports true on the command line or in Python, if you know the module",
        )


def find_custom(
    args: Any,
    objective: AnyObjective | None = None,
    reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
) -> tuple[AnyObjective | None, "RewardFunctions"]:
    """The objective and the reward functions that are given, or that ``args`` (NRTConfig) names.

    Raises ConfigError where a name leads nowhere.
    """
    trust = args.trust_imports
    if objective is None and args.objective_func is not None:
        objective = load_callable(args.objective_func, trust)
    functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
    functions = functions or [load_callable(name, trust) for name in args.reward_funcs or ()]
    return objective, RewardFunctions(functions, args.reward_weights)


@dataclass(frozen=True)
class Judging:
    """What judges traces: an objective, the settings' own or another, and reward functions.
    ``rewarded``: traces are told apart."""

    objective: AnyObjective
    rewards: "RewardFunctions"
    rewarded: bool


def find_judging(
    args: Any,
    objective: AnyObjective | None,
    reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]],
) -> Judging:
    """``find_custom``, or the objective of ``args`` (NRTConfig). Raises ConfigError where nothing
    could be told apart."""
    given, rewards = find_custom(args, objective, reward_funcs)
    own = objective_of(args.resolved_objective())
    if given is None:
        check_together(args, own, judged=bool(rewards))
    found = given or own
    return Judging(found, rewards, found != own or own.reward != "none" or bool(rewards))


def given_names(
    objective: AnyObjective | None,
    reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]],
    peft_config: Any = None,
    theirs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What config.yaml calls an objective, reward functions, an adapter and optimizers (with
    schedulers or arguments: keywords of transformers' Trainer) that were given from Python."""
    theirs = theirs or {}
    optimizers = (*theirs.get("optimizers", ()), *theirs.get("optimizer_cls_and_kwargs", ()))
    functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
    names: dict[str, Any] = {} if objective is None else {"objective_func": name_of(objective)}
    names |= {"reward_funcs": list(map(name_of, functions))} if functions else {}
    made = [x if isinstance(x, dict) else name_of(x) for x in optimizers if x is not None]
    names |= {"optimizers": made} if made else {}
    names |= {} if peft_config is None else {"peft_config": peft_config.to_dict()}
    # a set, such as that of the layers' names, has another order in each process
    return json.loads(
        json.dumps(names, default=lambda x: sorted(x) if isinstance(x, set) else str(x))
    )


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Raises ConfigError where an optimizer that was given would train what the model no longer
    has: rows for new think tokens, for one, make a new embedding."""
    here = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if any(id(p) not in here for p in held):
        raise ConfigError(
            f"the {type(optimizer).__name__} holds parameters that the model does not have",
            why="they were replaced when the model was prepared, and would not be trained",
            fix="optimizer_cls_and_kwargs=(torch.optim.AdamW, {'lr': 1e-5}): it is made later",
        )


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
        fix="native_reasoning.objective.types.Signal says what each field holds",
    )


# -- Reward functions ------------------------------------------------------------------------------


class RewardFunctions:
    """Reward functions with TRL's signature and their weights: ``weights`` None means 1 each.

    Each is called once per rollout, for all traces of this process, as
    ``f(prompts=…, completions=…, completion_ids=…, answer=…, trainer_state=…, **columns)`` and
    returns one number per completion; None counts as 0. Functions may be coroutines. An objective
    of the user's own finds the weighted sum in ``Scores.verdict.added``.
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

    def __call__(self, count: int, /, **columns: Any) -> Tensor:
        """The weighted sum (count,), float32. Raises RunError where a function does not answer."""
        total = torch.zeros(count, dtype=torch.float64)
        for function, weight in zip(self.functions, self.weights, strict=True):
            values = _ask(function, count, columns)
            total += weight * torch.tensor(values, dtype=torch.float64)
        return total.float()


def _ask(function: Callable[..., Any], count: int, columns: dict[str, Any]) -> list[float]:
    name = name_of(function)
    try:
        given = function(**columns)
        if inspect.isawaitable(given):
            given = _wait(given)
        values = [0.0 if value is None else float(value) for value in given]
    except Exception as error:  # the user's function may do anything
        raise _no_reward(name, f"failed: {type(error).__name__}: {error}", columns) from error
    if len(values) != count:
        raise _no_reward(name, f"returned {len(values)} rewards for {count} traces", columns)
    for i, value in enumerate(values):
        if not abs(value) <= LARGEST_REWARD:
            raise _no_reward(name, f"returned {value} for completion {i}", columns)
    return values


def _wait(value: Awaitable[Any]) -> Any:
    """What a coroutine returns, run in a thread of its own: a notebook has a loop already."""

    async def result() -> Any:
        return await value

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, result()).result()


def _no_reward(name: str, what: str, columns: dict[str, Any]) -> RunError:
    given = ", ".join(column for column in columns if column != "trainer_state")
    return RunError(
        f"reward function {name} {what}",
        why="every trace needs a reward, and one number each",
        fix=f"it is given {given}, each a list with one entry per trace, and trainer_state",
    )
