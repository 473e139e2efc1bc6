"""The optimiser's state where FSDP2 cut it: written by rows, read by any number of ranks.

Rank r of n writes ``optimizer-r-of-n.safetensors``: of each tensor the rows it holds, and in the
file's metadata which rows these are and the settings of the parameter groups. A rank that reads
takes the rows it needs from whichever files have them. torch's own format for this
(torch.distributed.checkpoint) has its table of contents in a pickle, which could run code.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers.trainer import OPTIMIZER_NAME

from native_reasoning.config.errors import RunError
from native_reasoning.model.gathered import local, plain_names, rows_of

_FILES = "optimizer-*-of-*.safetensors"


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
    numbers = iter(range(len(names)))
    groups = [
        {**_like(theirs, mine), "params": [next(numbers) for _ in mine["params"]]}
        for theirs, mine in zip(saved.groups, optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


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


def _like(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a group, with tuples where JSON has lists."""
    return {
        name: tuple(value) if isinstance(mine.get(name), tuple) else value
        for name, value in theirs.items()
        if name != "params"
    }
