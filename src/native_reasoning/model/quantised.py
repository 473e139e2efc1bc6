"""QLoRA: the frozen weights in 4 bits through bitsandbytes (Dettmers et al. 2023, 2305.14314).

Only the linear layers between embedding and head are quantised; products are computed in the
arithmetic of the run. What a finished run leaves behind is an ordinary model again: its weights are
the quantised ones, written out, plus the adapter, so it is the function that was trained.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from native_reasoning.config.errors import ConfigError, PolicyError
from native_reasoning.config.nrt_config import NRTConfig, sharded
from native_reasoning.config.settings import NRTOptions


def quantisation(options: NRTOptions, compute: torch.dtype) -> dict[str, Any]:
    """What ``from_pretrained`` is told for it: nothing without ``load_in_4bit``. Raises ConfigError
    where bitsandbytes is not installed."""
    if not options.load_in_4bit:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "load_in_4bit needs the package bitsandbytes, which is not installed",
            why="it quantises the weights",
            fix="pip install 'native-reasoning[qlora]'",
        )
    from transformers import BitsAndBytesConfig

    made = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",  # QLoRA's, which suits weights near a normal distribution
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": made}


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether its weights were quantised when it was loaded."""
    return getattr(model.config, "quantization_config", None) is not None


def check_given(model: PreTrainedModel, config: NRTConfig) -> None:
    """Raises PolicyError where a model in memory is whole, and the settings say 4 bits."""
    if config.load_in_4bit and not is_quantised(model):
        raise PolicyError(
            "load_in_4bit with a model that is loaded already, and whole",
            why="weights are quantised while they are loaded",
            fix="give its folder or hub id, or load it with a BitsAndBytesConfig yourself",
        )


def check_trainable(model: PreTrainedModel, config: NRTConfig, adapted: bool) -> None:
    """Raises PolicyError where quantised weights cannot be trained; ``adapted`` says whether an
    adapter will be."""
    if not is_quantised(model):
        return
    if not adapted or not layers(model) or config.use_vllm or sharded(config):
        raise PolicyError(
            f"{model.config.name_or_path} is quantised",
            why="only an adapter on 4 bits of bitsandbytes can be trained, without vLLM, FSDP and "
            "DeepSpeed",
            fix="give the model that was quantised, with load_in_4bit and use_peft, on one device "
            "or with DDP",
        )


def layers(model: nn.Module) -> dict[str, Any]:
    """The quantised linear layers in a model, by name; a layer alone is its own."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {}
    from bitsandbytes.nn.modules import Linear4bit

    return {name: m for name, m in model.named_modules() if type(m) is Linear4bit}


def keep_exact(model: nn.Module) -> None:
    """Has the layers compute the same with and without gradients.

    On CPUs that multiply in bfloat16 (AVX512-BF16) bitsandbytes repacks a layer's weights at the
    first forward of a model in eval mode; from then on its products are rounded to bfloat16, and
    no gradient goes through them. Ours is always in eval mode: dropout is off.
    """
    for layer in layers(model).values():
        layer.support_avx512bf16_for_cpu = False


def written_out(layer: nn.Module) -> Tensor:
    """The weight (out, in) that a quantised linear layer computes with."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer).detach()


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An ordinary layer."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def forget(model: PreTrainedModel) -> None:
    """Writes out what is still quantised, and removes every sign of it: the model is saved as an
    ordinary one."""
    for name, module in layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, linear(written_out(module), module.bias))
    vars(model.config).pop("quantization_config")
    for name in ("hf_quantizer", "is_loaded_in_4bit", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
