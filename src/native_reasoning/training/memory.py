"""How many tokens are forwarded at once: as many as fit into memory, and what is said where they do
not.

``max_tokens_per_forward`` bounds a training forward. Where it is not given, the memory that is left
beside gradients and optimiser is divided by what a token takes (``SHARE``). What it takes is the
slope between two forwards of one trace, of a half and of the whole ``max_trace_length``: the most
bytes of tensors alive at once, counted as torch makes and frees them. A sampled token takes less,
and sampling has as many as fit into the same memory. On a CPU more than ``ENOUGH`` makes nothing
faster, so no more is put together there; a group is cut only where it has to be. An evaluation
before any training needs no gradients, and has what sampling takes.
"""

import os
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig, sharded
from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.model.forward import in_mode, inference
from native_reasoning.rollout.engine import Sampling
from native_reasoning.rollout.hf import HFEngine, decoder_of
from native_reasoning.scoring.packing import size_of, tokens_of
from native_reasoning.scoring.scorer import Scorer

#: Share of the memory left that forwards may take. Their backward takes more: a process grew by 2.5
#: times as much where the vocabulary was large beside the model (49,152, width 256).
SHARE = 1 / 3
#: Tokens, or bytes where that is more, beyond which a CPU is no faster (benchmarks/layouts/run.py).
ENOUGH = (2_048, 5 * 10**8)


class Memory:
    """The number of tokens in a forward of a run, for ``scorer`` and ``engine``, which it tells.

    Part of a checkpoint: a run that goes on computes the same parts, and so the same bits.
    """

    def __init__(self, args: NRTConfig, scorer: Scorer, engine: HFEngine) -> None:
        self.args, self.scorer, self.engine = args, scorer, engine
        self.found: dict[str, int] | None = None

    def find(self, groups: Sequence[PromptGroup]) -> None:
        """Measures, once in a run, with the longest of these groups. Nothing is bounded where
        weights are cut over ranks: each rank has to forward equally often."""
        if self.found is not None or not groups or sharded(self.args):
            return
        model, most = self.engine.model, self.args.max_tokens_per_forward
        train, sample = self._slope(groups, self._scored), self._slope(groups, self._prefilled)
        enough = most = self._fit(train, trained=True) if most is None else most
        if self.args.max_tokens_per_forward is None and model.device.type == "cpu":
            enough = min(most, max(ENOUGH[0], int(ENOUGH[1] / train)))
        found = {"train": most, "together": enough, "sample": max(1, int(most * train / sample))}
        self.restore(found)

    def find_without_training(self, groups: Sequence[PromptGroup]) -> None:
        """For an evaluation before any training: no gradient is needed, nor room for one."""
        if self.found is not None or not groups or sharded(self.args):
            return
        most = self.args.max_tokens_per_forward
        if most is None:
            most = self._fit(self._slope(groups, self._prefilled), trained=False)
        self.scorer.max_tokens = self.engine.max_tokens = most

    def _fit(self, slope: float, *, trained: bool) -> int:
        """Tokens that fit, at so many bytes each."""
        left = memory_left(self.engine.model, trained=trained)
        return 2**62 if left is None else max(1, int(SHARE * left / slope))

    def _slope(
        self,
        groups: Sequence[PromptGroup],
        forward: Callable[[PromptGroup, tuple[int, ...]], tuple[int, int]],
    ) -> float:
        """Bytes per token of ``forward``, which says tokens and bytes for the longest group and a
        trace."""
        group = max(groups, key=lambda group: len(group.prompt_ids) + group.answer_size)
        length = self.args.max_trace_length
        ids = (group.answer_ids * length)[:length]
        small, large = forward(group, ids[: length // 2]), forward(group, ids)
        return max((large[1] - small[1]) / max(large[0] - small[0], 1), 1.0)

    def _scored(self, group: PromptGroup, ids: tuple[int, ...]) -> tuple[int, int]:
        model, traces = self.engine.model, Traces((ids,), (False,))
        sizes = [size_of(group, traces, self.scorer.template)]
        tokens = tokens_of(sizes, self.scorer.layouts[0])
        with (
            fitting(*fewer_tokens(tokens, cut=False)),
            in_mode(model, training=True),
            self.engine.autocast(),
            most_alive(model) as alive,
        ):
            self.scorer(model, [group], [traces])
        return tokens, alive.most

    def _prefilled(self, group: PromptGroup, ids: tuple[int, ...]) -> tuple[int, int]:
        model, prompt = self.engine.model, (*group.prompt_ids, *ids)
        with (
            fitting(*fewer_tokens(len(prompt), cut=False)),
            inference(model),
            self.engine.autocast(),
            most_alive(model) as alive,
        ):
            decoder_of(model, self.engine.share).start([prompt], 1)
        return len(prompt), alive.most

    def state(self) -> Mapping[str, int] | None:
        """What a checkpoint holds."""
        return self.found

    def restore(self, state: Mapping[str, int] | None) -> None:
        """Goes on from ``state``, unless the settings say another number now."""
        given = self.args.max_tokens_per_forward
        if state is None or given not in (None, state["train"]):
            return
        self.found = dict(state)
        self.scorer.max_tokens, self.scorer.enough = state["train"], state["together"]
        self.engine.max_tokens = state["sample"]

    @contextmanager
    def sampling(self, groups: Sequence[PromptGroup], sampling: Sampling) -> Generator[None]:
        """Inside, traces are sampled: says what to set where memory runs out."""
        k, length = sampling.num_generations, sampling.max_tokens
        prompts = [group.prompt_ids for group in groups]
        largest = max(self.engine.batches(prompts, k, length), key=len, default=[])
        said = f"{len(largest)} prompts of {k} traces sampled at once"
        fewer = ""
        if len(largest) > 1 and self.found is not None:
            tokens = len(largest) * (max(map(len, prompts)) + k * length)
            half = tokens * self.found["train"] // self.found["sample"] // 2
            fewer = f"--max-tokens-per-forward {max(half, 1)}, "
        with fitting(said, f"{fewer}a smaller --max-trace-length or --num-generations"):
            yield


def memory_left(model: PreTrainedModel, *, trained: bool) -> int | None:
    """Bytes that this process may still take for forwards, where it is ``trained`` beside gradients
    and AdamW's two moments of the weights; None where the device does not say."""
    device, processes = model.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif device.type == "cpu":
        free = psutil.virtual_memory().available // processes
    else:
        return None
    return max(free - 3 * weights * trained, 0)


@contextmanager
def fitting(what: str, fix: str) -> Generator[None]:
    """Raises a RunError where memory runs out inside: out of memory with ``what``."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError) or not should_reduce_batch_size(error):
            raise
        said = (str(error).splitlines() or [""])[0]
        raise RunError(
            f"out of memory with {what}: {said}",
            why="they were computed together",
            fix=f"{fix}; --resume goes on from the last checkpoint",
        ) from None


def fewer_tokens(tokens: int, *, cut: bool) -> tuple[str, str]:
    """What ``fitting`` says of a forward of so many tokens; ``cut``: it can be cut."""
    fewer = f"--max-tokens-per-forward {tokens // 2}, " if cut else ""
    fix = f"{fewer}--activation-checkpointing true, or a smaller --max-trace-length"
    return f"a forward of {tokens:,} tokens", fix


# -- Bytes that are alive --------------------------------------------------------------------------


@contextmanager
def most_alive(model: PreTrainedModel) -> Generator["Alive"]:
    """Inside, the bytes of new tensors are counted; the model's own do not count."""
    alive = Alive(t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers()))
    with alive:
        yield alive


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations make: ``now`` those that are alive, ``most``
    those that were at once."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = set(known)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                self._see(made)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, storage.data_ptr(), storage.nbytes())

    def _gone(self, known: int, size: int) -> None:
        self._known.discard(known)
        self.now -= size
