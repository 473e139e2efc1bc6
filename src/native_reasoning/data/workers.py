"""A function of many tasks on all cores, its results in the order of the tasks."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from native_reasoning.config.errors import DataError

T = TypeVar("T")
R = TypeVar("R")

#: Each takes about 100 MB.
_MOST = 32
#: Tasks that are handed out before the first result is taken, per process.
_AHEAD = 4
_PARALLEL = "TOKENIZERS_PARALLELISM"
_function: Callable[[Any], Any] | None = None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def in_order(function: Callable[[T], R], tasks: Sequence[T]) -> Generator[R, None, None]:
    """``map`` in forked processes, which have ``function`` and all it refers to as it is now.

    In this process where there is one task or one core, or where processes cannot be forked. An
    exception of the function is raised here. Raises DataError if a process is killed.
    """
    workers = min(cores(), len(tasks), _MOST)
    if workers < 2 or multiprocessing.current_process().daemon:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_start,
        initargs=(function, os.getpid()),
    )
    waiting: deque[Future[R]] = deque()
    try:
        for task in tasks:
            waiting.append(_submit(pool, task))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a process that prepared rows was killed",
            why="most often the machine has no memory left",
            fix="run fewer programs beside it, or fewer processes (taskset -c 0); what is prepared "
            "is kept, so start again",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, task: Any) -> Future[Any]:
    """Hands out a task. The first one forks: tokenizers must not use threads in a fork, and warn
    unless they are told so before."""
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        return pool.submit(_run, task)
    finally:
        if before is None:
            del os.environ[_PARALLEL]
        else:
            os.environ[_PARALLEL] = before


def _start(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone; it would wait for tasks for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(task: Any) -> Any:
    assert _function is not None
    return _function(task)
