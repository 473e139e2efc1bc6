"""``NRTConfig``: transformers' ``TrainingArguments`` with our options, and recipes that fill it."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any

import torch
from transformers import TrainingArguments

from native_reasoning.errors import ConfigError, did_you_mean
from native_reasoning.objective import Objective
from native_reasoning.options import COMMON_ARGUMENTS, NRTOptions
from native_reasoning.presets import OBJECTIVE_FIELDS, preset_objective


@dataclass
class NRTConfig(NRTOptions, TrainingArguments):
    """All settings of a run: ours (options.py) and every one of ``TrainingArguments``.

    The defaults below differ from transformers': one prompt with its traces is a micro-batch, the
    optimiser is close to the released NRT script's (whose Adam eps is 1e-15), every step is logged,
    and nothing hides a loss that is not a number.

    Raises ConfigError for a setting that cannot work.
    """

    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 8
    learning_rate: float = 2e-6
    adam_beta2: float = 0.95
    weight_decay: float = 0.01
    lr_scheduler_type: str = "constant_with_warmup"
    warmup_steps: float = 0.1
    logging_steps: float = 1
    logging_nan_inf_filter: bool = False
    save_steps: float = 100
    save_total_limit: int | None = 2
    remove_unused_columns: bool = False
    report_to: str | list[str] | None = "none"
    disable_tqdm: bool | None = True
    use_cache: bool = True
    data_seed: int | None = field(default=None)

    def __post_init__(self) -> None:
        if isinstance(self.model_init_kwargs, str):
            self.model_init_kwargs = json_object(self.model_init_kwargs, "model_init_kwargs")
        check_options(self)
        super().__post_init__()
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        self._check_arguments()

    def objective(self) -> Objective:
        """The preset's objective with the settings that were given in its place."""
        base = preset_objective(self.preset)
        changed = {
            name: getattr(self, name)
            for name in OBJECTIVE_FIELDS
            if name in OPTION_NAMES and getattr(self, name) is not None
        }
        return replace(base, **changed)

    def steps_per_rollout(self) -> int:
        """Optimiser steps' worth of prompts sampled at once (M); each is trained on
        ``num_iterations`` times."""
        if self.steps_per_generation is None:
            return 1
        return self.steps_per_generation // self.gradient_accumulation_steps

    def resolved(self) -> dict[str, Any]:
        """Every option of ours, and each training argument that is common or not transformers'."""
        values = {name: getattr(self, name) for name in OPTION_NAMES}
        theirs = {f.name: f.default for f in fields(TrainingArguments)}
        for f in fields(self):
            if f.name in OPTION_NAMES or not f.init or f.name.startswith("gradient_checkpointing"):
                continue
            value = getattr(self, f.name)
            if f.name in COMMON_ARGUMENTS or (value != theirs[f.name] and _is_plain(value)):
                values[f.name] = value.value if isinstance(value, Enum) else value
        values["objective"] = asdict(self.objective())
        return values

    def _check_arguments(self) -> None:
        """Arguments of transformers that cannot be combined with ours."""
        if self.n_gpu > 1:
            raise ConfigError(
                f"{self.n_gpu} GPUs in one process",
                why="transformers would use DataParallel, which gives wrong gradients here",
                fix="accelerate launch -m native_reasoning.cli train, or CUDA_VISIBLE_DEVICES=0",
            )
        if self.enable_jit_checkpoint:
            raise ConfigError(
                "enable_jit_checkpoint is on",
                why="it may save inside an optimiser step, which cannot be resumed exactly",
                fix="leave it off: SIGTERM already saves at the end of the step",
            )
        if (
            self.num_iterations < 1
            or self.steps_per_rollout() < 1
            or (self.steps_per_generation or 0) % self.gradient_accumulation_steps
        ):
            raise ConfigError(
                f"steps_per_generation {self.steps_per_generation}, num_iterations "
                f"{self.num_iterations}, gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps}",
                why="a rollout covers a whole number of optimiser steps",
                fix="make steps_per_generation a multiple of gradient_accumulation_steps",
            )


OPTION_NAMES = tuple(f.name for f in fields(NRTOptions))


def check_options(options: NRTOptions) -> None:
    """Choices and ranges of our own options. Raises ConfigError."""
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
    _check_objective(options)


RANGES = (
    ("num_generations", 1, 1e6),
    ("max_prompt_length", 1, 1e7),
    ("max_trace_length", 1, 1e7),
    ("max_answer_length", 1, 1e7),
    ("temperature", 1e-3, 100),
    ("top_p", 1e-3, 1),
    ("eval_samples", 1, 1e9),
    ("eval_num_generations", 1, 1e6),
    ("format_warmup_steps", 0, 1e9),
    ("rollout_batch_size", 1, 1e9),
    ("num_iterations", 1, 1e6),
    ("per_device_train_batch_size", 1, 1e6),
    ("per_device_eval_batch_size", 1, 1e6),
    ("gradient_accumulation_steps", 1, 1e6),
)


def _check_objective(options: NRTOptions) -> None:
    objective = NRTConfig.objective(options)  # type: ignore[arg-type]
    compares = objective.centre != "none" or objective.scale != "none"
    if objective.reward and compares and options.num_generations < 2:
        raise ConfigError(
            f"num_generations is {options.num_generations} with preset {options.preset!r}",
            why="a trace is judged against the others of its question; one alone teaches nothing",
            fix="num_generations 8, or preset sft-think, which compares nothing",
        )
    if objective.reward and objective.traces == "empty":
        raise ConfigError(
            f"reward is {objective.reward!r} with preset {options.preset!r}, which samples nothing",
            why="a reward tells traces apart, and the one trace here is empty",
            fix="leave reward out, or preset nrt-ws",
        )
    if objective.reward is None and objective.answer_gate == "relu":
        raise ConfigError(
            f"answer_gate is 'relu' with preset {options.preset!r}, which has no reward",
            why="the gate is open after traces that helped, and nothing says which did",
            fix="answer_gate none",
        )
    if objective.clip == "relu" and objective.baseline == "none" and objective.reward:
        raise ConfigError(
            f"clip is 'relu' with preset {options.preset!r}, which has no baseline",
            why="the clip is on R - R_base, and there is no R_base",
            fix="clip none, or a preset whose baseline is 'current'",
        )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, dict, Enum))


def json_object(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{name} is {text!r}",
            why="it is a JSON object of keyword arguments",
            fix=f"""{name} '{{"attn_implementation": "eager"}}'""",
        )
    return value


def model_dtype(config: NRTConfig) -> torch.dtype:
    """The arithmetic of the forward pass: bfloat16 or float16 under autocast, else float32."""
    if config.bf16:
        return torch.bfloat16
    return torch.float16 if config.fp16 else torch.float32
