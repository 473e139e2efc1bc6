"""How much is forwarded at once, and what becomes of it when memory runs out."""

import sys

from accelerate.utils.memory import should_reduce_batch_size

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig, sharded
from native_reasoning.rollout.hf import HFEngine


class Limits:
    """``rows``: most traces in one training forward, None for all of a micro-batch; and
    ``engine.batch_size``, the prompts sampled at once.

    They start as the settings say, are halved when memory runs out, and are part of every
    checkpoint, so that a resumed run computes in the same shapes. Errors come as text: as objects
    they would keep alive what the failed forward had allocated.
    """

    def __init__(self, args: NRTConfig, engine: HFEngine) -> None:
        self.rows, self.engine = args.rows_per_forward, engine
        self.splitting = not sharded(args)  # all ranks make as many forwards where weights are cut
        sampled = args.resolved_objective().traces == "sampled"
        self.traces = args.num_generations if sampled else 1

    def splits(self, prompts: int) -> bool:
        """Whether a micro-batch of that many prompts is trained on in parts."""
        return self.rows is not None and self.rows < prompts * self.traces

    def fewer_rows(self, rows: int, ranks: int, message: str) -> None:
        """Halves the rows of a forward that did not fit, and says so.

        Raises RunError with several ``ranks``, whose backwards belong together, or at one row.
        """
        tried = rows if self.rows is None else min(self.rows, rows)
        if ranks > 1 or tried <= 1:
            raise RunError(
                f"out of memory with {tried} traces in a forward: {_first_line(message)}",
                why="one rank alone cannot begin the step again"
                if ranks > 1
                else "it is the least",
                fix=(f"--rows-per-forward {tried // 2}, " if tried > 1 else "")
                + "--activation-checkpointing true, or a smaller --max-trace-length",
            )
        self.rows = tried // 2
        print(
            f"warning: out of memory with {tried} traces in a forward; the step begins again with "
            f"{self.rows} (--rows-per-forward {self.rows} starts with that)",
            file=sys.stderr,
            flush=True,
        )

    def fewer_prompts(self, prompts: int, message: str) -> None:
        """Halves the prompts that are sampled at once. Raises RunError at one prompt."""
        engine = self.engine
        tried = min(engine.batch_size or prompts, prompts)
        if tried <= 1:
            raise RunError(
                f"out of memory sampling {self.traces} traces of one prompt: "
                + _first_line(message),
                why="a prompt's traces are sampled together",
                fix="a smaller --max-trace-length or --num-generations",
            )
        engine.batch_size = tried // 2
        print(
            f"warning: out of memory with {tried} prompts sampled at once; going on with "
            f"{engine.batch_size} (--rollout-batch-size {engine.batch_size} starts with that)",
            file=sys.stderr,
            flush=True,
        )

    def state(self) -> dict[str, int | None]:
        """What a checkpoint holds."""
        return {"rows": self.rows, "prompts": self.engine.batch_size}

    def restore(self, state: dict[str, int | None]) -> None:
        """The smaller of what fitted then and what is asked for now."""
        self.rows = _smaller(self.rows, state["rows"] if self.splitting else None)
        self.engine.batch_size = _smaller(self.engine.batch_size, state["prompts"])


def out_of_memory(error: RuntimeError) -> str:
    """What an out-of-memory error says; any other error is raised again."""
    if not should_reduce_batch_size(error):
        raise error
    return str(error)


def _smaller(one: int | None, other: int | None) -> int | None:
    return min((n for n in (one, other) if n is not None), default=None)


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0]
