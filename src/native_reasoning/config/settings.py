"""Our own settings, each written once: name, type, default, one sentence, and what it may be.

No torch and no transformers here, so that ``nrt presets`` and ``nrt train --help`` answer at once.
``Objective`` (objective/credit.py) is the settings of an objective as a function, a preset
(papers.py) one choice of them. ``NRTConfig`` (nrt_config.py) is those of a run on top of
``transformers.TrainingArguments``.
"""

from dataclasses import dataclass, field, fields
from typing import Any

_COUNT, _FROM_ZERO = (1, 1e9), (0, 1e9)


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    within: tuple[float, float] | None = None,
) -> Any:
    """A dataclass field with its one sentence of help. ``choices`` are the values that it may take,
    ``within`` the least and the largest number: unless given, from 0 for a float, from 1 for an
    int."""
    if within is None:
        within = {float: (0, 1e6), int: (1, 1e9)}.get(type(default))
    return field(default=default, metadata={"help": help, "choices": choices, "within": within})


#: Rewards whose exact answer weights exist; the others judge traces and train no answer token.
TOKEN_REWARDS = (
    "logp",
    "avg_logp",
    "prob",
    "geometric_mean",
    "arithmetic_mean",
    "weighted_inverse",
    "weighted_neglog",
    "weighted_units",
    "jepo",
)
#: Those that are logarithms of probabilities: negative, with 0 the best there is.
LOG_PROBABILITIES = ("logp", "avg_logp", "jepo")
GROUP_REWARDS = ("reflection", "length_normalised", "perplexity_rank", "exact_match")


@dataclass(frozen=True)
class ObjectiveSettings:
    """What to do with a group's scores, in the order of the computation. A preset is one of these;
    so is any mixture of settings."""

    # -- what a trace is worth
    reward: str = setting(
        "weighted_neglog",
        "f: what a trace is worth, from the reference answer's log-probabilities",
        choices=("none", *TOKEN_REWARDS, *GROUP_REWARDS),
    )
    reward_span: str = setting(
        "answer_end",
        "tokens of the answer that f looks at: with its end-of-turn token, or without",
        choices=("answer_end", "answer"),
    )
    scored_by: str = setting(
        "current",
        "whose probabilities of the answer f takes: ema is a lagging copy",
        choices=("current", "ema"),
    )
    baseline: str = setting(
        "current",
        "whose answer without a trace is R_base: of this step, of the first policy, of an EMA",
        choices=("none", "current", "frozen", "ema"),
    )
    clip: str = setting(
        "relu", "relu: a trace that hurts is worth nothing", choices=("none", "relu")
    )
    # -- what is added to it
    reward_coef: float = setting(1.0, "coefficient of the clipped reward", within=(1e-9, 1e6))
    format_reward: float = setting(0.0, "added for a sampled text in the right format")
    efficiency_reward: float = setting(
        0.0, "times the share of the other traces that are both longer and worse (NOVER)"
    )
    repetition_penalty: float = setting(
        0.0, "taken off a text in which ten words in a row occur ten times (RLPR)"
    )
    kl_in_reward: float = setting(
        0.0, "times log(pi/pi_0) of the sampled tokens, taken off the reward (LaTRO)"
    )
    bad_format: str = setting(
        "splice",
        "a trace that did not close itself: score it with the tag spliced in, leave it out, give "
        "it 0, give it a penalty of its own, or twice the group's mean",
        choices=("splice", "mask", "zero", "penalty", "twice_mean"),
    )
    format_penalty: float = setting(
        10.0,
        "size of the penalty with bad_format penalty (JEPO); with scale std it is divided out",
        within=(1e-9, 1e9),
    )
    # -- advantages
    centre: str = setting(
        "mean",
        "what is subtracted from the group's rewards",
        choices=("mean", "leave_one_out", "lme_loo", "rank", "none"),
    )
    scale: str = setting(
        "std", "std: divide advantages by the group's standard deviation", choices=("std", "none")
    )
    std_eps: float | None = setting(
        None,
        "added to the standard deviation; default: a millionth of the rewards' size",
        within=(0, 1e6),
    )
    adv_clip: float | None = setting(
        None, "bound of an advantage's size, after scaling", within=(1e-9, 1e9)
    )
    advantages: str = setting(
        "own",
        "permuted: a control, a group's advantages are dealt out among its traces at random",
        choices=("own", "permuted"),
    )
    # -- the answer term
    answer_weight: str = setting(
        "one",
        "weight of each answer token in the answer term: 1, its own probability c, the exact "
        "gradient's c df/dc, or 0",
        choices=("one", "probability", "exact", "none"),
    )
    answer_gate: str = setting(
        "none", "relu: train the answer only after traces that helped", choices=("none", "relu")
    )
    answer_coef: float = setting(1.0, "coefficient of the answer term (lambda)")
    # -- the loss
    policy_tokens: str = setting(
        "trace_tag",
        "sampled tokens with policy gradient: the trace, its closing tag, an answer after it",
        choices=("trace", "trace_tag", "trace_tag_answer"),
    )
    ratio: str = setting(
        "cispo",
        "importance ratio with several updates per rollout",
        choices=("none", "cispo", "ppo"),
    )
    ratio_low: float = setting(0.8, "lower bound of the importance ratio", within=(0, 1))
    ratio_high: float = setting(1.28, "upper bound of the importance ratio", within=(1, 1e6))
    length_norm: str = setting(
        "token_sum",
        "a trace's tokens: summed, divided by the step's mean length, or by its own length",
        choices=("token_sum", "token_mean", "sequence_mean"),
    )
    beta: float = setting(0.0, "coefficient of the KL divergence from the first policy (k3)")
    format_loss_coef: float = setting(
        0.3, "coefficient of the loss on a closing tag that had to be spliced in"
    )
    # -- which groups are trained on, and copies of the policy
    filter: str = setting(
        "none",
        "ema_std: drop groups whose rewards differ little (RLPR)",
        choices=("none", "ema_std"),
    )
    filter_coef: float = setting(0.5, "the filter's share of the running mean of the std")
    ema_decay: float = setting(
        0.9, "weight of the old copy at each update of the EMA", within=(0, 1)
    )
    ema_steps: int = setting(100, "optimiser steps between updates of the EMA")
    traces: str = setting(
        "sampled",
        "empty: nothing is sampled, the answer follows an empty trace",
        choices=("sampled", "empty"),
    )

    @property
    def samples_answers(self) -> bool:
        """Whether an answer is sampled after each trace."""
        return self.policy_tokens == "trace_tag_answer"

    @property
    def needs_reference(self) -> bool:
        """Whether the first policy's log-probabilities of the sampled tokens are needed."""
        return bool(self.beta or self.kl_in_reward)

    @property
    def needs_frozen(self) -> bool:
        """Whether a copy of the first policy is kept."""
        return self.needs_reference or self.baseline == "frozen"

    @property
    def needs_ema(self) -> bool:
        """Whether a lagging copy of the policy is kept."""
        return "ema" in (self.baseline, self.scored_by)

    @property
    def reads_text(self) -> bool:
        """Whether the text of what was sampled matters, beside its probabilities."""
        return self.samples_answers or bool(self.repetition_penalty)


SETTINGS = {f.name: f for f in fields(ObjectiveSettings)}

# -- Of a run --------------------------------------------------------------------------------------


@dataclass
class NRTOptions:
    """The settings that native-reasoning adds to transformers' ``TrainingArguments``."""

    # -- objective
    preset: str = setting("nrt-ws", "objective by name; `nrt presets` lists them")
    objective: dict[str, Any] | str | None = setting(  # noqa: RUF009
        None, "settings in place of the preset's, as a mapping; a flag sets one of them"
    )
    objective_func: str | None = setting(
        None,
        "an objective of your own, Scores -> Signal, as module:function; replaces f, A and w, and "
        "finds reward_funcs in scores.verdict.added",
    )
    reward_funcs: list[str] | str | None = setting(  # noqa: RUF009
        None, "reward functions with TRL's signature, as module:function, added to the reward"
    )
    reward_weights: list[float] | str | None = setting(  # noqa: RUF009
        None, "weight of each of reward_funcs (1 each)"
    )
    trust_imports: bool = setting(
        False, "import objective_func and reward_funcs from outside the working folder too"
    )

    # -- traces
    num_generations: int = setting(8, "traces sampled per prompt (K)")
    max_prompt_length: int = setting(1024, "longest prompt in tokens; longer rows are dropped")
    max_trace_length: int = setting(512, "longest trace in tokens; the closing tag is spliced in")
    max_answer_length: int = setting(
        512, "longest answer in tokens: longer rows are dropped, sampled answers are cut"
    )
    temperature: float = setting(
        1.0, "sampling temperature of traces, also used to score them", within=(1e-3, 100)
    )
    top_p: float = setting(
        1.0, "nucleus of the sampling distribution; below 1 biases the gradient", within=(1e-3, 1)
    )
    steps_per_generation: int | None = setting(
        None, "micro-batches per rollout (TRL); default: those of one optimiser step"
    )
    num_iterations: int = setting(1, "passes over each rollout (TRL)")
    max_tokens_per_forward: int | None = setting(
        None,
        "most tokens in one training forward (verl: ppo_max_token_len_per_gpu): groups are put "
        "together or cut, with the same gradient; default: what fits into memory",
        within=_COUNT,
    )

    # -- template
    boundary: str = setting(
        "auto",
        "what closes a trace: think tokens of the tokenizer, new ones, or plain text",
        choices=("auto", "existing", "new", "text"),
    )
    think_open: str = setting("<think>", "text of the token that opens a trace")
    think_close: str = setting("</think>", "text of the token that closes a trace")
    boundary_text: str = setting(
        "\nThe answer is", "with --boundary text: the text that closes a trace"
    )
    system_prompt: str | None = setting(
        None, "system turn before prompts without one; serve with the same"
    )
    chat_template_path: str | None = setting(
        None, "a Jinja file in place of the tokenizer's template"
    )
    format_warmup_steps: int = setting(
        0,
        "first steps that train only the format and the answer after the model's own traces, with "
        "weight one",
        within=_FROM_ZERO,
    )

    # -- data
    prompt_column: str | None = setting(None, "column (or a+b, or a.0.b) that holds the question")
    prompt_template: str | None = setting(None, "prompt of columns: '{context}\\n{question}'")
    answer_column: str | None = setting(None, "column that holds the reference answer")
    answer_regex: str | None = setting(
        None, "keep this part of the answer (group 1 of the last match)"
    )
    eval_prompt_column: str | None = setting(
        None, "of eval_data, where its columns are others; then all four are its own"
    )
    eval_prompt_template: str | None = setting(None, "prompt_template of eval_data")
    eval_answer_column: str | None = setting(None, "answer_column of eval_data")
    eval_answer_regex: str | None = setting(None, "answer_regex of eval_data")

    # -- adapter (names of TRL's ModelConfig)
    use_peft: bool = setting(
        False, "train a low-rank adapter (LoRA) and the rows of new tokens, not all weights"
    )
    lora_r: int = setting(16, "rank of the adapter")
    lora_alpha: int = setting(32, "the adapter's product is scaled by lora_alpha / lora_r")
    lora_target_modules: list[str] | str | None = setting(  # noqa: RUF009
        None, "layers that get one, by name, several with commas; default: all linear ones"
    )
    load_in_4bit: bool = setting(
        False, "quantise the frozen weights to 4 bits (QLoRA); needs bitsandbytes"
    )

    # -- vllm (names of TRL's GRPOConfig)
    use_vllm: bool = setting(False, "sample the training traces by vLLM; docs/vllm.md")
    vllm_mode: str = setting(
        "colocate",
        "vLLM in this process, on the same device, or a server of its own",
        choices=("colocate", "server"),
    )
    vllm_gpu_memory_utilization: float = setting(
        0.3, "colocated: share of the GPU's memory for vLLM's weights and caches", within=(1e-3, 1)
    )
    vllm_enable_sleep_mode: bool = setting(
        False, "colocated: vLLM gives its memory back while the weights are trained"
    )
    vllm_server_base_url: str | None = setting(
        None, "address of the server; default: http://127.0.0.1:8000"
    )

    # -- model, evaluation, records
    model_init_kwargs: dict[str, Any] | str | None = setting(  # noqa: RUF009
        None, "keyword arguments for from_pretrained, as JSON"
    )
    trust_remote_code: bool = setting(False, "run code that comes with the model")
    eval_samples: int = setting(100, "held-out questions per evaluation")
    eval_max_answer_length: int | None = setting(
        None,
        "tokens at which evaluations cut answers; default: twice the longest reference, 16 at "
        "least, max_answer_length at most",
        within=_COUNT,
    )
    eval_num_generations: int = setting(1, "sampled traces per question in an evaluation (maj@k)")
    diagnostics_steps: int = setting(
        10,
        "steps between two exchanges of traces among prompts: specificity, leakage; 0: never",
        within=_FROM_ZERO,
    )
    on_collapse: str = setting(
        "warn",
        "when traces become empty, all alike or say nothing: a line on stderr, or also end the run "
        "(stop), or lower the learning rate to 0.3 of it (lower_lr)",
        choices=("warn", "stop", "lower_lr"),
    )
    record_traces: bool = setting(
        True, "write sampled traces, those of evaluations too, to the run folder"
    )
    report_traces: bool = setting(
        True,
        "put a few traces, with question and reference, into the trackers of report_to, every "
        "diagnostics_steps steps; needs record_traces",
    )


#: Settings of ``load_examples``; eval_data may have its own, ``eval_prompt_column`` and so on.
COLUMNS = ("prompt_column", "prompt_template", "answer_column", "answer_regex")
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
