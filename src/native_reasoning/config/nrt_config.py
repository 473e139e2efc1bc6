"""``NRTConfig``: transformers' ``TrainingArguments`` with our options, and recipes that fill it."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from native_reasoning.config.checks import REFUSED, check_options, objective_values
from native_reasoning.config.errors import ConfigError
from native_reasoning.config.papers import find_preset
from native_reasoning.config.settings import (
    COLUMNS,
    COMMON_ARGUMENTS,
    NRTOptions,
    ObjectiveSettings,
)

#: Of model_init_kwargs, what does no more than choose between parts of transformers.
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
HARMLESS = {"attn_implementation": _ATTENTION, "dtype": _DTYPES, "torch_dtype": _DTYPES}
#: First steps that teach new think tokens, where nothing was said of them (recipes/laptop-*.yaml).
WARMUP_STEPS = 20


@dataclass
class NRTConfig(NRTOptions, TrainingArguments):
    """All settings of a run: ours (settings.py) and every one of ``TrainingArguments``.

    The defaults below differ from transformers': one prompt with its traces is a micro-batch, the
    optimiser is close to the released NRT script's, every step is logged, and nothing hides a loss
    that is not a number. Raises ConfigError for a setting that cannot work.
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
    report_to: list[str] | str | None = "none"
    disable_tqdm: bool | None = True
    use_cache: bool = True
    ddp_broadcast_buffers: bool | None = False
    restore_callback_states_from_checkpoint: bool = True
    data_seed: int | None = field(default=None)

    #: Those that transformers reads as JSON where they are text.
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
    ]

    def __post_init__(self) -> None:
        self.objective = None if self.objective is None else objective_values(self.objective)
        self.reward_funcs = _listed(self.reward_funcs)
        self.lora_target_modules = _listed(self.lora_target_modules)
        self.reward_weights = _weights(_listed(self.reward_weights))
        check_options(self, self.resolved_objective())
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "accuracy"
        self.report_to = _listed(self.report_to) or "none"
        super().__post_init__()
        # where the launcher chose the arithmetic, it is the run's
        self.bf16 = self.bf16 or self.mixed_precision == "bf16"
        self.fp16 = self.fp16 or self.mixed_precision == "fp16"
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        self._check_arguments()
        self._check_weights()

    def resolved_objective(self) -> ObjectiveSettings:
        """The preset's settings of an objective, with those of ``objective`` in their place."""
        given: Any = self.objective or {}
        return replace(find_preset(self.preset).settings, **given)

    def columns(self, *, held_out: bool = False) -> dict[str, str | None]:
        """Which columns are read, as ``load_examples`` names them: those of ``eval_data`` where
        that has columns of its own."""
        own = {name: getattr(self, f"eval_{name}") for name in COLUMNS}
        if held_out and any(own.values()):
            return own
        return {name: getattr(self, name) for name in COLUMNS}

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
            plain = isinstance(value, int | float | str | list | dict | Enum | None)
            if f.name in COMMON_ARGUMENTS or (value != theirs[f.name] and plain):
                values[f.name] = value.value if isinstance(value, Enum) else value
        values["resolved_objective"] = asdict(self.resolved_objective())
        return values

    def to_dict(self) -> dict[str, Any]:
        """The settings as trackers get them; of ``model_init_kwargs``, which may hold a token, only
        what chooses between parts of transformers."""
        found = super().to_dict()
        given = found["model_init_kwargs"] or {}
        found["model_init_kwargs"] = {name: given[name] for name in given if name in HARMLESS}
        return found

    def _check_arguments(self) -> None:
        """Arguments of transformers that cannot be combined with ours."""
        if self.n_gpu > 1:
            raise ConfigError(
                f"{self.n_gpu} GPUs in one process",
                why="transformers would use DataParallel, which gives wrong gradients here",
                fix="accelerate launch -m native_reasoning.cli train, or CUDA_VISIBLE_DEVICES=0",
            )
        default = {f.name: f.default for f in fields(TrainingArguments)}
        for name, (why, fix) in REFUSED.items():
            value = getattr(self, name)
            if value and value != default[name]:
                raise ConfigError(f"{name} is {value!r}", why=why, fix=fix)
        kwargs: Any = self.model_init_kwargs or {}
        if not isinstance(kwargs, dict):
            raise ConfigError(
                f"model_init_kwargs is {kwargs!r}",
                why="it is a JSON object of keyword arguments",
                fix="""model_init_kwargs '{"attn_implementation": "eager"}'""",
            )
        if "trust_remote_code" in kwargs:
            raise ConfigError(
                "trust_remote_code in model_init_kwargs",
                why="it would run a model's code without being seen as a setting of its own",
                fix="leave it out there, and set trust_remote_code itself",
            )
        if self.save_strategy == "best":
            raise ConfigError(
                "save_strategy best",
                why="a run that was stopped could not go on from where it was",
                fix="save_strategy steps with load_best_model_at_end",
            )
        each = self.gradient_accumulation_steps
        if self.steps_per_rollout() < 1 or (self.steps_per_generation or 0) % each:
            raise ConfigError(
                f"steps_per_generation {self.steps_per_generation}, gradient_accumulation_steps "
                f"{each}",
                why="a rollout covers a whole number of optimiser steps",
                fix="make steps_per_generation a multiple of gradient_accumulation_steps",
            )

    def _check_weights(self) -> None:
        """What does not go with adapters, or with weights that are quantised or cut over ranks."""
        for name in ("lora_r", "lora_alpha", "lora_target_modules", "load_in_4bit"):
            if not self.use_peft and getattr(self, name) != getattr(NRTOptions, name):
                raise ConfigError(
                    f"{name} is {getattr(self, name)} with use_peft False",
                    why="all weights would be trained",
                    fix="use_peft true, or leave it out",
                )
        if self.max_tokens_per_forward is not None and sharded(self):
            raise ConfigError(
                "max_tokens_per_forward with FSDP or DeepSpeed",
                why="each part would be an optimiser step of its own, or a forward too many",
                fix="leave it out; lower per_device_train_batch_size or max_trace_length",
            )
        if self.load_in_4bit and (self.use_vllm or sharded(self)):
            raise ConfigError(
                "load_in_4bit with vLLM, FSDP or DeepSpeed",
                why="quantised weights cannot be sent or cut yet",
                fix="leave load_in_4bit out, or train on one device or with DDP",
            )


OPTION_NAMES = tuple(f.name for f in fields(NRTOptions))


def _listed(value: Any) -> list[Any] | None:
    """A list, also from text whose items stand between commas, or from one number."""
    if isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, int | float):
        value = [value]
    return value or None


def _weights(values: list[Any] | None) -> list[float] | None:
    """The values as numbers. Raises ConfigError."""
    try:
        found = [float(value) for value in values or ()]
    except (TypeError, ValueError):
        found = [math.nan]
    if all(map(math.isfinite, found)):
        return found or None
    raise ConfigError(
        f"reward_weights is {values!r}", why="each weight is a number", fix="reward_weights 1.0,0.5"
    )


def sharded(config: NRTConfig) -> bool:
    """Whether FSDP or DeepSpeed cut the weights, so that they are whole inside a forward alone."""
    launched = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    asked = any(os.environ.get(name, "false").lower() == "true" for name in launched)
    return bool(config.fsdp or config.deepspeed) or asked


def model_dtype(config: NRTConfig) -> torch.dtype:
    """The arithmetic of the forward pass: bfloat16 or float16 under autocast, else float32."""
    if config.bf16:
        return torch.bfloat16
    return torch.float16 if config.fp16 else torch.float32


def warmup_settings(config: NRTConfig) -> dict[str, Any]:
    """A format warm-up that trains something with the objective of ``config``."""
    objective = config.resolved_objective()
    trained = objective.answer_weight != "none" or objective.format_loss_coef
    found = {"format_warmup_steps": WARMUP_STEPS}
    return found if trained else {**found, "objective.format_loss_coef": 0.3}


def as_flags(settings: Mapping[str, Any]) -> str:
    """Settings as a command line has them: ``--format-warmup-steps 20``."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
