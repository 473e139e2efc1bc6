"""What is kept of each step: where its time goes, means that are exact across micro-batches, and
the traces.

A sampler with kernels of its own is compared with the trainer on the tokens that it sampled. For a
token drawn from the sampler's π_s, with d = log π − log π_s under the same weights,

    mismatch_kl    mean of e^d − 1 − d, an estimate of KL(π_s ‖ π) that is never negative (k3)
    mismatch_max   the largest |d|

Both are 0 where the trainer's own model samples, and nothing is logged then. Nothing else reads
what the sampler says: rewards and gradients come from the trainer's weights.
"""

import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.objective.losses import LossTerms, kl_k3
from native_reasoning.objective.rewards import spread
from native_reasoning.objective.types import Scores, Signal, uplift
from native_reasoning.records.folder import TraceRow
from native_reasoning.records.metrics import KINDS, STAGES

#: Tokens below which a trace counts as short.
SHORT = 16
#: A group is narrow where its rewards' standard deviation is under this share of their mean size.
NARROW = 0.05


class Clock:
    """Adds up seconds by stage (``STAGES``); a stage inside another is taken off the outer one.

    On an accelerator work is queued, so a stage is where the queue was waited for, not where the
    work was asked for.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    def _count(self) -> None:
        """What went by since this was called last belongs to the innermost stage."""
        before, self._since = self._since, time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += self._since - before

    def begin(self, name: str) -> None:
        """From here on time belongs to ``name``."""
        self._count()
        self._open.append(name)

    def end(self, name: str) -> None:
        """Ends ``name``, if it is what is running."""
        if self.running == name:
            self._count()
            self._open.pop()

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time inside belongs to ``name``."""
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    @property
    def running(self) -> str | None:
        """The stage that time belongs to now; another thread may ask."""
        return next(iter(self._open[-1:]), None)

    def take(self) -> dict[str, float]:
        """Seconds by stage since this was asked last."""
        taken, self._seconds = self._seconds, dict.fromkeys(STAGES, 0.0)
        return taken


class Meter:
    """Adds up sums and counts of a step; ``means`` gives and forgets them."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, name: str, total: Tensor | float, count: float) -> None:
        """``total`` summed over ``count`` things."""
        cell = self._sums[name]
        cell[0] += float(total)
        cell[1] += count

    def add_group(
        self, group: PromptGroup, traces: Traces, scores: Scores, signal: Signal, template: Template
    ) -> None:
        """The numbers of one group: rewards per trace, nats per answer token, lengths, shares."""
        k, t = scores.answer.shape
        empty = sum(template.is_empty(ids) for ids in traces.ids)
        helped = signal.rewards > signal.baseline_reward if signal.helped is None else signal.helped
        gain = uplift(scores.answer.detach(), scores.baseline.detach())
        self.add("reward", signal.rewards.sum(), k)
        self.add("reward_baseline", signal.baseline_reward, 1)
        self.add("helped", helped.sum(), k)
        self.add("answer_logp", scores.answer.detach().sum() / t, k)
        self.add("uplift", gain.sum() / t, k)
        self.add("trace_length", sum(traces.lengths), k)
        self.add("closed", sum(traces.closed), k)
        self.add("short", sum(length < SHORT for length in traces.lengths), k)
        self.add("trace_entropy", -scores.trace.detach().sum(), float(scores.trace_mask.sum()))
        self.add("empty", empty, k)
        self.add("ended", sum(end is not None for _, end in traces.stops()), k)
        self.add("distinct", len(set(traces.stops())), k)
        self.add("flat_groups", float(signal.flat), 1)
        wide = signal.spread or float(spread(signal.rewards))  # an objective need not say
        narrow = wide < NARROW * float(signal.rewards.abs().mean())
        self.add("narrow_groups", float(signal.flat or narrow), 1)
        self.add("clamped_baseline", signal.clamped, 1)
        self.add("underflow", signal.underflow, 1)
        self.add("kept_groups", float(signal.kept), 1)
        self.add("answer_weight", signal.answer_weights.sum(), k)
        if signal.token_rewards is not None and not signal.flat:
            self._add_kinds(signal.token_rewards.double(), group, template)
        if scores.answer_length is not None:
            assert scores.verdict is not None
            self.add("sampled_correct", scores.verdict.correct.sum(), k)
            self.add("sampled_complete", scores.verdict.complete.sum(), k)
            self.add("sampled_answer_length", scores.answer_length.sum(), k)
        if scores.verdict is not None and scores.verdict.added is not None:
            self.add("added_reward", scores.verdict.added.sum(), k)
        self.add_mismatch(traces, scores)

    def _add_kinds(self, rewards: Tensor, group: PromptGroup, template: Template) -> None:
        """Of token rewards (K, T) the share of each of ``KINDS``: in their sum over the step, and
        in each group's variance over its traces, cov(part, whole) / var(whole), whose shares add up
        to 1 over all kinds."""
        texts = template.token_texts(group.answer_ids)
        space = torch.tensor([not text.strip() for text in texts], device=rewards.device)
        end = torch.zeros_like(space)
        end[-1], space[-1] = True, False
        whole = rewards.sum(-1)
        apart = whole - whole.mean()
        for name, where in zip(KINDS, (end, space), strict=True):
            part = (rewards * where).sum(-1)
            if whole.any():
                self.add(f"reward_share_{name}", part.sum(), float(whole.sum()))
            if apart.any():
                share = (part * apart).sum() / apart.square().sum()
                self.add(f"spread_share_{name}", share, 1)

    def add_mismatch(self, traces: Traces, scores: Scores) -> None:
        """Of one group; nothing where the sampler said nothing of its own. ``scores`` are under the
        weights that sampled and begin with the trace's tokens."""
        said = traces.sampler_logps
        if not any(said):
            return
        assert tuple(map(len, said)) == traces.lengths
        own = torch.cat([scores.trace[k, : len(row)] for k, row in enumerate(said)])
        own = own.detach().double()
        theirs = torch.tensor([logp for row in said for logp in row], dtype=own.dtype).to(own)
        self.add("mismatch_kl", kl_k3(theirs, own).sum(), len(own))
        cell = self._sums["mismatch_max"]
        cell[0] = max(cell[0], float((own - theirs).abs().max()))

    def add_loss(self, terms: LossTerms, weight: float) -> None:
        """The terms, already divided by N: they are added up, not averaged."""
        for name in ("trace", "answer", "format", "kl"):
            term = getattr(terms, name).detach()
            self.add(f"loss_{name}", term * weight, 0)

    def sums(self) -> dict[str, list[float]]:
        """Name -> [sum, count] so far, and a fresh start."""
        taken, self._sums = dict(self._sums), defaultdict(lambda: [0.0, 0.0])
        return taken


def means(parts: list[dict[str, list[float]]]) -> dict[str, float]:
    """Means over the ranks' sums; of a name with count 0 (a loss term) the plain sum, of one that
    ends with ``_max`` the largest."""
    out = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        totals, counts = zip(*(part[name] for part in parts if name in part), strict=True)
        total = max(totals) if name.endswith("_max") else sum(totals)
        out[name] = total / (sum(counts) or 1)
    return out


def trace_rows(
    step: int,
    group: PromptGroup,
    traces: Traces,
    scores: Scores,
    signal: Signal,
    template: Template,
) -> list[TraceRow]:
    """The group's traces as rows of the run folder. ``step`` counts from 1, as in metrics.jsonl.

    With several updates per rollout all of it is from when the trace was sampled.
    """
    tokens = template.token_texts(group.answer_ids)
    baseline = scores.baseline.tolist()
    return [
        TraceRow(
            step=step,
            row_id=group.example.row_id,
            k=k,
            prompt=group.example.question,
            trace=template.text(ids),
            answer=group.example.answer,
            sampled_answer=template.text(traces.answered()[k]),
            closed=traces.closed[k],
            ended=end is not None,
            length=traces.lengths[k],
            reward=signal.rewards[k].item(),
            baseline_reward=signal.baseline_reward.item(),
            advantage=signal.advantages[k].item(),
            answer_logps=scores.answer[k].tolist(),
            baseline_logps=baseline,
            answer_tokens=tokens,
        )
        for k, (ids, end) in enumerate(traces.stops())
    ]
