"""The command ``nrt``: verbs that parse, call the library and print.

stdout is the result, stderr the progress. Exit codes: 0 done, 2 the user can mend it (three lines:
error, why, fix), 128 + n stopped by signal n, 1 a file could not be written, or (with its
traceback) a mistake of ours.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module

from native_reasoning.cli.flags import parse, read_verb
from native_reasoning.config.errors import NativeReasoningError, warn


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    return told(partial(_run, list(sys.argv[1:] if argv is None else argv)))


def told(run: Callable[[], int]) -> int:
    """What ``run`` returns, or the exit code of the error that it ends with, which stderr says."""
    try:
        return run()
    except NativeReasoningError as error:
        warn(f"error: {error}")
        _tell_launcher(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `nrt presets | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        from native_reasoning.records.disk import is_full, unwritten

        if error.filename is None and not is_full(error):
            raise
        refused = NativeReasoningError(
            f"{error.filename}: {error.strerror}",
            why="the system does not let this command read or write it",
            fix="check the path and who may use it",
        )
        known = unwritten(error) if is_full(error) else refused
        warn(f"error: {known}")
        return known.exit_code


def _tell_launcher(error: NativeReasoningError) -> None:
    """torch's agent makes 1 of every exit code of its ranks. Where settings or data are wrong, it
    gets the error in the file that it reads, which recipes/cluster/node.sh looks for."""
    launched = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if launched and isinstance(error, ValueError) and not _may_pass(error):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        with suppress(OSError):  # told already
            get_error_handler().record_exception(error)


def _may_pass(error: BaseException | None) -> bool:
    """Whether an error comes from a network or a hub that another try may reach."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  (httpx's or httpx2's, by version)
        LocalEntryNotFoundError,
    )

    if error is None:
        return False
    away = (ConnectionError, TimeoutError, LocalEntryNotFoundError)
    # the hub's client raises HTTPError where no answer came, HfHubHTTPError for an answer
    unanswered = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)
    return unanswered or isinstance(error, away) or _may_pass(error.__cause__ or error.__context__)


def _run(arguments: list[str]) -> int:
    # on some CPUs it tells each process that imports transformers of a kernel it could fetch
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.stderr.isatty():  # no bars; tqdm reads it when it is imported
        os.environ.setdefault("TQDM_DISABLE", "1")
    verb = read_verb(arguments)
    parsed = parse(verb, arguments[1:]) if verb else None
    if verb is None or parsed is None:  # help or version was printed
        return 0
    module, _, function = verb.module.partition(":")
    run = getattr(import_module(f"native_reasoning.cli.{module}"), function or "run")
    code = run(parsed)
    sys.stdout.flush()
    return code
