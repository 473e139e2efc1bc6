"""Settings that cannot work, alone or together, are refused before anything is loaded."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from native_reasoning.config.errors import ConfigError, did_you_mean
from native_reasoning.config.options import NRTOptions
from native_reasoning.config.settings import (
    LOG_PROBABILITIES,
    SETTINGS,
    TOKEN_REWARDS,
    ObjectiveSettings,
)

#: Least and largest number of arguments of transformers; ours have theirs in options.py.
RANGES = {
    "per_device_train_batch_size": (1, 1e6),
    "per_device_eval_batch_size": (1, 1e6),
    "gradient_accumulation_steps": (1, 1e6),
    "seed": (0, 2**32 - 1),
    "adam_beta1": (0, 0.9999999),
    "adam_beta2": (0, 0.9999999),
}
#: Settings of an objective that another one switches on: whether it does, and how.
NEEDS: dict[str, tuple[Callable[[ObjectiveSettings], bool], str]] = {
    "ema_decay": (lambda o: o.needs_ema, "objective.baseline ema"),
    "ema_steps": (lambda o: o.needs_ema, "objective.baseline ema"),
    "filter_coef": (lambda o: o.filter != "none", "objective.filter ema_std"),
    "format_penalty": (lambda o: o.bad_format == "penalty", "objective.bad_format penalty"),
    "std_eps": (lambda o: o.scale == "std", "objective.scale std"),
    "ratio_low": (lambda o: o.ratio != "none", "objective.ratio cispo, or ppo"),
    "ratio_high": (lambda o: o.ratio != "none", "objective.ratio cispo, or ppo"),
}
#: Settings of an objective that may be changed: what is sampled is a preset's own.
CHANGEABLE = tuple(name for name in SETTINGS if name != "traces")
_NOT_READ = ("nothing here reads it: rows are sampled, and the loss is the objective's",)
#: Arguments of transformers that change nothing here, or do harm, with the reason and what to do.
REFUSED = {
    "label_smoothing_factor": (*_NOT_READ, "leave it out"),
    "include_num_input_tokens_seen": (*_NOT_READ, "leave it out: metrics.jsonl has lengths"),
    "prediction_loss_only": (*_NOT_READ, "leave it out"),
    "batch_eval_metrics": (*_NOT_READ, "leave it out: compute_metrics gets all answers at once"),
    "include_for_metrics": (*_NOT_READ, "leave it out: compute_metrics gets the questions"),
    "bf16_full_eval": (*_NOT_READ, "bf16 true"),
    "fp16_full_eval": (*_NOT_READ, "fp16 true"),
    "dataloader_drop_last": ("every row has its turn, in an order of the seed", "leave it out"),
    "train_sampling_strategy": ("every row has its turn, in an order of the seed", "leave it out"),
    "neftune_noise_alpha": ("its noise would be in the rewards too", "leave it out"),
    "auto_find_batch_size": ("the rows of a step are planned beforehand", "rows_per_forward 8"),
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
#: Keywords of transformers' Trainer that NRTTrainer hands on.
HANDED_ON = ("optimizers", "optimizer_cls_and_kwargs", "compute_metrics")
#: Methods of transformers' Trainer that NRTTrainer has not, with the reason and what to do.
NO_METHODS = {
    "hyperparameter_search": (
        "a trial needs a model, a run folder and a trainer of its own",
        "a loop that makes NRTConfig(output_dir=...) and NRTTrainer(...) anew for each value",
    ),
    "push_to_hub": (
        "transformers uploads the run folder, with every prompt, answer and trace",
        "trainer.save_model(FOLDER), then: hf upload OWNER/NAME FOLDER",
    ),
}
#: What to do in place of its other keywords.
INSTEAD = {
    "tokenizer": "processing_class=tokenizer",
    "model_init": "model='owner/name' or a folder: each new NRTTrainer loads it anew",
    "data_collator": "leave it out; chat_template_path changes how prompts are written",
    "compute_loss_func": "objective=, a callable Scores -> Signal, or reward_funcs=",
    "preprocess_logits_for_metrics": "compute_metrics=, which gets the answers as text",
}
#: What the trackers that a test has seen are made of: one of the packages is enough.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def objective_values(given: object) -> dict[str, Any]:
    """The settings of an objective that ``given`` names, with numbers for their texts.

    Raises ConfigError for what is no mapping, an unknown name, and a value that cannot be.
    """
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
    try:
        read: Any = int if kind is int else float
        found = read(value)
        if not isinstance(value, bool) and (isinstance(value, str) or found == value):
            return found
    except (TypeError, ValueError, OverflowError):
        pass
    whole = "a whole number" if kind is int else "a number"
    raise ConfigError(f"{name} is {value!r}", why=f"it is {whole}", fix=f"change {name}")


def _check_value(name: str, about: Mapping[str, Any], value: Any) -> None:
    """Whether a value is one of the choices, or within the range, of a setting. Raises
    ConfigError."""
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
        value = getattr(options, f.name)
        _check_value(f.name, f.metadata, value)
        for switch, wanted in f.metadata["needs"].items():
            if value != f.default and getattr(options, switch) != wanted:
                raise ConfigError(
                    f"{f.name} is {value} with {switch} {getattr(options, switch)}",
                    why="nothing reads it there",
                    fix=f"{switch} {str(wanted).lower()}, or leave it out",
                )
    for name, within in RANGES.items():
        _check_value(name, {"choices": (), "within": within}, getattr(options, name))
    if options.objective_func is None:
        check_sampling(options, objective, judged=bool(options.reward_funcs))
        _check_reward(options, objective)
        _check_effect(options, objective)


def check_sampling(options: NRTOptions, objective: ObjectiveSettings, judged: bool) -> None:
    """Rewards need something to tell apart: the preset's, or (``judged``) the user's own.

    Raises ConfigError.
    """
    judged = judged or objective.reward != "none"
    compares = objective.centre != "none" or objective.scale != "none"
    if judged and compares and options.num_generations < 2:
        raise ConfigError(
            f"num_generations is {options.num_generations} with preset {options.preset!r}",
            why="a trace is judged against the others of its question; one alone teaches nothing",
            fix="num_generations 8, or objective.centre none with objective.scale none, which "
            "compares nothing",
        )
    if judged and objective.traces == "empty":
        own = "a reward of your own (reward_funcs)"
        name = own if objective.reward == "none" else f"objective.reward is {objective.reward!r}"
        raise ConfigError(
            f"{name} with preset {options.preset!r}, which samples nothing",
            why="a reward tells traces apart, and the one trace here is empty",
            fix="leave it out, or preset nrt-ws",
        )
    if objective.reward == "none" and objective.answer_gate == "relu":
        raise ConfigError(
            f"objective.answer_gate is 'relu' with preset {options.preset!r}, which has no reward",
            why="the gate is open after traces that helped, and nothing says which did",
            fix="objective.answer_gate none",
        )
    if objective.reward == "exact_match" and not objective.samples_answers:
        raise ConfigError(
            f"objective.reward 'exact_match' with objective.policy_tokens "
            f"{objective.policy_tokens!r}",
            why="it looks at a sampled answer, and none is sampled",
            fix="objective.policy_tokens trace_tag_answer",
        )


def _check_effect(options: NRTOptions, objective: ObjectiveSettings) -> None:
    """Settings that would change nothing, and mixtures of two policies' numbers."""
    given: Any = options.objective or {}
    for name, (does, need) in NEEDS.items():
        if given.get(name) is not None and not does(objective):
            raise ConfigError(
                f"objective.{name} is {given[name]:g} with preset {options.preset!r}",
                why="nothing reads it",
                fix=f"leave it out, or {need}",
            )
    if options.use_vllm and objective.traces == "empty":
        raise ConfigError(
            f"use_vllm with preset {options.preset!r}, which samples nothing",
            why="nothing would be asked of vLLM",
            fix="leave it out",
        )
    trained = objective.answer_weight != "none" or objective.format_loss_coef
    if options.format_warmup_steps and not trained:
        raise ConfigError(
            f"format_warmup_steps is {options.format_warmup_steps} with preset {options.preset!r}",
            why="it trains the answer and the closing tag alone, and this preset trains neither",
            fix="objective.format_loss_coef 0.3, or a run with preset sft-think first",
        )
    mixed = objective.baseline in ("current", "frozen") or objective.answer_weight == "exact"
    if objective.scored_by == "ema" and mixed:
        raise ConfigError(
            f"objective.scored_by is 'ema' with baseline {objective.baseline!r}, answer_weight "
            f"{objective.answer_weight!r}",
            why="R would be the lagging copy's, R_base and the gradient another policy's",
            fix="objective.baseline ema with objective.answer_weight one",
        )


def _check_reward(options: NRTOptions, objective: ObjectiveSettings) -> None:
    """Settings that a reward does not go with."""
    reward, preset = objective.reward, options.preset
    if objective.clip == "relu" and objective.baseline == "none" and reward != "none":
        raise ConfigError(
            f"objective.clip is 'relu' with preset {preset!r}, which has no baseline",
            why="the clip is on R - R_base, and there is no R_base",
            fix="objective.clip none, or objective.baseline current",
        )
    if objective.answer_weight == "exact" and reward not in TOKEN_REWARDS:
        raise ConfigError(
            f"objective.answer_weight is 'exact' with reward {reward!r}",
            why="that reward has no gradient through the answer's tokens",
            fix="objective.answer_weight none, or one",
        )
    if reward == "jepo" and objective.centre != "lme_loo":
        raise ConfigError(
            f"objective.centre is {objective.centre!r} with reward 'jepo'",
            why="its answer weights belong to the group's log-mean-exp",
            fix="objective.centre lme_loo, or objective.reward logp",
        )
    if objective.centre == "lme_loo" and reward not in LOG_PROBABILITIES:
        raise ConfigError(
            f"objective.centre is 'lme_loo' with reward {reward!r}",
            why="it takes the logarithm of a mean of probabilities, so R must be a log-probability",
            fix="objective.reward jepo or logp, or objective.centre leave_one_out",
        )
    signed = reward in LOG_PROBABILITIES
    negative = signed or reward == "reflection" or bool(objective.kl_in_reward)
    if objective.bad_format == "zero" and negative and objective.clip == "none":
        raise ConfigError(
            f"objective.bad_format is 'zero' with reward {reward!r}, kl_in_reward "
            f"{objective.kl_in_reward:g} and no clip",
            why="0 is better than what other traces get: one that never closes would win",
            fix="objective.bad_format mask or penalty",
        )
    if objective.bad_format == "twice_mean" and (not signed or objective.clip == "relu"):
        raise ConfigError(
            f"objective.bad_format is 'twice_mean' with reward {reward!r}, clip {objective.clip!r}",
            why="twice the mean is a penalty only where rewards are negative",
            fix="objective.bad_format mask or penalty",
        )


def check_call(
    model: object, args: object, eval_dataset: object, others: Mapping[str, Any]
) -> dict[str, Any]:
    """What NRTTrainer was called with, before anything is loaded. Returns those of the ``others``
    that transformers' Trainer gets. Raises ConfigError."""
    for name, value in others.items():
        if name not in HANDED_ON and not (name in INSTEAD and value is None):
            known = (*HANDED_ON, "model", "args", "train_dataset", "eval_dataset", "objective")
            known += ("processing_class", "reward_funcs", "callbacks", "peft_config")
            near = "" if name in INSTEAD else did_you_mean(name, known)
            raise ConfigError(
                f"NRTTrainer takes no {name}{near}",
                why="nothing would read it",
                fix=INSTEAD.get(name, "leave it out"),
            )
    if model is None:
        raise ConfigError(
            "NRTTrainer has no model",
            why="its own probability of the answer is the reward",
            fix="model='owner/name', a folder, or a causal language model",
        )
    if not isinstance(args, NRTOptions):
        given = "no args" if args is None else f"a {type(args).__name__} as args"
        raise ConfigError(
            f"NRTTrainer has {given}",
            why="the settings of a run are NRTConfig's: all TrainingArguments and ours",
            fix="args=NRTConfig(output_dir='runs/first')",
        )
    asked: Any = args
    every = asked.eval_strategy.value
    if eval_dataset is None and (every != "no" or asked.eval_on_start):
        name, value = ("eval_on_start", True) if every == "no" else ("eval_strategy", every)
        raise ConfigError(
            f"{name} is {value} without eval_dataset",
            why="there are no held-out questions to ask",
            fix=f"give eval_dataset (--eval-data), or leave {name} out",
        )
    return {name: value for name, value in others.items() if value is not None}


def refused(method: str) -> ConfigError:
    """What to raise where a method of transformers' Trainer is called that NRTTrainer has not."""
    why, fix = NO_METHODS[method]
    return ConfigError(f"NRTTrainer has no {method}", why=why, fix=fix)


def check_metric(name: str, known: Iterable[str]) -> None:
    """The metric of the best model, with or without ``eval_``. Raises ConfigError."""
    names = sorted(known)
    if name.removeprefix("eval_") not in names:
        raise ConfigError(
            f"metric_for_best_model is {name!r}{did_you_mean(name.removeprefix('eval_'), names)}",
            why="an evaluation of these questions measures no such thing",
            fix=f"one of: {', '.join(n for n in names if not n.endswith(('_low', '_high')))}",
        )


def check_arguments(arguments: object) -> None:
    """Raises ConfigError for an argument of transformers that is in ``REFUSED``."""
    for name, (why, fix) in REFUSED.items():
        value = getattr(arguments, name)
        if value not in (None, False, 0, "no", "random", []):
            raise ConfigError(f"{name} is {value!r}", why=why, fix=fix)


def check_trackers(names: Iterable[str]) -> None:
    """The trackers of ``report_to``. Raises ConfigError for one that transformers does not know, or
    whose package is not there."""
    for name in names:
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK  # slow

        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(
                f"report_to is {name!r}{did_you_mean(str(name), INTEGRATION_TO_CALLBACK)}",
                why="transformers knows no such tracker",
                fix=f"one of: none, all, {', '.join(INTEGRATION_TO_CALLBACK)}",
            )
        if name in TRACKERS and not any(map(_is_installed, TRACKERS[name])):
            raise ConfigError(
                f"report_to is {name!r}, and {name} is not installed",
                why="the run's numbers would reach no tracker",
                fix=f"pip install {name}, or report_to none",
            )


def _is_installed(package: str) -> bool:
    """Whether it is more than a folder of that name, as W&B leaves one in the working folder."""
    found = find_spec(package)
    return found is not None and found.origin is not None
