"""Whole weights where FSDP or DeepSpeed cut them among the ranks.

What needs gradients goes through the wrapped model, whose hooks gather one layer at a time: there,
all ranks must make as many forwards. Everything else (sampling, scores taken beforehand,
evaluation) runs on a copy of the model whose weights are gathered once and dropped afterwards.
Inside, nothing is exchanged, so each rank may sample as long as its own traces are, and every way
of sharing prompts works as on one device.
"""

import copy
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from native_reasoning.config.errors import ConfigError

#: What FSDP's activation checkpointing puts into the names of parameters.
_WRAPPED = "_checkpoint_wrapped_module."


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all shards of one that FSDP2 cut, on every rank. All ranks call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, or this rank's shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def stand_in(
    model: PreTrainedModel, accelerator: Accelerator, *, lagging: bool = False
) -> "WholeCopy | None":
    """A ``WholeCopy`` where the model is going to be cut, else None. FSDP is told to leave the
    arithmetic to autocast, as everywhere else: its own would round log-probabilities to 16 bits.

    Raises ConfigError for what does not work with cut weights; ``lagging``: a copy follows them.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        assert plugin is not None
        if plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:
            raise ConfigError(
                f"FSDP version {plugin.fsdp_version} with cpu_ram_efficient_loading "
                f"{plugin.cpu_ram_efficient_loading}",
                why="only weights of version 2 can be gathered by name, and each rank tries the "
                "model out before it is cut, with weights of its own",
                fix="fsdp_version: 2 and fsdp_cpu_ram_efficient_loading: false, as in "
                "recipes/accelerate/fsdp2.yaml",
            )
        plugin.mixed_precision_policy = None
        return WholeCopy(model)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return None
    zero = accelerator.state.deepspeed_plugin
    assert zero is not None
    adapted = not all(p.requires_grad for p in model.parameters())
    if zero.zero_stage == 3 and (adapted or lagging):
        raise ConfigError(
            f"{'an adapter' if adapted else 'a lagging copy of the policy'} with DeepSpeed ZeRO-3",
            why="weights that it has cut are empty wherever it does not look",
            fix="recipes/accelerate/fsdp2.yaml, or zero2.yaml",
        )
    return WholeCopy(model)


def plain_names(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Parameters or buffers under the names that they have in a model that nothing wraps."""
    for name, tensor in named:
        yield name.removeprefix("module.").replace(_WRAPPED, ""), tensor


def rows_of(tensor: Tensor) -> tuple[int, int]:
    """First row that this rank holds, and the one after its last: all of them of a whole tensor."""
    count = len(tensor)
    if not isinstance(tensor, DTensor):
        return 0, count
    first, after = 0, count
    for dim, placement in enumerate(tensor.placements):
        if not placement.is_shard():
            continue
        assert isinstance(placement, Shard) and placement.dim == 0 and after - first == count
        ranks, rank = tensor.device_mesh.size(dim), tensor.device_mesh.get_local_rank(dim)
        each = -(-count // ranks)  # as torch.chunk cuts
        first, after = min(rank * each, count), min((rank + 1) * each, count)
    assert after - first == len(tensor.to_local()), (tensor.shape, first, after)
    return first, after


class WholeCopy:
    """A copy of ``model`` without weights of its own, made before the model is cut.

    ``filled`` lends it the weights: those that are whole are the model's own tensors, the others
    need memory for the whole model as long as it lasts.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        hollow: dict[int, object] = {
            id(p): nn.Parameter(p.new_empty(0), requires_grad=p.requires_grad)
            for p in model.parameters()
        }
        self.model = copy.deepcopy(model, hollow).eval()

    @contextmanager
    def filled(self, source: nn.Module) -> Generator[PreTrainedModel]:
        """Inside, the copy has the weights of ``source``, the same model after it was cut. All
        ranks come in together; not to be entered twice."""
        try:
            self._fill(source)
            yield self.model
        finally:
            for mine in self.model.parameters():
                mine.data = mine.data.new_empty(0)

    @torch.no_grad()
    def _fill(self, source: nn.Module) -> None:
        weights = dict(plain_names(source.named_parameters()))
        for name, mine in self.model.named_parameters():
            theirs = weights[name]
            if theirs.numel() or "deepspeed" not in sys.modules:
                mine.data = whole(theirs).detach()
                continue
            zero = import_module("deepspeed").zero  # ZeRO-3 leaves nothing where a weight was
            with zero.GatheredParameters([theirs]):
                mine.data = theirs.detach().clone()
        buffers = dict(plain_names(source.named_buffers()))
        for name, mine in self.model.named_buffers():
            mine.data = buffers[name].detach()


@torch.no_grad()
def fill(model: nn.Module, source: nn.Module) -> None:
    """The weights of ``source``, which are whole, into ``model``, cut as those are."""
    weights = dict(source.named_parameters())
    for name, mine in plain_names(model.named_parameters()):
        theirs = weights[name].to(mine.dtype)
        first, after = rows_of(mine)
        local(mine).copy_(theirs[first:after] if theirs.dim() else theirs)
