"""Rows in token ids, and which rows each optimiser step takes.

The schedule is a pure function of (number of rows, settings, step): no sampler keeps a position, so
a resumed run needs none, and every rank knows the whole step.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from native_reasoning.config.errors import DataError, warn
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data import DataReport, Examples, content_hash, load_examples, with_dropped
from native_reasoning.data.loading import no_usable_row
from native_reasoning.data.rows import PromptGroup
from native_reasoning.data.template import Template
from native_reasoning.data.tokens import examples_of, prepare
from native_reasoning.rollout.noise import ORDER, uniforms

Rows = tuple[int | None, ...]


def read_groups(
    source: Any,
    template: Template,
    config: NRTConfig,
    context: int | None = None,
    keep_columns: bool = False,
    held_out: bool = False,
) -> tuple[Sequence[PromptGroup], DataReport | None]:
    """``make_groups`` of anything that ``load_examples`` reads, or of nothing."""
    if source is None:
        return (), None
    if not isinstance(source, Examples):
        source = load_examples(
            source, **config.columns(held_out=held_out), keep_columns=keep_columns
        )
        if source.report.source.endswith("]") and config.process_index == 0:
            warn(f"the rows are those of {source.report.source}")  # a split that nobody named
    groups, report = make_groups(source, template, config, context)
    for warning in report.warnings() if config.process_index == 0 else ():
        warn(f"warning: {warning}")
    return groups, report


def require(groups: Sequence[PromptGroup], name: str) -> None:
    """Raises DataError if the data set called ``name`` was not given."""
    if not groups:
        raise DataError(f"no {name} was given", why="there is nothing to work on", fix="give one")


def data_hash(groups: Sequence[PromptGroup]) -> str:
    """``content_hash`` of the groups' examples."""
    return content_hash(examples_of(groups))


def make_groups(
    data: Examples, template: Template, config: NRTConfig, context: int | None = None
) -> tuple[Sequence[PromptGroup], DataReport]:
    """Every example in token ids, numbered anew, and the report with what did not fit: the limits
    of ``config``, and the model's ``context`` with a full trace. More than 5,000 examples are read
    from the disk as they are looked at (tokens.py).

    Raises DataError if nothing is left.
    """
    prepared = prepare(data.examples, template)
    around = config.max_trace_length + len(template.boundary.close_ids) + len(template.gap_ids)
    room = math.inf if context is None else context - around
    least = config.max_answer_length if config.resolved_objective().samples_answers else 0
    kept, lines = array("q"), dict[str, list[int]]()
    sizes = zip(prepared.prompt_sizes.tolist(), prepared.answer_sizes.tolist(), strict=True)
    for row, (prompt, answer) in enumerate(sizes):
        if reason := _misfit(prompt, answer, config, least, room):
            lines.setdefault(reason, []).append(data.examples[row].line)
        else:
            kept.append(row)
    report = data.report
    for reason, numbers in lines.items():
        report = with_dropped(report, reason, numbers)
    if not kept:
        raise no_usable_row(report)
    return prepared.groups(np.array(kept)), report


def _misfit(prompt: int, answer: int, config: NRTConfig, least: int, room: float) -> str:
    """Why a row of these tokens is left out; "" where it fits: prompt and answer, of which at least
    ``least`` tokens may be sampled, have ``room`` in the model beside a full trace."""
    if prompt < 0:
        return "refused_by_template"
    if prompt > config.max_prompt_length:
        return "too_long_prompt"
    if answer > config.max_answer_length:
        return "too_long_answer"
    return "too_long_for_model" if prompt + max(answer, least) > room else ""


@dataclass(frozen=True)
class PlannedStep:
    """One optimiser step: its ``rows`` (None fills up the last step of an epoch), the step
    ``rollout`` at which its traces are sampled, its place ``minibatch`` in that rollout, and
    whether this is the rollout's first pass over it."""

    rows: Rows
    rollout: int
    minibatch: int
    first_pass: bool

    @property
    def prompts(self) -> int:
        """Real prompts of the step, over all ranks."""
        return sum(row is not None for row in self.rows)


@dataclass(frozen=True)
class Schedule:
    """Rows of every step: each epoch is a permutation of (seed, epoch), cut into mini-batches of
    ``prompts`` rows; ``minibatches`` of them form one rollout, trained on ``passes`` times."""

    rows: int
    prompts: int
    seed: int
    minibatches: int = 1
    passes: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return -(-self.rows // self.prompts) * self.passes

    def step(self, step: int) -> PlannedStep:
        """The plan of optimiser step ``step``, counted from 0."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        window = inside // (self.minibatches * self.passes)
        place = inside - window * self.minibatches * self.passes
        batches = self._window(epoch, window)
        return PlannedStep(
            rows=batches[place % len(batches)],
            rollout=step - place,
            minibatch=place % len(batches),
            first_pass=place < len(batches),
        )

    def rollout(self, step: int) -> list[Rows]:
        """All mini-batches that are sampled at step ``step``, the first of its rollout."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        return self._window(epoch, inside // (self.minibatches * self.passes))

    def _window(self, epoch: int, window: int) -> list[Rows]:
        order: Rows = _permutation(self.rows, self.seed, epoch)
        first = window * self.minibatches * self.prompts
        after = min(first + self.minibatches * self.prompts, self.rows)
        batches = [order[i : i + self.prompts] for i in range(first, after, self.prompts)]
        return [batch + (None,) * (self.prompts - len(batch)) for batch in batches]


def make_schedule(rows: int, args: NRTConfig, ranks: int | None = None) -> Schedule:
    """The schedule of a run over ``rows`` rows, all ranks together: those of this run, or
    ``ranks``."""
    per_rank = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return Schedule(
        rows=rows,
        prompts=per_rank * (ranks or args.world_size),
        seed=args.seed if args.data_seed is None else args.data_seed,
        minibatches=args.steps_per_rollout(),
        passes=args.num_iterations,
    )


def total_steps(schedule: Schedule, args: NRTConfig) -> int:
    """Optimiser steps of a whole run."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * schedule.steps_per_epoch)


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(np.argsort(uniforms(seed, ORDER, epoch, 0, 0, count), kind="stable").tolist())


def rank_share(rows: Sequence[int | None], rank: int, ranks: int, per_device: int) -> list[Rows]:
    """The micro-batches of one rank: ``rows`` dealt out ``per_device`` at a time over the ranks."""
    cuts = [tuple(rows[i : i + per_device]) for i in range(0, len(rows), per_device)]
    return cuts[rank::ranks]


def name_of(source: Any) -> str | None:
    """What config.yaml calls a model or rows, so that --resume reads them again; None where they
    were given as objects."""
    if isinstance(source, Examples):
        return source.report.source
    return str(source) if isinstance(source, str | Path) else None
