"""What all processes of a run agree on."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, reduce

from native_reasoning.config.errors import NativeReasoningError, RunError

T = TypeVar("T")


#: How gloo, NCCL and torch's store say that the other end is gone.
_GONE = re.compile(
    r"closed by peer|reset by peer|refused|timed out|timeout|broken pipe|remote process exited"
    r"|watchdog|recvValue failed",
    re.IGNORECASE,
)


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
