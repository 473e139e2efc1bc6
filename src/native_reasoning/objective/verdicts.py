"""What judges a sampled text beside the formulas: its format, whether its answer is right, and the
user's own reward functions and objectives, which are found, called and checked here.

A name of a function is ``module:function``. Importing a module runs it, so modules are taken from
the working folder; from elsewhere only where ``trust_imports`` says so.
"""

import asyncio
import importlib
import inspect
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from native_reasoning.config.checks import check_together
from native_reasoning.config.errors import ConfigError, RunError
from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.objective.credit import objective_of
from native_reasoning.objective.types import Scores, Signal, Verdict

#: An objective of whatever kind.
AnyObjective = Callable[[Scores], Signal]
#: RLPR's rule for repetition: this many words in a row, this often (2506.18254, released code).
REPEATED_WORDS, REPEATED_TIMES = 10, 10


def judge(
    groups: Sequence[PromptGroup],
    traces: Sequence[Traces],
    template: Template,
    rewards: "RewardFunctions",
    **context: Any,
) -> list[Verdict]:
    """A verdict per group. ``context`` (such as ``trainer_state``) is handed to ``rewards``.

    The reward functions are called once, with every trace of every group that has weight.
    """
    verdicts = [read(*pair, template) for pair in zip(groups, traces, strict=True)]
    if not rewards:
        return verdicts
    real = [i for i, group in enumerate(groups) if group.weight]
    added = [torch.zeros(len(verdict.correct)) for verdict in verdicts]
    if real:
        columns = columns_of([groups[i] for i in real], [traces[i] for i in real], template)
        sizes = [len(added[i]) for i in real]
        given = rewards(sum(sizes), **{**columns, **context}).split(sizes)
        for i, one in zip(real, given, strict=True):
            added[i] = one
    return [replace(v, added=one) for v, one in zip(verdicts, added, strict=True)]


def read(group: PromptGroup, traces: Traces, template: Template) -> Verdict:
    """The verdict on one group, without the user's rewards."""
    complete, correct, repetitive = [], [], []
    answered = bool(traces.answers)
    references = {reference.strip() for reference in group.example.references}
    for ids, closed, answer in zip(traces.ids, traces.closed, traces.answered(), strict=True):
        before = ids[: len(ids) - template.tag_length(ids)] if closed else ids
        trace, text = template.completion(before), template.completion(answer).strip()
        ended = bool(answer) and answer[-1] in template.end_ids
        tagged = any(tag in part for tag in template.tags for part in (trace, text))
        complete.append(closed and (not answered or (ended and bool(text) and not tagged)))
        stands = group.example.graded(text, ended)
        whole = ended or stands != text  # else the limit may have cut it
        correct.append(whole and stands in references)
        repetitive.append(repeats(f"{trace} {text}"))
    return Verdict(torch.tensor(complete), torch.tensor(correct), torch.tensor(repetitive))


def repeats(text: str) -> bool:
    """Whether ``REPEATED_WORDS`` words in a row occur ``REPEATED_TIMES`` times.

    >>> repeats("no " * 19), repeats("no " * 18)
    (True, False)
    """
    words = text.split()
    if len(words) < REPEATED_WORDS + REPEATED_TIMES - 1:
        return False
    runs = zip(*(words[i:] for i in range(REPEATED_WORDS)), strict=False)
    return max(Counter(runs).values()) >= REPEATED_TIMES


def columns_of(
    groups: Sequence[PromptGroup], traces: Sequence[Traces], template: Template
) -> dict[str, list[Any]]:
    """What reward functions are given, one entry per trace, named as TRL names it.

    ``prompts`` and ``completions`` are strings where every prompt is one user turn, else lists of
    messages. A completion is what was sampled: trace, closing tag, and the answer if there is one.
    ``completion_ids`` has its tokens; ``answer`` is the reference; then the data's other columns.
    """
    chat = any(len(group.example.prompt) > 1 for group in groups)
    rows: list[dict[str, Any]] = []
    for group, sampled in zip(groups, traces, strict=True):
        example = group.example
        for ids, answer in zip(sampled.ids, sampled.answered(), strict=True):
            completion = (*ids, *(template.gap_ids if answer else ()), *answer)
            text = template.completion(completion)
            own = {
                "prompts": _messages(example.prompt) if chat else example.question,
                "completions": _messages((("assistant", text),)) if chat else text,
                "completion_ids": list(completion),
                "answer": example.answer,
            }
            rows.append({**own, **example.columns, **own})
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


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
        if inspect.iscoroutine(given):
            with ThreadPoolExecutor(1) as pool:  # a notebook's own thread has a loop already
                given = pool.submit(asyncio.run, given).result()
        values = [0.0 if value is None else float(value) for value in given]
    except Exception as error:  # the user's function may do anything
        raise _no_reward(name, f"failed: {type(error).__name__}: {error}", columns) from error
    if len(values) != count:
        raise _no_reward(name, f"returned {len(values)} rewards for {count} traces", columns)
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise _no_reward(name, f"returned {value} for completion {i}", columns)
    return values


def _no_reward(name: str, what: str, columns: dict[str, Any]) -> RunError:
    given = ", ".join(column for column in columns if column != "trainer_state")
    return RunError(
        f"reward function {name} {what}",
        why="every trace needs a reward, and one number each",
        fix=f"it is given {given}, each a list with one entry per trace, and trainer_state",
    )


# -- Functions of the user's own -------------------------------------------------------------------


def load_callable(name: str, trust_imports: bool = False) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    The working folder is added to the end of ``sys.path``, so that the function may import from it
    when it is called. Raises ConfigError if there is no such function, or if the module is not in
    the working folder and ``trust_imports`` is not set.
    """
    module_name, _, function = name.partition(":")
    here, parts = Path.cwd(), module_name.split(".")
    place = here.joinpath(*parts)
    own = place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
    if not (function and all(map(str.isidentifier, parts)) and (own or trust_imports)):
        raise ConfigError(
            f"{name!r} names no function of the working folder",
            why="importing a module runs it, and a recipe may come from anybody",
            fix=f"my_module:my_function, with my_module.py in {here}; of a module from elsewhere "
            "with trust_imports true on the command line or in Python; a run that was given a "
            "function from Python goes on from Python",
        )
    sys.path.insert(0, str(here))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module runs, and may do anything
        raise ConfigError(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}",
            why="a function of it is asked for",
            fix=f"mend {module_name}: python -c 'import {module_name}' shows where it fails",
        ) from error
    finally:
        sys.path.remove(str(here))
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(
            f"{module_name} has no function {function!r}",
            why=f"{name} is asked for",
            fix=f"define {function} at the top level of {module_name}",
        )
    if str(here) not in sys.path:
        sys.path.append(str(here))
    return found


@dataclass(frozen=True)
class Judging:
    """What judges traces: an objective, the settings' own or another, and reward functions.
    ``rewarded``: traces are told apart."""

    objective: AnyObjective
    rewards: RewardFunctions
    rewarded: bool


def find_judging(
    args: Any,
    objective: AnyObjective | None = None,
    reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
) -> Judging:
    """The objective and the reward functions that are given, or that ``args`` (NRTConfig) names.

    Raises ConfigError where a name leads nowhere, or nothing could be told apart.
    """
    if objective is None and args.objective_func is not None:
        objective = load_callable(args.objective_func, args.trust_imports)
    functions = listed(reward_funcs) or [
        load_callable(name, args.trust_imports) for name in args.reward_funcs or ()
    ]
    rewards = RewardFunctions(functions, args.reward_weights)
    own = objective_of(args.resolved_objective())
    if objective is None:
        check_together(args, own, judged=bool(rewards))
    found = objective or own
    return Judging(found, rewards, found != own or own.reward != "none" or bool(rewards))


def listed(
    functions: Callable[..., Any] | Sequence[Callable[..., Any]],
) -> list[Callable[..., Any]]:
    """One function, or several, as a list."""
    return [functions] if callable(functions) else list(functions)


def given_names(
    objective: AnyObjective | None,
    reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]],
    peft_config: Any,
    theirs: Mapping[str, Any],
) -> dict[str, Any]:
    """What config.yaml calls an objective, reward functions, an adapter and optimizers (with
    schedulers or arguments: keywords of transformers' Trainer) that were given from Python."""
    optimizers = (*theirs.get("optimizers", ()), *theirs.get("optimizer_cls_and_kwargs", ()))
    names = {
        "objective_func": None if objective is None else name_of(objective),
        "reward_funcs": [name_of(function) for function in listed(reward_funcs)],
        "optimizers": [x if isinstance(x, dict) else name_of(x) for x in optimizers if x],
        "peft_config": None if peft_config is None else peft_config.to_dict(),
    }
    given = {name: value for name, value in names.items() if value}
    # a set, such as that of the layers' names, has another order in each process
    return json.loads(
        json.dumps(given, default=lambda x: sorted(x) if isinstance(x, set) else str(x))
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


def check_signal(signal: Any, scores: Scores, name: str) -> Signal:
    """The signal of a custom objective, if it fits the scores.

    Raises RunError for a wrong type or shape, or a number that is not finite.
    """
    if not isinstance(signal, Signal):
        raise _refused(name, f"returned {type(signal).__name__}, not a Signal")
    k, t = scores.answer.shape
    shapes = {
        "rewards": (k,),
        "baseline_reward": (),
        "advantages": (k,),
        "answer_weights": (k, t),
        "trace_weights": tuple(scores.trace.shape),
    }
    for field, shape in shapes.items():
        value = getattr(signal, field)
        if value is None and field == "trace_weights":
            continue
        if not isinstance(value, Tensor) or value.shape != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise _refused(name, f"{field} is {got}, not a tensor of the shape {shape}")
        if not value.isfinite().all():
            raise _refused(name, f"{field} is not finite: {value.tolist()}")
    return signal


def _refused(name: str, what: str) -> RunError:
    return RunError(
        f"objective {name}: {what}",
        why="the update would be wrong, or not a number, without a word",
        fix="native_reasoning.objective.types.Signal says what each field holds",
    )
