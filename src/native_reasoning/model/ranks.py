"""What all processes of a run share: what they agree on, and the weights where FSDP or DeepSpeed
cut them, as whole copies and with the optimiser's state.

What needs gradients goes through the wrapped model, whose hooks gather one layer at a time: there,
all ranks must make as many forwards. Everything else (sampling, scores taken beforehand,
evaluation) runs on a copy of the model whose weights are gathered once and dropped afterwards.
Inside, nothing is exchanged, so each rank may sample as long as its own traces are, and every way
of sharing prompts works as on one device.

The optimiser's state is written by rows and read by any number of ranks. Rank r of n writes
``optimizer-r-of-n.safetensors``: of each tensor the rows it holds, and in the file's metadata which
rows these are and the settings of the parameter groups. A rank that reads takes the rows it needs
from whichever files have them. torch's own format for this (torch.distributed.checkpoint) has its
table of contents in a pickle, which could run code.
"""

import copy
import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather, reduce
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME

from native_reasoning.config.errors import ConfigError, NativeReasoningError, RunError

T = TypeVar("T")

#: How gloo, NCCL and torch's store say that the other end is gone.
_GONE = re.compile(
    r"closed by peer|reset by peer|refused|timed out|timeout|broken pipe|remote process exited"
    r"|watchdog|recvValue failed",
    re.IGNORECASE,
)
#: What FSDP's activation checkpointing puts into the names of parameters.
_WRAPPED = "_checkpoint_wrapped_module."
_FILES = "optimizer-*-of-*.safetensors"


def lost_rank(error: RuntimeError) -> Exception | None:
    """What to raise where an exchange failed because another process is gone; None for any other
    error. Where this process was failing by itself meanwhile, nothing hides that: its own error
    where it is one of ours, else None, and the traceback has both."""
    state = PartialState()
    if state.num_processes == 1 or not _gone(error):
        return None
    own = error.__context__
    while own is not None and _gone(own):
        own = own.__context__
    if own is not None:
        return own if isinstance(own, NativeReasoningError) else None
    return RunError(
        f"rank {state.process_index} of {state.num_processes} lost another one",
        why="it was killed, ran out of memory, or ended with an error that it says itself "
        f"({(str(error).splitlines() or [''])[0][:200]})",
        fix="look at what the others say; then the same command with --resume",
    )


def _gone(error: BaseException) -> bool:
    """Whether an exchange failed because the other end is gone."""
    text = str(error)
    exchanged = isinstance(error, torch.distributed.DistError) or "gloo" in text.lower()
    return isinstance(error, RuntimeError) and exchanged and bool(_GONE.search(text))


def largest_of_ranks(value: int, device: torch.device) -> int:
    """The largest value that any rank has, so that all ranks decide alike."""
    return int(gather(torch.tensor([value], device=device)).max())  # type: ignore[union-attr]


def sum_of_ranks(values: list[float], device: torch.device) -> list[float]:
    """Each value summed over the ranks."""
    return reduce(torch.tensor(values, dtype=torch.float64, device=device), "sum").tolist()  # type: ignore[union-attr]


def from_first_rank(make: Callable[[], T]) -> T:
    """What ``make`` returns on rank 0, on every rank; what it raises there is raised on every rank,
    as a RunError where it is not for the user to mend."""
    said: list[T | NativeReasoningError | None] = [None]
    failed: Exception | None = None
    if PartialState().is_main_process:
        try:
            said = [make()]
        except Exception as error:
            failed, what = error, f"rank 0 failed: {type(error).__name__}: {error}"
            ours = RunError(what, why="the ranks go on together", fix="see what rank 0 says")
            said = [error if isinstance(error, NativeReasoningError) else ours]
    try:
        broadcast_object_list(said)
    except RuntimeError:
        if failed is None:
            raise
    if failed is not None:  # also where nobody is left to hear it
        raise failed
    (heard,) = said
    if isinstance(heard, NativeReasoningError):
        raise heard
    return heard  # type: ignore[return-value]


# -- Weights that are cut --------------------------------------------------------------------------


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


# -- The optimiser's state -------------------------------------------------------------------------


def in_shards(checkpoint: Path) -> bool:
    """Whether a checkpoint has the optimiser's state in this form."""
    return any(checkpoint.glob(_FILES))


def save_shards(model: nn.Module, optimizer: Optimizer, folder: Path, rank: int, of: int) -> None:
    """This rank's rows of the state."""
    tensors, place = dict[str, Tensor](), dict[str, list[int]]()
    for name, p in _named(model, optimizer):
        for key, value in optimizer.state.get(p, {}).items():
            value = torch.as_tensor(value)
            tensors[f"{name}:{key}"] = local(value).detach().contiguous()
            if value.dim():
                place[f"{name}:{key}"] = [*rows_of(value)]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    names = [name for name, _ in _named(model, optimizer)]
    parts = {"rows": place, "groups": groups, "names": names}
    about = {key: json.dumps(part) for key, part in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)  # no rank waits for the one that makes it
    save_file(tensors, folder / f"optimizer-{rank:05}-of-{of:05}.safetensors", metadata=about)


def load_state(model: nn.Module, optimizer: Optimizer, checkpoint: Path) -> None:
    """The state of a checkpoint, whether it is in shards or in one file, into an optimiser whose
    parameters are cut or not. Raises RunError where it is that of another model."""
    names = [name for name, _ in _named(model, optimizer)]
    saved = _Shards(checkpoint) if in_shards(checkpoint) else _OneFile(checkpoint, names)
    state = dict[int, dict[str, Any]]()
    for number, (name, p) in enumerate(_named(model, optimizer)):
        for key in saved.keys_of(name):
            state.setdefault(number, {})[key] = _placed(saved, name, key, p)
    known, groups = len(set(saved.names) & set(names)), optimizer.param_groups
    if set(saved.names) != set(names) or len(saved.groups) != len(groups):
        raise RunError(
            f"{checkpoint} has the optimiser's state of other weights: {known} of {len(names)} are "
            "the same",
            why="it belongs to another model, or the weights are grouped in another way",
            fix="resume with the model and the settings that the run was begun with",
        )
    numbers, filled = iter(range(len(names))), []
    for theirs, mine in zip(saved.groups, groups, strict=True):
        # JSON has lists where the settings are tuples
        kept = {k: tuple(v) if isinstance(mine.get(k), tuple) else v for k, v in theirs.items()}
        filled.append({**kept, "params": [next(numbers) for _ in mine["params"]]})
    optimizer.load_state_dict({"state": state, "param_groups": filled})


class _Shards:
    """What the files of all ranks have."""

    def __init__(self, checkpoint: Path) -> None:
        self.files = [safe_open(p, framework="pt") for p in sorted(checkpoint.glob(_FILES))]
        about = [file.metadata() for file in self.files]
        self.rows: list[dict[str, list[int]]] = [json.loads(one["rows"]) for one in about]
        self.groups = json.loads(about[0]["groups"])
        self.names: list[str] = json.loads(about[0]["names"])
        self.keys = [full.split(":") for full in self.files[0].keys()]  # noqa: SIM118

    def keys_of(self, name: str) -> list[str]:
        return [key for its, key in self.keys if its == name]

    def read(self, name: str, key: str, first: int, after: int) -> Tensor:
        """Rows from one to before the other; of a number, the number."""
        full, parts, have = f"{name}:{key}", [], first
        if full not in self.rows[0]:
            return self.files[0].get_tensor(full)
        for file, rows in sorted(
            zip(self.files, self.rows, strict=True), key=lambda pair: pair[1][full]
        ):
            start, end = rows[full]
            if start <= have < min(end, after):
                parts.append(file.get_slice(full)[have - start : min(end, after) - start])
                have = min(end, after)
        return torch.cat(parts) if parts else self.files[0].get_slice(full)[:0]


class _OneFile:
    """What transformers writes where nothing is cut: states in the order of the parameters."""

    def __init__(self, checkpoint: Path, names: list[str]) -> None:
        path = checkpoint / OPTIMIZER_NAME
        if not path.is_file():
            raise RunError(
                f"{checkpoint} has neither {_FILES} nor {OPTIMIZER_NAME}",
                why="the optimiser would start from nothing; DeepSpeed keeps its state elsewhere",
                fix="resume as the run was begun",
            )
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        self.groups: list[Mapping[str, Any]] = saved["param_groups"]
        order = [number for group in self.groups for number in group["params"]]
        self.names = names[: len(order)] + ["?"] * (len(order) - len(names))
        self.state = {n: saved["state"].get(i, {}) for n, i in zip(names, order, strict=False)}

    def keys_of(self, name: str) -> list[str]:
        return list(self.state.get(name, ()))

    def read(self, name: str, key: str, first: int, after: int) -> Tensor:
        value = self.state[name][key]
        return value[first:after] if value.dim() else value


def _placed(saved: _Shards | _OneFile, name: str, key: str, p: Tensor) -> Tensor:
    """A tensor of the state, cut as its parameter is."""
    mine = saved.read(name, key, *rows_of(p))
    if not isinstance(p, DTensor) or not mine.dim():
        return mine
    return DTensor.from_local(
        mine.to(p.device),
        p.device_mesh,
        p.placements,
        run_check=False,
        shape=p.shape,
        stride=p.stride(),
    )


def _named(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The optimiser's parameters with their names, in its order."""
    names = {id(p): name for name, p in plain_names(model.named_parameters())}
    for group in optimizer.param_groups:
        for p in group["params"]:
            yield names[id(p)], p
