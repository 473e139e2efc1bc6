"""The model and its tokenizer: loading, think tokens, and saving as an ordinary folder."""

import hashlib
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from native_reasoning.config.errors import ConfigError, PolicyError, warn
from native_reasoning.config.nrt_config import NRTConfig, as_flags, model_dtype, warmup_settings
from native_reasoning.data.chat_template import existing_pair
from native_reasoning.data.template import Template, make_template
from native_reasoning.model.adapters import (
    add_adapter,
    base_of,
    has_adapter,
    lora_config,
    tell_tying,
    with_adapter,
)
from native_reasoning.model.folders import check_folder
from native_reasoning.model.quantised import check_given, check_trainable, keep_exact, quantisation

if TYPE_CHECKING:
    from peft import PeftConfig

#: A token's embedding row counts as trained if its norm is within this range of the median's.
TRAINED_NORM = (0.2, 5.0)

_UNREADABLE = (OSError, ValueError, KeyError, ImportError, SafetensorError)


@dataclass(frozen=True, eq=False)
class Policy:
    """A causal language ``model``, its ``tokenizer``, and the ``template`` (where prompt, trace and
    answer begin and end) that both were prepared for. ``base``: the model's first fingerprint."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    base: str

    def save(self, folder: str | Path) -> None:
        """An ordinary Hugging Face folder: safetensors, tokenizer, chat template, end tokens. Of a
        model with an adapter it has the adapter alone; ``NRTTrainer.save_model`` merges it."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def context_of(model: PreTrainedModel) -> int | None:
    """Positions that the model was made for, or None where its config does not say. With longrope
    these are the positions before its factors change: that change comes for all rows of a forward
    when one of them is longer."""
    config = model.config.get_text_config()
    made_for = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):
        if isinstance(part, dict) and part.get("rope_type") == "longrope":
            made_for = part.get("original_max_position_embeddings", made_for)
    return made_for


def load_policy(
    model: str | Path | PreTrainedModel,
    config: NRTConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapter: "PeftConfig | None" = None,
) -> Policy:
    """A ``model`` by hub id or folder, or one in memory, with its think tokens in place, and with
    an ``adapter`` where one is given or ``config`` asks for one. ``tokenizer`` replaces the
    folder's.

    Dropout is switched off for good: the reward and the loss come from one forward pass.
    Weights are float32 unless ``config.model_init_kwargs`` says otherwise.
    Raises PolicyError if the model cannot be loaded, TemplateError if its tokenizer cannot be used,
    ConfigError if a file that ``config`` names cannot be read.
    """
    name = model if isinstance(model, (str, Path)) else model.config.name_or_path
    if tokenizer is None:
        tokenizer = load_tokenizer(str(name), config)
    elif config.chat_template_path is not None:
        tokenizer.chat_template = _read_text(config.chat_template_path)
    if isinstance(model, (str, Path)):
        model = load_merged(str(model), config, len(tokenizer))
    else:
        check_given(model, config)
    check_plain(model)
    tell_tying(model)
    base = fingerprint(model)
    template = template_for(model, tokenizer, config)
    if config.process_index == 0 and (lost := start_warning(template)):
        warn(f"warning: {lost}")
    new_ids = add_think_rows(model, template) if template.boundary.mode == "new" else ()
    adapter = adapter or lora_config(config)
    check_trainable(model, config, adapter is not None)
    keep_exact(model)
    if adapter is not None:
        add_adapter(model, adapter, new_ids, config.seed)
    if model.dtype in (torch.bfloat16, torch.float16):
        warnings.warn(
            f"the weights are {model.dtype}: most updates at a learning rate of "
            f"{config.learning_rate:g} are smaller than their rounding and are lost; leave dtype "
            "float32 and set bf16 for bfloat16 arithmetic",
            stacklevel=2,
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # inferred as never None; a model that was given may have had it taken away
    if model.generation_config is not None:  # pyright: ignore[reportUnnecessaryComparison]
        model.generation_config = generation_config(model.generation_config, template, config)
    disable_dropout(model)
    return Policy(model, tokenizer, template, base)


def fingerprint(model: PreTrainedModel) -> str:
    """Which model this is, by its kind and by name, shape and first values of its tensors."""
    digest = hashlib.sha256(str(model.config.model_type).encode())
    for name, tensor in model.named_parameters():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def knows_tags(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: NRTConfig
) -> bool:
    """Whether the think tags are single tokens whose rows look trained."""
    think = (config.think_open, config.think_close)
    vocabulary = tokenizer.get_vocab()
    known = existing_pair(tokenizer, think)
    return known and rows_look_trained(model, [vocabulary[text] for text in think])


def template_for(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    config: NRTConfig,
    boundary: str | None = None,
) -> Template:
    """The template of the settings (with another ``boundary`` where one is given), written into
    the tokenizer. Without a model think tokens count as trained. Raises TemplateError."""
    generation = None if model is None else model.generation_config
    ends = generation.eos_token_id if generation else None
    return make_template(
        tokenizer,
        boundary=boundary or config.boundary,
        think=(config.think_open, config.think_close),
        boundary_text=config.boundary_text,
        system_prompt=config.system_prompt,
        extra_end_ids=[] if ends is None else ends if isinstance(ends, list) else [ends],
        trained=model is None or knows_tags(model, tokenizer, config),
    )


def start_warning(template: Template) -> str | None:
    """What to do where prompts lack the token that the tokenizer begins every text with."""
    if (start := template.lost_start()) is None:
        return None
    return (
        f"prompts do not begin with {start}, which the tokenizer puts before every text, because "
        "the chat template does not write it; a model may write nonsense without it. Write "
        f"{'{{ bos_token }}' if start == template.tokenizer.bos_token else start} at the start of "
        "the template: --chat-template-path FILE"
    )


def warmup_warning(template: Template, config: NRTConfig) -> str | None:
    """What to do where think tokens are new and no step teaches them before traces are judged."""
    objective = config.resolved_objective()
    judged = objective.traces == "sampled" and objective.reward != "none"
    if template.boundary.mode != "new" or config.format_warmup_steps or not judged:
        return None
    return (
        f"{template.boundary.open_text.strip()} and {template.boundary.close_text} are new to this "
        "model, and traces are judged from the first step on, when it knows neither: "
        f"{as_flags(warmup_settings(config))} teaches the format first"
    )


def load_tokenizer(name: str, config: NRTConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder, with the chat template of the settings. Raises
    PolicyError, or ConfigError where that cannot be read."""
    check_folder(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=config.trust_remote_code
        )
    except _UNREADABLE as error:
        raise PolicyError(
            f"no tokenizer could be loaded from {name}: {_first_line(error)}",
            why="prompts and answers are scored token by token",
            fix="give a folder with tokenizer.json beside the weights, or a hub id",
        ) from None
    if config.chat_template_path is not None:
        tokenizer.chat_template = _read_text(config.chat_template_path)
    return tokenizer


def load_merged(name: str, config: NRTConfig, vocabulary: int) -> PreTrainedModel:
    """The same as ``load_model``; also for the folder of an adapter, which is merged into its base
    with ``vocabulary`` rows. A base in 4 bits is written out for that."""
    base = base_of(Path(name))
    if base is None:
        return load_model(name, config)
    if config.load_in_4bit:
        warnings.warn(f"{name} is an adapter: merged, its model is not in 4 bits", stacklevel=3)
    return with_adapter(load_model(base, config), Path(name), vocabulary)


def load_model(name: str, config: NRTConfig) -> PreTrainedModel:
    """Weights of a hub id or folder, safetensors only, float32 unless ``model_init_kwargs`` says
    otherwise. Raises PolicyError."""
    check_folder(name)
    kwargs: dict[str, Any] = {"dtype": "float32", **(config.model_init_kwargs or {})}  # type: ignore[dict-item]
    kwargs |= quantisation(config, model_dtype(config))
    kwargs |= {"trust_remote_code": config.trust_remote_code, "use_safetensors": True}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **kwargs)
        model, info = loaded
    except (*_UNREADABLE, TypeError, RuntimeError) as error:
        raise PolicyError(
            f"no causal language model could be loaded from {name}: {_first_line(error)}",
            why="its own probability of the answer is the reward",
            fix="give a folder with config.json and model.safetensors, or a hub id",
        ) from None
    if missing := sorted(info["missing_keys"]):
        raise PolicyError(
            f"{len(missing)} weights are missing from {name}, such as {missing[0]}",
            why="they would be random numbers, and so would the rewards",
            fix="copy or download the folder again",
        )
    tell_tying(model)
    return model


def check_plain(model: nn.Module) -> None:
    """Raises PolicyError for a model in a wrapper, or one that has an adapter already."""
    if not isinstance(model, PreTrainedModel):
        what = f"the model is a {type(model).__name__}, which is no PreTrainedModel"
    elif has_adapter(model):
        what = f"{model.config.name_or_path} has an adapter already"
    else:
        return
    raise PolicyError(
        what,
        why="it could not be saved as the model that was trained",
        fix="give the base model and a peft_config, or what PeftModel.merge_and_unload() returns",
    )


def generation_config(
    old: GenerationConfig, template: Template, config: NRTConfig
) -> GenerationConfig:
    """How whoever loads the saved model generates unless told otherwise: as traces were sampled,
    until an end token. Lengths and the kind of cache stay; penalties, beams and forbidden tokens,
    which training does not have, go."""
    kept = ("bos_token_id", "max_length", "max_new_tokens", "cache_implementation")
    return GenerationConfig(
        **{name: getattr(old, name) for name in kept},
        eos_token_id=list(template.end_ids),
        pad_token_id=template.tokenizer.pad_token_id,
        do_sample=True,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=0,  # transformers' own default is 50
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _read_text(path: str) -> str:
    try:
        if not Path(path).is_file():  # a pipe would be waited for
            raise FileNotFoundError("no such file")
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template_path {path} cannot be read: {_first_line(error)}",
            why="it holds the Jinja text that writes prompts",
            fix="check the path",
        ) from None


# -- Token rows ------------------------------------------------------------------------------------


def rows_look_trained(model: PreTrainedModel, ids: list[int]) -> bool:
    """Whether the embedding rows of ``ids`` have ordinary norms: reserved tokens are often present
    in a vocabulary without ever having been trained."""
    weight: Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    if max(ids) >= len(weight):
        return False
    norms = weight.float().norm(dim=-1)
    low, high = (bound * norms.median() for bound in TRAINED_NORM)
    return bool(((norms[ids] >= low) & (norms[ids] <= high)).all())


def add_think_rows(model: PreTrainedModel, template: Template) -> tuple[int, int]:
    """Rows for new think tokens, in the embedding and (where it is apart) the head. Returns their
    ids.

    The closing row starts as the end-of-turn token's, so that closing a trace is about as likely as
    ending a turn was; the opening row as the mean of the rows of its text's pieces.
    """
    tokenizer, boundary = template.tokenizer, template.boundary
    if template.vocabulary > len(model.get_input_embeddings().weight):  # type: ignore[arg-type]
        model.resize_token_embeddings(template.vocabulary, mean_resizing=False)
    open_text = boundary.open_text.strip()
    open_id, close_id = tokenizer.get_vocab()[open_text], boundary.close_ids[0]
    pieces = template.plain.encode(open_text, add_special_tokens=False).ids
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for table in {id(t.weight): t for t in tables if t is not None}.values():
            for part in (table.weight, getattr(table, "bias", None)):
                if isinstance(part, Tensor):
                    part[close_id] = part[template.end_ids[0]]
                    part[open_id] = part[pieces].mean(0)
    return open_id, close_id


def disable_dropout(model: nn.Module) -> None:
    """Keeps what is random in train mode off for good. In train mode only the modules that
    checkpoint activations are in train mode; all others stay in eval mode. All dropout
    probabilities become 0. The saved config keeps its own values."""
    model.train = types.MethodType(_train_quietly, model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _train_quietly(model: nn.Module, mode: bool = True) -> nn.Module:
    type(model).train(model, False)
    for module in model.modules():
        module.training = mode and bool(getattr(module, "gradient_checkpointing", False))
    model.training = mode
    return model
