"""peft's layers, with the same results from less memory.

* A low-rank product is added to the layer's own output in place. peft's forward makes three more
  tensors of that size, and what they leave behind in the heap is not given back.
* Trained rows of an embedding or a head are written over the rows they stand for, which nothing
  reads otherwise. peft's forward makes a copy of the whole table each time, for each sampled token
  too, and its gradient is as large.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from native_reasoning.model.quantised import layers


@dataclass(frozen=True, eq=False)
class LinearHead:
    """``weight`` (V, H) and ``bias`` (V,) of a head. Where single rows are trained, they are
    ``rows`` (n, H) at ``ids`` (n,); the weight has their values, and no gradient."""

    weight: Tensor
    bias: Tensor | None
    rows: Tensor | None = None
    ids: Tensor | None = None


def lighten(model: nn.Module, adapter: str) -> None:
    """Lets the layers of an adapter that has just been put into the model work in place."""
    from peft.tuners import lora
    from peft.utils.other import TrainableTokensWrapper

    kinds = [lora.Linear, *([lora.Linear4bit] if layers(model) else [])]
    adapted: list[Any] = [module for module in model.modules() if type(module) in kinds]
    for module in adapted:
        plain = adapter not in module.lora_variant
        if plain and isinstance(module.lora_dropout[adapter], nn.Identity):
            module.lora_variant[adapter] = InPlace()
    for layer in token_layers(model):
        layer.get_merged_weights = types.MethodType(_table, layer)
        if isinstance(layer.base_layer, nn.Linear):
            layer.forward = types.MethodType(_logits, layer)
    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper):
            # what its __getattr__ asks, in place of another forward: nothing public leads there
            module._getattr_wrapped = types.MethodType(  # pyright: ignore[reportPrivateUsage]
                _weight, module
            )


def ordinary(module: Any) -> None:
    """peft's own forward again, which it wants before it merges."""
    for name in [n for n, v in module.lora_variant.items() if isinstance(v, InPlace)]:
        del module.lora_variant[name]


def token_layers(model: nn.Module) -> Iterator[Any]:
    """The layers with trained rows, each once."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return (module for module in model.modules() if isinstance(module, TrainableTokensLayer))


def with_rows(layer: Any) -> LinearHead:
    """A head with trained rows."""
    rows, ids, weight = _rows(layer)
    weight.data[ids] = rows.detach().to(weight.dtype)
    return LinearHead(weight.detach(), getattr(layer.base_layer, "bias", None), rows, ids)


class InPlace:
    """One of peft's variants of LoRA, with the vanilla result."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """``result`` (..., out) + (α / r) · B A x, in the place of ``result``."""
        low = module.lora_A[active_adapter](x)
        up = module.lora_B[active_adapter].weight.to(result.dtype)
        flat = result.view(-1, result.shape[-1])
        low = low.to(result.dtype).reshape(-1, low.shape[-1])
        flat.addmm_(low, up.T, alpha=module.scaling[active_adapter])
        return result


def _rows(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Trained rows, their ids, and the table."""
    (adapter,) = layer.active_adapters
    weight = layer.base_layer.weight
    ids = torch.tensor(layer.token_indices[adapter], device=weight.device)
    return layer.trainable_tokens_delta[adapter], ids, weight


def _table(layer: Any, active_adapters: Any) -> Tensor:
    """In the place of peft's ``get_merged_weights``."""
    rows, ids, weight = _rows(layer)
    table = _InPlaceRows.apply(rows, weight, ids)
    assert isinstance(table, Tensor)
    return table


def _logits(layer: Any, hidden: Tensor) -> Tensor:
    """A head with trained rows. peft's forward leaves its bias out."""
    return nn.functional.linear(hidden, _table(layer, None), layer.base_layer.bias)


def _weight(wrapper: Any, name: str, modules: Any) -> Tensor:
    """``weight`` of an embedding or head with trained rows: the table itself, so that whoever asks
    sees that the two are tied. peft gives a new tensor each time."""
    assert name == "weight"
    return wrapper.original_module.weight


class _InPlaceRows(torch.autograd.Function):
    """The table with the rows in it: d rows = d table[ids]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, ids: Tensor) -> Tensor:
        ctx.ids = ids
        table.data[ids] = rows.to(table.dtype)
        return table.data

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        (gradient,) = incoming
        return gradient[ctx.ids], None, None
