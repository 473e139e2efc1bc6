"""Settings that cannot work, or harm a run, are refused before anything is loaded."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from native_reasoning.config.errors import ConfigError, did_you_mean
from native_reasoning.config.settings import (
    LOG_PROBABILITIES,
    SETTINGS,
    TOKEN_REWARDS,
    NRTOptions,
    ObjectiveSettings,
)

#: Least and largest number of arguments of transformers; ours have theirs in settings.py.
RANGES = {
    "per_device_train_batch_size": (1, 1e6),
    "gradient_accumulation_steps": (1, 1e6),
    "seed": (0, 2**32 - 1),
    "adam_beta1": (0, 0.9999999),
    "adam_beta2": (0, 0.9999999),
}
#: Settings of an objective that may be changed: what is sampled is a preset's own.
CHANGEABLE = tuple(name for name in SETTINGS if name != "traces")
_NOT_READ = ("rows are sampled and the loss is the objective's: nothing reads it", "leave it out")
_AT_ONCE = (
    "as much is computed at once as fits into memory",
    "leave it out, or set max_tokens_per_forward",
)
_OWN_ORDER = ("every row has its turn, in an order of the seed", "leave it out")
#: Arguments of transformers that would be ignored here or do harm, with the reason and what to do.
REFUSED = {
    "label_smoothing_factor": _NOT_READ,
    "include_num_input_tokens_seen": _NOT_READ,
    "bf16_full_eval": (_NOT_READ[0], "bf16 true"),
    "dataloader_drop_last": _OWN_ORDER,
    "train_sampling_strategy": _OWN_ORDER,
    "neftune_noise_alpha": ("its noise would be in the rewards too", "leave it out"),
    "auto_find_batch_size": _AT_ONCE,
    "per_device_eval_batch_size": _AT_ONCE,
    "enable_jit_checkpoint": (
        "it may save inside an optimiser step, which cannot be resumed exactly",
        "leave it off: SIGTERM already saves at the end of the step",
    ),
    "push_to_hub": (
        "transformers uploads the run folder, with every prompt, answer and trace, and writes the "
        "hub's token into it",
        "leave it out; after the run: hf upload OWNER/NAME RUN/final",
    ),
}
#: Keywords of transformers' Trainer that do nothing here, and what to do in their place.
INSTEAD = {
    "tokenizer": "processing_class=tokenizer",
    "model_init": "model='owner/name' or a folder: each new NRTTrainer loads it anew",
    "data_collator": "leave it out; chat_template_path changes how prompts are written",
    "compute_loss_func": "objective=, a callable Scores -> Signal, or reward_funcs=",
    "preprocess_logits_for_metrics": "compute_metrics=, which gets the answers as text",
}
#: Methods of transformers' Trainer that NRTTrainer does not have: what is said, why, what to do.
NO_CALLS = {
    "push_to_hub": ("push_to_hub", *REFUSED["push_to_hub"]),
    "hyperparameter_search": (
        "NRTTrainer has no hyperparameter_search",
        "a trial needs a model, a run folder and a trainer of its own",
        "a loop that makes NRTConfig(output_dir=...) and NRTTrainer(...) for each value",
    ),
}


@dataclass(frozen=True)
class Clash:
    """Settings that harm a run together: their ``names``, of NRTConfig or of its ``objective.``,
    and whether they do, given both and whether traces are ``judged``."""

    names: tuple[str, ...]
    harms: Callable[[NRTOptions, ObjectiveSettings, bool], bool]
    why: str
    fix: str

    def error(self, options: NRTOptions, objective: ObjectiveSettings) -> ConfigError:
        """What to raise, with the values."""
        values = vars(options) | {f"objective.{k}": v for k, v in vars(objective).items()}
        first, *others = (f"{name} {values[name]!r}" for name in self.names)
        what = first.replace(" ", " is ", 1) + " with " + ", ".join(others)
        return ConfigError(what, why=self.why, fix=self.fix)


CLASHES = (
    Clash(
        ("num_generations", "preset", "objective.centre", "objective.scale"),
        lambda c, o, judged: (
            judged and c.num_generations < 2 and (o.centre, o.scale) != ("none", "none")
        ),
        "a trace is judged against the others of its question; one alone teaches nothing",
        "num_generations 8, or objective.centre none with objective.scale none, which compares "
        "nothing",
    ),
    Clash(
        ("preset", "objective.reward", "objective.traces"),
        lambda c, o, judged: judged and o.traces == "empty",
        "a reward (objective.reward, reward_funcs) tells traces apart, and nothing is sampled here",
        "leave the reward out, or preset nrt-ws",
    ),
    Clash(
        ("objective.answer_gate", "objective.reward"),
        lambda c, o, judged: o.reward == "none" and o.answer_gate == "relu",
        "the gate is open after traces that helped, and nothing says which did",
        "objective.answer_gate none",
    ),
    Clash(
        ("objective.reward", "objective.policy_tokens"),
        lambda c, o, judged: o.reward == "exact_match" and not o.samples_answers,
        "it looks at a sampled answer, and none is sampled",
        "objective.policy_tokens trace_tag_answer",
    ),
    Clash(
        ("objective.clip", "objective.baseline", "preset"),
        lambda c, o, judged: (o.clip, o.baseline) == ("relu", "none") and o.reward != "none",
        "the clip is on R - R_base, and there is no R_base",
        "objective.clip none, or objective.baseline current",
    ),
    Clash(
        ("objective.answer_weight", "objective.reward"),
        lambda c, o, judged: o.answer_weight == "exact" and o.reward not in TOKEN_REWARDS,
        "that reward has no gradient through the answer's tokens",
        "objective.answer_weight none, or one",
    ),
    Clash(
        ("objective.centre", "objective.reward"),
        lambda c, o, judged: o.reward == "jepo" and o.centre != "lme_loo",
        "the answer weights of jepo belong to the group's log-mean-exp",
        "objective.centre lme_loo, or objective.reward logp",
    ),
    Clash(
        ("objective.centre", "objective.reward"),
        lambda c, o, judged: o.centre == "lme_loo" and o.reward not in LOG_PROBABILITIES,
        "it takes the logarithm of a mean of probabilities, so R must be a log-probability",
        "objective.reward jepo or logp, or objective.centre leave_one_out",
    ),
    Clash(
        ("objective.bad_format", "objective.reward", "objective.kl_in_reward", "objective.clip"),
        lambda c, o, judged: o.bad_format == "zero" and o.clip == "none" and _negative(o),
        "0 is better than what other traces get: one that never closes would win",
        "objective.bad_format mask or penalty",
    ),
    Clash(
        ("objective.bad_format", "objective.reward", "objective.clip"),
        lambda c, o, judged: (
            o.bad_format == "twice_mean" and (o.reward not in LOG_PROBABILITIES or o.clip == "relu")
        ),
        "twice the mean is a penalty only where rewards are negative",
        "objective.bad_format mask or penalty",
    ),
    Clash(
        ("format_warmup_steps", "preset", "objective.answer_weight", "objective.format_loss_coef"),
        lambda c, o, judged: (
            bool(c.format_warmup_steps) and not (o.answer_weight != "none" or o.format_loss_coef)
        ),
        "it trains the answer and the closing tag alone, and this preset trains neither",
        "objective.format_loss_coef 0.3, or a run with preset sft-think first",
    ),
    Clash(
        ("objective.scored_by", "objective.baseline", "objective.answer_weight"),
        lambda c, o, judged: (
            o.scored_by == "ema"
            and (o.baseline in ("current", "frozen") or o.answer_weight == "exact")
        ),
        "R would be the lagging copy's, R_base and the gradient another policy's",
        "objective.baseline ema with objective.answer_weight one",
    ),
)


def _negative(o: ObjectiveSettings) -> bool:
    """Whether rewards can be below zero."""
    return o.reward in (*LOG_PROBABILITIES, "reflection") or bool(o.kl_in_reward)


def objective_values(given: object) -> dict[str, Any]:
    """The settings of an objective that ``given`` names, with numbers for their texts. Raises
    ConfigError for what is no mapping, an unknown name, and a value that cannot be."""
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"objective is {given!r}",
            why="it is a mapping of settings, such as {clip: none}",
            fix="objective_func, if it names a function of your own",
        )
    values = {str(name).replace("-", "_"): value for name, value in given.items()}
    for name, value in values.items():
        if name not in CHANGEABLE:
            raise ConfigError(
                f"objective has no setting {name!r}{did_you_mean(name, CHANGEABLE)}",
                why="a setting that nothing reads would change nothing",
                fix="nrt train --help lists them, as --objective.NAME",
            )
        if SETTINGS[name].type is not str:
            values[name] = _number(f"objective.{name}", SETTINGS[name].type, value)
        _check_value(f"objective.{name}", SETTINGS[name].metadata, values[name])
    return values


def _number(name: str, kind: Any, value: Any) -> float | None:
    """A number of the field's type, also from its text. Raises ConfigError."""
    if value in (None, "none", "null") and kind not in (int, float):
        return None
    with suppress(TypeError, ValueError, OverflowError):
        read: Any = int if kind is int else float
        found = read(value)
        if not isinstance(value, bool) and (isinstance(value, str) or found == value):
            return found
    whole = "a whole number" if kind is int else "a number"
    raise ConfigError(f"{name} is {value!r}", why=f"it is {whole}", fix=f"change {name}")


def _check_value(name: str, about: Mapping[str, Any], value: Any) -> None:
    """Raises ConfigError unless a value is one of the choices, and within the range."""
    if about["choices"] and value not in about["choices"]:
        raise ConfigError(
            f"{name} is {value!r}{did_you_mean(str(value), about['choices'])}",
            why=about["help"],
            fix=f"one of: {', '.join(about['choices'])}",
        )
    low, high = about["within"] or (0, 0)
    if about["within"] and value is not None and not low <= value <= high:
        raise ConfigError(
            f"{name} is {value}", why=f"it must be from {low:g} to {high:g}", fix=f"change {name}"
        )


def check_options(options: NRTOptions, objective: ObjectiveSettings) -> None:
    """Choices and ranges of our own options, then what they make together. Raises ConfigError."""
    for f in fields(NRTOptions):
        _check_value(f.name, f.metadata, getattr(options, f.name))
    for name, within in RANGES.items():
        _check_value(name, {"choices": (), "within": within}, getattr(options, name))
    if options.objective_func is None:
        check_together(options, objective, judged=bool(options.reward_funcs))


def check_together(options: NRTOptions, objective: ObjectiveSettings, judged: bool) -> None:
    """Whether settings harm a run together, where traces are ``judged`` by functions of the user or
    by the objective. Raises ConfigError."""
    judged = judged or objective.reward != "none"
    for clash in CLASHES:
        if clash.harms(options, objective, judged):
            raise clash.error(options, objective)


def check_call(
    model: object, args: object, eval_dataset: object, others: Mapping[str, Any]
) -> dict[str, Any]:
    """What NRTTrainer was called with, before anything is loaded. Returns those of the ``others``
    that transformers' Trainer gets. Raises ConfigError."""
    given = {name: value for name, value in others.items() if value is not None}
    for name in given:
        if name in INSTEAD:
            raise ConfigError(
                f"NRTTrainer takes no {name}", why="nothing would read it", fix=INSTEAD[name]
            )
    if model is None:
        raise ConfigError(
            "NRTTrainer has no model",
            why="its own probability of the answer is the reward",
            fix="model='owner/name', a folder, or a causal language model",
        )
    if not isinstance(args, NRTOptions):
        raise ConfigError(
            f"NRTTrainer has {'no' if args is None else f'a {type(args).__name__} as'} args",
            why="the settings of a run are NRTConfig's: all TrainingArguments and ours",
            fix="args=NRTConfig(output_dir='runs/first')",
        )
    asked: Any = args
    if eval_dataset is None and (asked.eval_strategy != "no" or asked.eval_on_start):
        raise ConfigError(
            "eval_strategy or eval_on_start without eval_dataset",
            why="there are no held-out questions to ask",
            fix="give eval_dataset (--eval-data), or leave them out",
        )
    return given


def check_metric(name: str, known: Iterable[str]) -> None:
    """The metric of the best model, with or without ``eval_``. Raises ConfigError."""
    names = sorted(known)
    if name.removeprefix("eval_") not in names:
        raise ConfigError(
            f"metric_for_best_model is {name!r}{did_you_mean(name.removeprefix('eval_'), names)}",
            why="an evaluation of these questions measures no such thing",
            fix=f"one of: {', '.join(n for n in names if not n.endswith(('_low', '_high')))}",
        )


def refuse_call(method: str) -> NoReturn:
    """Raises ConfigError for a method of transformers' Trainer that NRTTrainer does not have."""
    what, why, fix = NO_CALLS[method]
    raise ConfigError(what, why=why, fix=fix)
