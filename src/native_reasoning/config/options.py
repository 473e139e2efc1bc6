"""Our own settings, each written once: name, type, default, one sentence, and what it may be.

No torch and no transformers here, so that ``nrt train --help`` answers at once. ``NRTConfig``
(nrt_config.py) is these fields on top of ``transformers.TrainingArguments``.
"""

from dataclasses import dataclass, fields
from typing import Any

from native_reasoning.config.settings import setting as option

_COUNT, _FROM_ZERO = (1, 1e9), (0, 1e9)


@dataclass
class NRTOptions:
    """The settings that native-reasoning adds to transformers' ``TrainingArguments``."""

    # -- objective
    preset: str = option("nrt-ws", "objective by name; `nrt presets` lists them")
    objective: dict[str, Any] | str | None = option(  # noqa: RUF009
        None, "settings in place of the preset's, as a mapping; a flag sets one of them"
    )
    objective_func: str | None = option(
        None,
        "an objective of your own, Scores -> Signal, as module:function; replaces f, A and w, and "
        "finds reward_funcs in scores.verdict.added",
    )
    reward_funcs: list[str] | str | None = option(  # noqa: RUF009
        None, "reward functions with TRL's signature, as module:function, added to the reward"
    )
    reward_weights: list[float] | str | None = option(  # noqa: RUF009
        None, "weight of each of reward_funcs (1 each)"
    )
    trust_imports: bool = option(
        False, "import objective_func and reward_funcs from outside the working folder too"
    )

    # -- traces
    num_generations: int = option(8, "traces sampled per prompt (K)")
    max_prompt_length: int = option(1024, "longest prompt in tokens; longer rows are dropped")
    max_trace_length: int = option(512, "longest trace in tokens; the closing tag is spliced in")
    max_answer_length: int = option(
        512, "longest answer in tokens: longer rows are dropped, sampled answers are cut"
    )
    temperature: float = option(
        1.0, "sampling temperature of traces, also used to score them", within=(1e-3, 100)
    )
    top_p: float = option(
        1.0, "nucleus of the sampling distribution; below 1 biases the gradient", within=(1e-3, 1)
    )
    steps_per_generation: int | None = option(
        None, "micro-batches per rollout (TRL); default: those of one optimiser step"
    )
    num_iterations: int = option(1, "passes over each rollout (TRL)")
    rows_per_forward: int | None = option(
        None,
        "most traces in one training forward; fewer need less memory and give the same gradient; "
        "default: all of a micro-batch",
        within=_COUNT,
    )
    rollout_batch_size: int | None = option(
        None, "prompts sampled at once; default: all prompts of the rollout", within=_COUNT
    )

    # -- template
    boundary: str = option(
        "auto",
        "what closes a trace: think tokens of the tokenizer, new ones, or plain text",
        choices=("auto", "existing", "new", "text"),
    )
    think_open: str = option("<think>", "text of the token that opens a trace")
    think_close: str = option("</think>", "text of the token that closes a trace")
    boundary_text: str = option(
        "\nThe answer is", "with --boundary text: the text that closes a trace"
    )
    system_prompt: str | None = option(
        None, "system turn before prompts without one; serve with the same"
    )
    chat_template_path: str | None = option(
        None, "a Jinja file in place of the tokenizer's template"
    )
    format_warmup_steps: int = option(
        0,
        "first steps that train only the format and the answer after the model's own traces",
        within=_FROM_ZERO,
    )

    # -- data
    prompt_column: str | None = option(None, "column (or a+b, or a.0.b) that holds the question")
    answer_column: str | None = option(None, "column that holds the reference answer")
    answer_regex: str | None = option(
        None, "keep this part of the answer (group 1 of the last match)"
    )

    # -- adapter (names of TRL's ModelConfig)
    use_peft: bool = option(
        False, "train a low-rank adapter (LoRA) and the rows of new tokens, not all weights"
    )
    lora_r: int = option(16, "rank of the adapter")
    lora_alpha: int = option(32, "the adapter's product is scaled by lora_alpha / lora_r")
    lora_target_modules: list[str] | str | None = option(  # noqa: RUF009
        None, "layers that get one, by name, several with commas; default: all linear ones"
    )
    load_in_4bit: bool = option(
        False, "quantise the frozen weights to 4 bits (QLoRA); needs bitsandbytes"
    )

    # -- vllm (names of TRL's GRPOConfig)
    use_vllm: bool = option(False, "sample the training traces by vLLM; docs/vllm.md")
    vllm_mode: str = option(
        "colocate",
        "vLLM in this process, on the same device, or a server of its own",
        choices=("colocate", "server"),
    )
    vllm_gpu_memory_utilization: float = option(
        0.3, "colocated: share of the GPU's memory for vLLM's weights and caches", within=(1e-3, 1)
    )
    vllm_enable_sleep_mode: bool = option(
        False, "colocated: vLLM gives its memory back while the weights are trained"
    )
    vllm_server_base_url: str | None = option(
        None, "address of the server; default: http://127.0.0.1:8000"
    )

    # -- model, evaluation, records
    model_init_kwargs: dict[str, Any] | str | None = option(  # noqa: RUF009
        None, "keyword arguments for from_pretrained, as JSON"
    )
    trust_remote_code: bool = option(False, "run code that comes with the model")
    eval_samples: int = option(100, "held-out questions per evaluation")
    eval_max_answer_length: int | None = option(
        None,
        "tokens at which evaluations cut answers; default: twice the longest reference, 16 at "
        "least, max_answer_length at most",
        within=_COUNT,
    )
    eval_num_generations: int = option(1, "sampled traces per question in an evaluation (maj@k)")
    diagnostics_steps: int = option(
        10,
        "steps between two exchanges of traces among prompts: specificity, leakage; 0: never",
        within=_FROM_ZERO,
    )
    on_collapse: str = option(
        "warn",
        "when traces become empty or say nothing: a line on stderr, or also end the run (stop), or "
        "lower the learning rate by 0.3 (lower_lr)",
        choices=("warn", "stop", "lower_lr"),
    )
    record_traces: bool = option(
        True, "write sampled traces, those of evaluations too, to the run folder"
    )
    report_traces: bool = option(
        True,
        "put a few traces, with question and reference, into the trackers of report_to, every "
        "diagnostics_steps steps; needs record_traces",
    )


#: Our options by the heading they stand under in help, by the first of each.
_FIRST = {
    "preset": "objective",
    "num_generations": "traces",
    "boundary": "template",
    "prompt_column": "data",
    "use_peft": "adapter",
    "use_vllm": "vllm",
    "model_init_kwargs": "model, evaluation, records",
}
GROUPS: dict[str, tuple[str, ...]] = {}
for _f in fields(NRTOptions):
    _title = _FIRST.get(_f.name) or next(reversed(GROUPS))
    GROUPS[_title] = (*GROUPS.get(_title, ()), _f.name)
#: TrainingArguments that people set most; every other one is accepted too.
COMMON_ARGUMENTS = {
    "output_dir": "run folder",
    "max_steps": "optimiser steps; overrides num_train_epochs",
    "num_train_epochs": "passes over the data (3)",
    "per_device_train_batch_size": "prompts per micro-batch and device (1)",
    "gradient_accumulation_steps": "micro-batches per optimiser step (8)",
    "learning_rate": "peak learning rate (2e-6)",
    "lr_scheduler_type": "schedule (constant_with_warmup)",
    "warmup_steps": "steps, or a share of all steps below 1 (0.1)",
    "max_grad_norm": "gradient clipping (1.0)",
    "bf16": "bfloat16 autocast",
    "activation_checkpointing": "less memory, more time",
    "seed": "seed of data order and of every sampled token (42)",
    "eval_strategy": "when to evaluate: no, steps, epoch (no)",
    "eval_steps": "steps between evaluations",
    "save_steps": "steps between checkpoints (100)",
    "save_total_limit": "checkpoints kept (2)",
    "report_to": "trackers: none, wandb, tensorboard, trackio, ... (none)",
    "use_cpu": "stay on the CPU",
}
