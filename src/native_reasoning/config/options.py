"""Our own settings, each written once: name, type, default and one sentence.

No torch and no transformers here, so that ``nrt train --help`` answers at once. ``NRTConfig``
(nrt_config.py) is these fields on top of ``transformers.TrainingArguments``.
"""

from dataclasses import dataclass, field
from typing import Any

from native_reasoning.config.settings import SETTINGS
from native_reasoning.config.settings import setting as option


def override(name: str) -> Any:
    """The field that takes the place of a preset's setting; None leaves the preset's."""
    return field(default=None, metadata=SETTINGS[name].metadata)


@dataclass
class NRTOptions:
    """The settings that native-reasoning adds to transformers' ``TrainingArguments``."""

    # -- objective: None means "as the preset has it"; sentences and choices are in settings.py
    preset: str = option("nrt-ws", "objective by name; `nrt presets` lists them")
    reward: str | None = override("reward")
    reward_span: str | None = override("reward_span")
    scored_by: str | None = override("scored_by")
    baseline: str | None = override("baseline")
    clip: str | None = override("clip")
    reward_coef: float | None = override("reward_coef")
    format_reward: float | None = override("format_reward")
    efficiency_reward: float | None = override("efficiency_reward")
    length_reward: float | None = override("length_reward")
    repetition_penalty: float | None = override("repetition_penalty")
    kl_in_reward: float | None = override("kl_in_reward")
    bad_format: str | None = override("bad_format")
    format_penalty: float | None = override("format_penalty")
    centre: str | None = override("centre")
    scale: str | None = override("scale")
    std_eps: float | None = override("std_eps")
    adv_clip: float | None = override("adv_clip")
    answer_weight: str | None = override("answer_weight")
    answer_gate: str | None = override("answer_gate")
    answer_scale: str | None = override("answer_scale")
    answer_coef: float | None = override("answer_coef")
    policy_tokens: str | None = override("policy_tokens")
    ratio: str | None = override("ratio")
    ratio_low: float | None = override("ratio_low")
    ratio_high: float | None = override("ratio_high")
    length_norm: str | None = override("length_norm")
    beta: float | None = override("beta")
    format_loss_coef: float | None = override("format_loss_coef")
    filter: str | None = override("filter")
    filter_coef: float | None = override("filter_coef")
    ema_decay: float | None = override("ema_decay")
    ema_steps: int | None = override("ema_steps")
    objective: str | None = option(
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
        False, "import objective and reward_funcs from outside the working folder too"
    )

    # -- traces
    num_generations: int = option(8, "traces sampled per prompt (K)")
    max_prompt_length: int = option(1024, "longest prompt in tokens; longer rows are dropped")
    max_trace_length: int = option(512, "longest trace in tokens; the closing tag is spliced in")
    max_answer_length: int = option(
        512,
        "longest answer in tokens: longer rows are dropped, sampled answers are cut",
    )
    temperature: float = option(1.0, "sampling temperature of traces, also used to score them")
    top_p: float = option(1.0, "nucleus of the sampling distribution; below 1 biases the gradient")
    steps_per_generation: int | None = option(
        None, "micro-batches per rollout (TRL); default: those of one optimiser step"
    )
    num_iterations: int = option(1, "passes over each rollout (TRL)")
    rows_per_forward: int | None = option(
        None,
        "most traces in one training forward; fewer need less memory and give the same gradient; "
        "default: all of a micro-batch",
    )
    rollout_batch_size: int | None = option(
        None, "prompts sampled at once; default: all prompts of the rollout"
    )

    # -- template
    boundary: str = option(
        "auto",
        "what closes a trace: think tokens of the tokenizer, new ones, or plain text",
        ("auto", "existing", "new", "text"),
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
        0, "first steps that train only the format and the answer after the model's own traces"
    )

    # -- data
    prompt_column: str | None = option(None, "column (or a+b, or a.0.b) that holds the question")
    answer_column: str | None = option(None, "column that holds the reference answer")
    answer_regex: str | None = option(
        None, "keep this part of the answer (group 1 of the last match)"
    )
    strict: bool = option(False, "refuse a file with a bad row instead of counting it")

    # -- adapter (names of TRL's ModelConfig)
    use_peft: bool = option(
        False, "train a low-rank adapter (LoRA) and the rows of new tokens, not all weights"
    )
    lora_r: int = option(16, "rank of the adapter")
    lora_alpha: int = option(32, "the adapter's product is scaled by lora_alpha / lora_r")
    lora_target_modules: str | list[str] | None = option(  # noqa: RUF009
        None, "layers that get one, by name, several with commas; default: all linear ones"
    )
    use_rslora: bool = option(False, "scale by lora_alpha / sqrt(lora_r) instead")
    load_in_4bit: bool = option(
        False, "quantise the frozen weights to 4 bits (QLoRA); needs bitsandbytes"
    )
    bnb_4bit_quant_type: str = option("nf4", "the 4-bit numbers", ("nf4", "fp4"))
    use_bnb_nested_quant: bool = option(False, "quantise their scales too")

    # -- vllm (names of TRL's GRPOConfig)
    use_vllm: bool = option(False, "sample the training traces by vLLM; docs/vllm.md")
    vllm_mode: str = option(
        "colocate",
        "vLLM in this process, on the same device, or a server of its own",
        ("colocate", "server"),
    )
    vllm_gpu_memory_utilization: float = option(
        0.3, "colocated: share of the GPU's memory for vLLM's weights and caches"
    )
    vllm_max_model_length: int | None = option(
        None, "colocated: longest prompt with its trace in tokens; default: what the limits allow"
    )
    vllm_enable_sleep_mode: bool = option(
        False, "colocated: vLLM gives its memory back while the weights are trained"
    )
    vllm_server_base_url: str | None = option(
        None, "address of the server; default: http://127.0.0.1:8000"
    )
    vllm_server_timeout: float = option(240.0, "seconds to wait for the server to be up")
    vllm_group_port: int = option(51216, "port over which the server gets the weights")

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
    )
    eval_num_generations: int = option(1, "sampled traces per question in an evaluation (maj@k)")
    max_skipped_updates: int = option(
        10, "updates in a row that are not finite before the run stops; each is skipped"
    )
    diagnostics_steps: int = option(
        10, "steps between two exchanges of traces among prompts: specificity, leakage; 0: never"
    )
    on_collapse: str = option(
        "warn",
        "when traces become empty or say nothing: a line on stderr, or also end the run (stop), or "
        "lower the learning rate by 0.3 (lower_lr)",
        ("warn", "stop", "lower_lr"),
    )
    record_traces: bool = option(
        True, "write sampled traces, those of evaluations too, to the run folder"
    )
    report_traces: bool = option(
        True,
        "put a few traces, with question and reference, into the trackers of report_to, every "
        "diagnostics_steps steps; needs record_traces",
    )


#: Options that only ``use_peft`` reads.
OF_ADAPTERS = (
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
    "use_rslora",
    "load_in_4bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
)
#: Options that only ``load_in_4bit`` reads.
OF_4BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant")
#: Options that only ``use_vllm`` reads.
OF_COLOCATE = ("vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_enable_sleep_mode")
OF_SERVER = ("vllm_server_base_url", "vllm_server_timeout", "vllm_group_port")
OF_VLLM = ("vllm_mode", *OF_COLOCATE, *OF_SERVER)
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
