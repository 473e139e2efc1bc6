"""Settings that cannot work, alone or together, are refused before anything is loaded."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from native_reasoning.config.errors import ConfigError, did_you_mean
from native_reasoning.config.options import (
    OF_4BIT,
    OF_ADAPTERS,
    OF_COLOCATE,
    OF_SERVER,
    OF_VLLM,
    NRTOptions,
)
from native_reasoning.objective.credit import Objective
from native_reasoning.objective.rewards import REWARDS

RANGES = (
    ("num_generations", 1, 1e6),
    ("max_prompt_length", 1, 1e7),
    ("max_trace_length", 1, 1e7),
    ("max_answer_length", 1, 1e7),
    ("temperature", 1e-3, 100),
    ("top_p", 1e-3, 1),
    ("eval_samples", 1, 1e9),
    ("eval_max_answer_length", 1, 1e7),
    ("eval_num_generations", 1, 1e6),
    ("format_warmup_steps", 0, 1e9),
    ("rollout_batch_size", 1, 1e9),
    ("rows_per_forward", 1, 1e9),
    ("num_iterations", 1, 1e6),
    ("per_device_train_batch_size", 1, 1e6),
    ("per_device_eval_batch_size", 1, 1e6),
    ("gradient_accumulation_steps", 1, 1e6),
    ("seed", 0, 2**32 - 1),
    ("adam_beta1", 0, 0.9999999),
    ("adam_beta2", 0, 0.9999999),
    ("max_skipped_updates", 1, 1e9),
    ("diagnostics_steps", 0, 1e9),
    ("std_eps", 0, 1e6),
    ("adv_clip", 1e-9, 1e9),
    ("format_penalty", 1e-9, 1e9),
    ("beta", 0, 1e6),
    ("kl_in_reward", 0, 1e6),
    ("ratio_low", 0, 1),
    ("ratio_high", 1, 1e6),
    ("ema_decay", 0, 1),
    ("ema_steps", 1, 1e9),
    ("filter_coef", 0, 1e6),
    ("answer_coef", 0, 1e6),
    ("reward_coef", 1e-9, 1e6),
    ("format_reward", 0, 1e6),
    ("efficiency_reward", 0, 1e6),
    ("length_reward", 0, 1e6),
    ("repetition_penalty", 0, 1e6),
    ("format_loss_coef", 0, 1e6),
    ("lora_r", 1, 1e6),
    ("lora_alpha", 1, 1e6),
    ("vllm_gpu_memory_utilization", 1e-3, 1),
    ("vllm_max_model_length", 1, 1e7),
    ("vllm_server_timeout", 0, 1e6),
    ("vllm_group_port", 1, 65535),
)
#: Settings that do something only beside another: name, whether it does, what it needs.
NEEDS: tuple[tuple[str, Callable[[Objective], bool], str], ...] = (
    ("ema_decay", lambda o: o.needs_ema, "baseline ema"),
    ("ema_steps", lambda o: o.needs_ema, "baseline ema"),
    ("filter_coef", lambda o: o.filter != "none", "filter ema_std"),
    ("format_penalty", lambda o: o.bad_format == "penalty", "bad_format penalty"),
    ("std_eps", lambda o: o.scale == "std", "scale std"),
    ("ratio_low", lambda o: o.ratio != "none", "ratio cispo or ppo"),
    ("ratio_high", lambda o: o.ratio != "none", "ratio cispo or ppo"),
)
#: Rewards that are logarithms of probabilities: negative, with 0 the best there is.
LOG_PROBABILITIES = ("logp", "avg_logp", "jepo")
_NO_LABELS = "there is no loss of labels here: the loss is that of the objective"
_NO_LOOP = "evaluation samples answers, and the loop of transformers that reads it does not run"
#: Arguments of transformers that nothing here would read, with the reason and what to do.
UNREAD = {
    "label_smoothing_factor": (_NO_LABELS, "leave it out"),
    "neftune_noise_alpha": (
        "its noise in the embeddings would be in the rewards too, which come from the same forward",
        "leave it out",
    ),
    "dataloader_drop_last": (
        "every row has its turn: the last step of an epoch is filled up with rows of weight 0",
        "leave it out",
    ),
    "train_sampling_strategy": (
        "the rows of each step are a function of seed and step, so that a run can be resumed",
        "leave it out",
    ),
    "include_num_input_tokens_seen": (
        "rows are sampled here, and transformers would count none of their tokens",
        "leave it out: metrics.jsonl has the lengths of traces",
    ),
    "bf16_full_eval": ("evaluation samples in the arithmetic of training", "bf16 true"),
    "fp16_full_eval": ("evaluation samples in the arithmetic of training", "fp16 true"),
    "auto_find_batch_size": (
        "the rows of a step are planned beforehand, and another batch size would change them",
        "leave it out, and set rows_per_forward: the gradient is the same",
    ),
    "prediction_loss_only": (_NO_LOOP, "leave it out"),
    "batch_eval_metrics": (_NO_LOOP, "leave it out: compute_metrics gets all answers at once"),
    "include_for_metrics": (_NO_LOOP, "leave it out: compute_metrics gets the questions as inputs"),
}
#: Keywords of transformers' Trainer that NRTTrainer hands on.
HANDED_ON = ("optimizers", "optimizer_cls_and_kwargs", "compute_metrics")
#: Methods of transformers' Trainer that NRTTrainer has not, with the reason and what to do.
REFUSED = {
    "hyperparameter_search": (
        "a trial needs a model, a run folder and a trainer of its own",
        "a loop that makes NRTConfig(output_dir=...) and NRTTrainer(...) anew for each value",
    ),
    "push_to_hub": (
        "transformers uploads the run folder, with every prompt, answer and trace",
        "trainer.save_model(FOLDER), then: hf upload OWNER/NAME FOLDER",
    ),
}
#: Its other keywords.
INSTEAD = {
    "tokenizer": ("transformers calls it processing_class", "processing_class=tokenizer"),
    "model_init": (
        "a trainer trains one model",
        "model='owner/name' or a folder: each new NRTTrainer loads it anew",
    ),
    "data_collator": (
        "rows are encoded here, between the pieces of the chat template",
        "leave it out; chat_template_path changes how prompts are written",
    ),
    "compute_loss_func": (
        "the loss is that of an objective",
        "objective=, a callable Scores -> Signal, or reward_funcs=",
    ),
    "preprocess_logits_for_metrics": (
        "answers are sampled, and there are no logits of labels",
        "compute_metrics=, which gets the answers as text",
    ),
}
#: What the trackers that a test has seen are made of: one of the packages is enough.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def check_options(options: NRTOptions, objective: Callable[[], Objective]) -> None:
    """Choices and ranges of our own options, then what they make together. Raises ConfigError."""
    for f in fields(NRTOptions):
        value, choices = getattr(options, f.name), f.metadata["choices"]
        if choices and value is not None and value not in choices:
            raise ConfigError(
                f"{f.name} is {value!r}{did_you_mean(str(value), choices)}",
                why=f.metadata["help"],
                fix=f"one of: {', '.join(choices)}",
            )
    for name, low, high in RANGES:
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(
                f"{name} is {value}",
                why=f"it must be from {low:g} to {high:g}",
                fix=f"change {name}",
            )
    _check_switched(options)
    if options.objective is None:
        check_sampling(options, objective(), judged=bool(options.reward_funcs))
        _check_reward(options, objective())
        _check_effect(options, objective())


def _check_switched(options: NRTOptions) -> None:
    """Settings of an adapter without one, and of vLLM where it does not sample."""
    switches = (
        ("use_peft", OF_ADAPTERS, "all weights are trained"),
        ("load_in_4bit", OF_4BIT, "the weights are whole"),
        ("use_vllm", OF_VLLM, "transformers samples"),
    )
    for f in fields(NRTOptions):
        for switch, names, instead in switches:
            given = f.name in names and getattr(options, f.name) != f.default
            if given and not getattr(options, switch):
                raise ConfigError(
                    f"{f.name} is {getattr(options, f.name)} without {switch}",
                    why=f"{instead}, and nothing reads it",
                    fix=f"{switch} true, or leave it out",
                )
    other = OF_COLOCATE if options.vllm_mode == "server" else OF_SERVER
    for f in fields(NRTOptions):
        if f.name in other and getattr(options, f.name) != f.default:
            raise ConfigError(
                f"{f.name} is {getattr(options, f.name)} with vllm_mode {options.vllm_mode!r}",
                why="nothing reads it there",
                fix="the other vllm_mode, or leave it out",
            )


def check_sampling(options: NRTOptions, objective: Objective, judged: bool) -> None:
    """Rewards need something to tell apart: the preset's, or (``judged``) the user's own.

    Raises ConfigError.
    """
    judged = judged or objective.reward != "none"
    compares = objective.centre != "none" or objective.scale != "none"
    if judged and compares and options.num_generations < 2:
        raise ConfigError(
            f"num_generations is {options.num_generations} with preset {options.preset!r}",
            why="a trace is judged against the others of its question; one alone teaches nothing",
            fix="num_generations 8, or centre none with scale none, which compares nothing",
        )
    if judged and objective.traces == "empty":
        name = (
            "of your own (reward_funcs)" if objective.reward == "none" else repr(objective.reward)
        )
        raise ConfigError(
            f"a reward {name} with preset {options.preset!r}, which samples nothing",
            why="a reward tells traces apart, and the one trace here is empty",
            fix="leave it out, or preset nrt-ws",
        )
    if objective.reward == "none" and objective.answer_gate == "relu":
        raise ConfigError(
            f"answer_gate is 'relu' with preset {options.preset!r}, which has no reward",
            why="the gate is open after traces that helped, and nothing says which did",
            fix="answer_gate none",
        )
    needs_answer = objective.reward == "exact_match" or bool(objective.length_reward)
    if needs_answer and not objective.samples_answers:
        name = "length_reward" if objective.length_reward else "reward 'exact_match'"
        raise ConfigError(
            f"{name} with policy_tokens {objective.policy_tokens!r}",
            why="it looks at a sampled answer, and none is sampled",
            fix="policy_tokens trace_tag_answer",
        )


def _check_effect(options: NRTOptions, objective: Objective) -> None:
    """Settings that would change nothing, and mixtures of two policies' numbers."""
    for name, does, need in NEEDS:
        if getattr(options, name) is not None and not does(objective):
            raise ConfigError(
                f"{name} is {getattr(options, name)} with preset {options.preset!r}",
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
            fix="format_loss_coef 0.3, or a run with preset sft-think first",
        )
    mixed = objective.baseline in ("current", "frozen") or objective.answer_weight == "exact"
    if objective.scored_by == "ema" and mixed:
        raise ConfigError(
            f"scored_by is 'ema' with baseline {objective.baseline!r}, answer_weight "
            f"{objective.answer_weight!r}",
            why="R would be the lagging copy's, R_base and the gradient another policy's",
            fix="baseline ema with answer_weight one",
        )


def _check_reward(options: NRTOptions, objective: Objective) -> None:
    """Settings that a reward does not go with."""
    reward, preset = objective.reward, options.preset
    if objective.clip == "relu" and objective.baseline == "none" and reward != "none":
        raise ConfigError(
            f"clip is 'relu' with preset {preset!r}, which has no baseline",
            why="the clip is on R - R_base, and there is no R_base",
            fix="clip none, or baseline current",
        )
    if objective.answer_weight == "exact" and REWARDS[reward].weights is None:
        raise ConfigError(
            f"answer_weight is 'exact' with reward {reward!r}",
            why="that reward has no gradient through the answer's tokens",
            fix="answer_weight none, or one",
        )
    if reward == "jepo" and objective.centre != "lme_loo":
        raise ConfigError(
            f"centre is {objective.centre!r} with reward 'jepo'",
            why="its answer weights belong to the group's log-mean-exp",
            fix="centre lme_loo, or reward logp",
        )
    if objective.centre == "lme_loo" and reward not in LOG_PROBABILITIES:
        raise ConfigError(
            f"centre is 'lme_loo' with reward {reward!r}",
            why="it takes the logarithm of a mean of probabilities, so R must be a log-probability",
            fix="reward jepo or logp, or centre leave_one_out",
        )
    signed = reward in LOG_PROBABILITIES
    negative = signed or reward == "reflection" or bool(objective.kl_in_reward)
    if objective.bad_format == "zero" and negative and objective.clip == "none":
        raise ConfigError(
            f"bad_format is 'zero' with reward {reward!r}, kl_in_reward {objective.kl_in_reward:g} "
            "and no clip",
            why="0 is better than what other traces get: one that never closes would win",
            fix="bad_format mask or penalty",
        )
    if objective.bad_format == "twice_mean" and (not signed or objective.clip == "relu"):
        raise ConfigError(
            f"bad_format is 'twice_mean' with reward {reward!r}, clip {objective.clip!r}",
            why="twice the mean is a penalty only where rewards are negative",
            fix="bad_format mask or penalty, or reward logp with clip none",
        )


def check_call(
    model: object, args: object, eval_dataset: object, others: Mapping[str, Any]
) -> dict[str, Any]:
    """What NRTTrainer was called with, before anything is loaded. Returns those of the ``others``
    that transformers' Trainer gets. Raises ConfigError."""
    for name, value in others.items():
        why, fix = INSTEAD.get(name, ("nothing would read it", "leave it out"))
        if name not in HANDED_ON and not (name in INSTEAD and value is None):
            known = (*HANDED_ON, "model", "args", "train_dataset", "eval_dataset", "objective")
            known += ("processing_class", "reward_funcs", "callbacks", "peft_config")
            near = "" if name in INSTEAD else did_you_mean(name, known)
            raise ConfigError(f"NRTTrainer takes no {name}{near}", why=why, fix=fix)
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
    why, fix = REFUSED[method]
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


def check_read(arguments: object) -> None:
    """Arguments of transformers that would be ignored. Raises ConfigError."""
    for name, (why, fix) in UNREAD.items():
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
