"""Low-rank adapters (LoRA) through peft, put into the model's own layers.

The model stays the class that it was: sampling and scoring see an ordinary causal language model
whose linear layers add a small product (Hu et al. 2021, arXiv 2106.09685, eq. 3)::

    h = W x + (α / r) · B A x,    A (r, in), B (out, r),   B = 0 at the start

Only A, B and the rows of new think tokens are trained, and a checkpoint holds these alone;
``merged`` makes the ordinary model that a finished run leaves behind.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from native_reasoning.config.errors import ConfigError, PolicyError, RunError
from native_reasoning.config.settings import NRTOptions
from native_reasoning.model.inplace import LinearHead, lighten, ordinary, token_layers, with_rows
from native_reasoning.model.quantised import (
    forget,
    is_quantised,
    keep_exact,
    layers,
    linear,
    written_out,
)

if TYPE_CHECKING:
    from peft import PeftConfig

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
#: What saved adapters have before the names of their weights.
PREFIX = "base_model.model."


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter is in the model's layers."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def lora_config(options: NRTOptions) -> "PeftConfig | None":
    """The adapter that the settings ask for, None without ``use_peft``. Raises ConfigError where
    peft is not installed."""
    if not options.use_peft:
        return None
    return _peft().LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        target_modules=options.lora_target_modules or "all-linear",
    )


def add_adapter(
    model: PreTrainedModel, config: "PeftConfig", new_ids: Sequence[int], seed: int
) -> None:
    """Puts an adapter into the model and freezes everything else but the rows ``new_ids`` of the
    embedding and, where it is apart, of the head. ``seed`` is that of A.

    Raises PolicyError where the adapter does not fit.
    """
    if not isinstance(config, _peft().LoraConfig):
        raise PolicyError(
            f"peft_config is a {type(config).__name__}",
            why="only a LoRA can train rows of new tokens, be saved and be merged here",
            fix="peft.LoraConfig, or use_peft",
        )
    if config.lora_bias:  # type: ignore[attr-defined]
        raise PolicyError(
            "peft_config has lora_bias",
            why="a finished run is merged, and most layers have no bias to merge it into",
            fix="leave lora_bias out",
        )
    config = copy.deepcopy(config)
    if new_ids:
        config.trainable_token_indices = _tables(model, new_ids)  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model.add_adapter(config)
        except (TypeError, ValueError) as error:
            raise PolicyError(
                f"the adapter does not fit the model: {str(error).splitlines()[0]}",
                why="its layers are looked up by name",
                fix="leave lora_target_modules out, or name layers that the model has",
            ) from None
    named = list(model.named_parameters(remove_duplicate=False))
    uses = Counter(id(weight) for _, weight in named)
    for name, weight in named:
        layer, base, _ = name.partition(".base_layer.")
        low_rank = base and not layer.endswith(".token_adapter")
        if low_rank and uses[id(weight)] > 1:  # such as a head that is tied to the embedding
            raise PolicyError(
                f"the adapter changes {layer}, whose weights another layer shares",
                why="each layer would learn a change of its own, and the merged weights have one",
                fix="lora_target_modules: layers that share no weights; or use_peft false",
            )
    lighten(model, "default")


def _tables(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, list[int]]:
    """Names of the embedding and of a head with weights of its own, each with its new rows."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    apart = head is not None and head.weight is not embedding.weight
    wanted = (embedding, head) if apart else (embedding,)
    return {
        name.rpartition(".")[2]: sorted(ids)
        for name, module in model.named_modules()
        if any(module is one for one in wanted)
    }


def tell_tying(model: PreTrainedModel) -> None:
    """Has the config say whether the head is the embedding. transformers does not tie a head whose
    file has other numbers, whatever the config says, but would the next time that rows are added.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(weight := getattr(head, "weight", None), Tensor):
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = weight is embedding.weight


def linear_parts(head: nn.Module | None) -> LinearHead | None:
    """A head that is a linear layer, also one with trained rows in the place of some; None for any
    other."""
    if _is_linear(head):
        return LinearHead(head.weight, head.bias)
    adapter: Any = getattr(head, "token_adapter", None)
    if adapter is None or not _is_linear(adapter.base_layer):
        return None
    return with_rows(adapter)


def written_into(model: nn.Module) -> set[int]:
    """The ``id`` of each frozen table that has trained rows in it."""
    if not has_adapter(model):
        return set()
    return {id(layer.base_layer.weight) for layer in token_layers(model)}


def _is_linear(module: Any) -> TypeGuard[nn.Linear]:
    """Whether a module computes what nn.Linear does. FSDP makes a class of its own of it."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def save_adapter(model: PreTrainedModel, folder: str | Path) -> None:
    """The adapter alone, as peft writes one: without an embedding that has grown."""
    (config,) = model.peft_config.values()
    config.save_pretrained(folder)
    weights = {PREFIX + name: tensor.contiguous() for name, tensor in _weights(model).items()}
    save_file(weights, Path(folder) / ADAPTER_FILE, metadata={"format": "pt"})


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """What is trained, by peft's names, each tensor once."""
    found = _peft().get_peft_model_state_dict(model, save_embedding_layers=False)
    trained = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    return {name: tensor for name, tensor in found.items() if tensor.data_ptr() in trained}


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """The weights of a checkpoint's adapter into the model's own. Raises RunError where they are
    those of another adapter."""
    saved = {k.removeprefix(PREFIX): v for k, v in load_file(folder / ADAPTER_FILE).items()}
    here = {k: v.shape for k, v in _weights(model).items()}
    wrong = sorted({k: v.shape for k, v in saved.items()}.items() ^ here.items())
    if wrong:
        raise RunError(
            f"{folder} is of another adapter: {wrong[0][0]} differs",
            why="its weights have no place in this model",
            fix="resume with the settings that the run was begun with",
        )
    _peft().set_peft_model_state_dict(model, saved)


def base_of(folder: Path) -> str | None:
    """The model that an adapter's folder belongs to; None for a folder with a whole model."""
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    return _peft().PeftConfig.from_pretrained(folder).base_model_name_or_path


def with_adapter(model: PreTrainedModel, folder: Path, vocabulary: int) -> PreTrainedModel:
    """The base model with the adapter of ``folder`` merged into it, and with ``vocabulary`` rows
    where it has fewer."""
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if vocabulary > rows:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    keep_exact(model)  # before the forwards that compare
    model.add_adapter(_peft().PeftConfig.from_pretrained(folder))
    lighten(model, "default")
    load_adapter(model, folder)
    return _merge(model)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without an adapter, whose weights are W + (α / r) · B A and whose new rows are in
    place: the same function, to rounding. Needs memory for a second model. Raises RunError where
    it is another function."""
    return _merge(copy.deepcopy(model))


def _merge(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapter merged into it. Raises RunError where that is another function."""
    ids, rounding = _trial_ids(model), _rounding(model)
    before, shaken = (_trial_logits(model, ids, shake) for shake in (0.0, rounding))
    for name, module in _adapted(model):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _plain(module))
    model._hf_peft_config_loaded = False  # pyright: ignore[reportPrivateUsage]  (no public one)
    del model.peft_config
    if is_quantised(model):
        forget(model)
    tell_tying(model)
    after = _trial_logits(model, ids, 0.0)
    off, noise, size = (_norms(x) for x in (after - before, shaken - before, before))
    # at a few positions, rounding may send a token to another expert
    if not (off <= 10 * (noise + rounding * size)).float().mean() > 0.5:
        raise RunError(
            f"the merged model is not the one that was trained: logits of up to "
            f"{before.abs().max():.3g} differ by up to {(after - before).abs().max():.3g}",
            why=f"{type(model).__name__} has layers into which an adapter cannot be merged",
            fix="checkpoints have the adapter itself; for another run, lora_target_modules such as "
            "q_proj,v_proj, or use_peft false",
        )
    return model


def _trial_ids(model: PreTrainedModel) -> Tensor:
    """A few tokens (1, P); the first have rows of their own where there are such."""
    count = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    first = [id for layer in token_layers(model) for id in layer.token_indices["default"]][:4]
    return torch.tensor([[*first, *((7 * i + 5) % count for i in range(12))]], device=model.device)


def _rounding(model: PreTrainedModel) -> float:
    """Relative, of the coarsest products. GPUs may compute those of float32 in TF32."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    kinds |= {layer.compute_dtype or torch.float32 for layer in layers(model).values()}
    return max(2**-10 if model.device.type == "cuda" else 0.0, *(torch.finfo(k).eps for k in kinds))


@torch.no_grad()
def _trial_logits(model: PreTrainedModel, ids: Tensor, shake: float) -> Tensor:
    """Logits (P, P) of some tokens at their places, in the precision of the weights whatever wraps
    the model's forward. Every other number of their embeddings is changed by ``shake`` of it."""

    def change(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        embedded[..., ::2] *= 1 + shake
        return embedded

    changed = model.get_input_embeddings().register_forward_hook(change)
    with changed, torch.autocast(model.device.type, enabled=False):
        logits = type(model).forward(model.eval(), input_ids=ids, use_cache=False).logits
    return logits[0, :, ids[0] % logits.shape[-1]].float()


def _norms(logits: Tensor) -> Tensor:
    """At each position, without what all logits have in common."""
    return (logits - logits.mean(-1, keepdim=True)).norm(dim=-1)


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights of the model that ``merged`` makes, by name and one layer at a time, so that no
    second model is in memory. A head that is tied to the embedding is left out."""
    adapted = _adapted(model)
    inside = tuple(name + "." for name, _ in adapted)
    for name, weight in model.named_parameters():
        if not name.startswith(inside):
            yield name, weight.detach()
    for name, module in adapted:
        if not getattr(getattr(module, "token_adapter", None), "tied_adapter", None):
            plain = _plain(copy.deepcopy(module))
            for own, weight in plain.named_parameters():
                yield f"{name}.{own}", weight.detach()


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers that the adapter has put something into, by name; none is a part of another."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    found: list[tuple[str, Any]] = []
    for name, module in model.named_modules():
        part = bool(found) and name.startswith(found[-1][0] + ".")
        if not part and isinstance(module, AuxiliaryTrainingWrapper | BaseTunerLayer):
            found.append((name, module))
    return found


def _plain(module: Any) -> nn.Module:
    """An adapted layer as an ordinary one; it is merged in place, in full precision. Layers with
    more than one adapted tensor, such as stacked experts, have a way of their own in peft."""
    with torch.autocast(next(module.parameters()).device.type, enabled=False):
        merge = getattr(module, "unload_and_optionally_merge_module", None)
        if merge is not None:
            return merge(True, False, None)
        ordinary(module)
        base = module.get_base_layer()
        if layers(base):  # in 4 bits: peft would quantise the sum
            weight = written_out(base)
            (adapter,) = module.active_adapters
            if adapter in module.lora_variant:
                weight = module.lora_variant[adapter].merge_safe(module, adapter, weight)
            else:
                weight = weight + module.get_delta_weight(adapter).to(weight.dtype)
            return linear(weight, base.bias)
        module.merge()
        return base


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ConfigError(
            "use_peft needs the package peft, which is not installed",
            why="it makes the adapter",
            fix="pip install 'native-reasoning[peft]'",
        ) from None
    return peft
