"""What a step costs on this machine, measured: ``nrt train --dry-run``."""

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from native_reasoning.data.prepared import sizes_of

if TYPE_CHECKING:
    from native_reasoning.training.trainer import NRTTrainer


@dataclass(frozen=True)
class Cost:
    """``seconds`` of the longest step that there can be, and the bytes of ``memory`` at its peak:
    what the process has held on a CPU (None where the system does not say), what torch has reserved
    on a GPU. Both are this rank's."""

    seconds: float
    memory: int | None


def full_step(trainer: "NRTTrainer") -> Cost:
    """Trains one step on the longest rows, with traces that all run to ``max_trace_length``, and
    says what it took. ``trainer`` has ``max_steps`` 1 and is of no use afterwards."""
    maker = trainer.maker
    prompts, answers = sizes_of(maker.groups)
    longest = (prompts + answers).argsort()[::-1][: trainer.schedule.prompts]
    rows = [maker.groups[int(i)] for i in longest]
    maker.groups = [rows[i % len(rows)] for i in range(len(maker.groups))]
    cuda = trainer.args.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with trainer.engine.to_the_limit():
        trainer.train()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return Cost(seconds, torch.cuda.max_memory_reserved() if cuda else _peak_of_process())


def _peak_of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
