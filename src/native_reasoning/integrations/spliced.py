"""NRT on rows of whole sequences, as trainers of other projects keep them: torch alone.

Such a trainer has a batch of R rows ``prompt + response`` and, per token of the response (W, padded
right), the log-probability under the weights that are about to be trained. One prompt is K + 1 of
its rows: K sampled traces with the reference answer behind each, and the answer behind an empty
trace::

    response   z_1 … z_n  </think>  gap  y*_1 … y*_T      n sampled tokens, then what is spliced in
    sampled      1 … 1       1       0     0  …  0        an open trace has its tag spliced in: 0

``gather`` reads l, b and log π(z) off the rows as ``Scores``, ``credit`` asks an ``Objective`` what
they are worth and lays A and w out as one weight per token, and ``spliced_loss`` is the loss of
these weights. The mathematics is that of credit.py and losses.py.

The decision to end the turn in place of closing the trace was sampled too, but the tag stands where
it stood: in rows like these it has no log-probability, and gets no policy gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.objective.credit import Objective
from native_reasoning.objective.losses import RATIOS, token_shares
from native_reasoning.objective.types import Judgement, Scores, Signal

# -- One row ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where the parts of a response are, and what is known of its trace.

    The first ``sampled`` tokens were sampled, ``tag`` tokens of a closing tag that had to be
    spliced in follow, the ``answer`` tokens of y* begin at ``first``. ``length`` is the trace's
    without its tag, ``closed`` whether it closed itself, ``empty`` whether it is the prompt's empty
    trace, of which nothing was sampled.

    ``z z </think> gap y* y*`` is ``Layout(sampled=3, tag=0, first=4, answer=2, length=2,
    closed=True)``.
    """

    sampled: int
    tag: int
    first: int
    answer: int
    length: int
    closed: bool
    empty: bool = False

    @property
    def answered(self) -> slice:
        """Where the answer stands."""
        return slice(self.first, self.first + self.answer)


@dataclass(frozen=True)
class Spliced:
    """A response in ids, with its layout."""

    ids: tuple[int, ...]
    layout: Layout

    @property
    def sampled(self) -> list[int]:
        """1 for each token that was sampled, 0 for each that was spliced in."""
        return [int(i < self.layout.sampled) for i in range(len(self.ids))]


def cut(template: Template, ids: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """A trace up to what stopped it, and the name of that: "closed" (the tag stays), "ended" (the
    end-of-turn token goes, because the tag is spliced in there) or "limit"."""
    seen: list[int] = []
    for token in ids:
        seen.append(token)
        stopped = template.stop_trace(seen)
        if stopped is not None:
            return tuple(seen[:-1] if stopped == "ended" else seen), stopped
    return tuple(seen), "limit"


def splice(template: Template, group: PromptGroup, trace: Sequence[int], closed: bool) -> Spliced:
    """The response of a trace that ``cut`` made: tag where it is missing, gap, answer."""
    before = template.answer_prompt((), trace, closed)
    tag = 0 if closed else len(template.boundary.close_ids)
    (length,) = template.trace_lengths(Traces(ids=(tuple(trace),), closed=(closed,)))
    layout = Layout(len(trace), tag, len(before), len(group.answer_ids), length, closed)
    return Spliced((*before, *group.answer_ids), layout)


def splice_nothing(template: Template, group: PromptGroup) -> Spliced:
    """The response of the empty trace, from which b is read."""
    trace = template.empty_trace()
    spliced = splice(template, group, trace, closed=True)
    layout = replace(spliced.layout, sampled=0, tag=len(trace), length=0, empty=True)
    return replace(spliced, layout=layout)


# -- Many rows to Scores ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SplicedRows:
    """A batch: ``logps`` (R, W) log π of the response's tokens, ``layouts`` and the name of the
    prompt, ``groups``, of each row. A row without a layout only fills up the batch. ``reference``
    (R, W) is log π_0 under the first policy, where it is known."""

    logps: Tensor
    layouts: Sequence[Layout | None]
    groups: Sequence[str]
    reference: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Gathered:
    """One prompt: ``traces`` are the layouts of its K traces by row, ``empty`` is the row of its
    empty trace."""

    traces: Mapping[int, Layout]
    empty: int
    scores: Scores


def gather(rows: SplicedRows, rounding: float) -> list[Gathered]:
    """The scores of each prompt that has its empty trace and at least one other, without
    gradients."""
    places: dict[str, dict[int, Layout]] = {}
    for i, (name, layout) in enumerate(zip(rows.groups, rows.layouts, strict=True)):
        if layout is not None:
            places.setdefault(name, {})[i] = layout
    out = []
    for members in places.values():
        empty = next((i for i, layout in members.items() if layout.empty), None)
        traces = {i: layout for i, layout in members.items() if not layout.empty}
        if empty is not None and traces:
            without = (empty, members[empty].answered)
            out.append(Gathered(traces, empty, _scores(rows, traces, without, rounding)))
    return out


def _scores(
    rows: SplicedRows, traces: Mapping[int, Layout], without: tuple[int, slice], rounding: float
) -> Scores:
    """``without`` is where the answer stands behind the empty trace."""
    logps, layouts, index = rows.logps.detach(), list(traces.values()), list(traces)
    sampled = torch.tensor([one.sampled for one in layouts], device=logps.device)
    mask = torch.arange(int(sampled.max()), device=logps.device) < sampled[:, None]

    def of_traces(logps: Tensor) -> Tensor:
        return torch.where(mask, logps[index, : mask.shape[1]], 0)

    frozen = None
    if rows.reference is not None:
        reference = rows.reference.detach()
        frozen = Judgement(reference[without], trace=of_traces(reference))
    forced = [logps[i, at.sampled : at.sampled + at.tag].sum() for i, at in traces.items()]
    return Scores(
        trace=of_traces(logps),
        trace_mask=mask,
        answer=torch.stack([logps[i, at.answered] for i, at in traces.items()]),
        baseline=logps[without],
        forced_tag=torch.stack(forced),
        closed=torch.tensor([one.closed for one in layouts], device=logps.device),
        rounding=rounding,
        trace_length=torch.tensor([one.length for one in layouts], device=logps.device),
        frozen=frozen,
    )


# -- Signals to weights of tokens ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Credit:
    """What an objective makes of a batch.

    ``weights`` (R, W): A, times what its token counts, where a token was sampled; w where the
    answer stands; the coefficient of the format term where a tag was spliced in; else 0.
    ``rewards`` (R,): R_k of each trace, R_base of each empty one, 0 where there is none.
    ``metrics``: means over the batch's prompts, by name.
    """

    weights: Tensor
    rewards: Tensor
    metrics: Mapping[str, float]


def credit(rows: SplicedRows, objective: Objective, rounding: float) -> Credit:
    """Rewards, advantages and answer weights of the batch, from the objective itself."""
    gathered = gather(rows, rounding)
    signals = objective.of_groups([one.scores for one in gathered])
    weights, rewards = torch.zeros_like(rows.logps), rows.logps.new_zeros(len(rows.logps))
    for one, signal in zip(gathered, signals, strict=True):
        share = token_shares(one.scores, objective)
        own = signal.trace_weights
        of_tokens = share * (signal.advantages[:, None] if own is None else own)
        rewards[one.empty] = signal.baseline_reward.to(rewards.dtype)
        for k, (i, at) in enumerate(one.traces.items()):
            rewards[i] = signal.rewards[k].to(rewards.dtype)
            if not signal.kept:
                continue
            weights[i, : at.sampled] = of_tokens[k, : at.sampled].to(weights.dtype)
            weights[i, at.sampled : at.sampled + at.tag] = objective.format_loss_coef
            weights[i, at.answered] = signal.answer_weights[k].to(weights.dtype)
    named = {name for name, layout in zip(rows.groups, rows.layouts, strict=True) if layout}
    return Credit(weights, rewards, _metrics(gathered, signals, len(named)))


def _metrics(
    gathered: Sequence[Gathered], signals: Sequence[Signal], prompts: int
) -> dict[str, float]:
    found = {"dropped_prompts": float(prompts - len(gathered))}
    if not gathered:
        return found

    def mean(values: Sequence[Tensor]) -> float:
        return float(torch.cat([v.double().flatten() for v in values]).mean())

    return found | {
        "reward": mean([s.rewards for s in signals]),
        "baseline_reward": mean([s.baseline_reward for s in signals]),
        "answer_logp": mean([one.scores.answer for one in gathered]),
        "answer_logp_without_trace": mean([one.scores.baseline for one in gathered]),
        "closed": mean([one.scores.closed for one in gathered]),
        "trace_length": mean([one.scores.lengths for one in gathered]),
        "flat": sum(s.flat for s in signals) / len(signals),
    }


# -- The loss --------------------------------------------------------------------------------------


def spliced_loss(
    new: Tensor, old: Tensor, weights: Tensor, sampled: Tensor, settings: ObjectiveSettings
) -> Tensor:
    """(R, W) the loss of each token, to be summed and divided by the number of traces N.

    ``new`` and ``old`` are log π now and when ``weights`` was made, ``sampled`` is True for tokens
    that were sampled: these get the importance ratio, what was spliced in is −w log π.
    """
    of_trace = RATIOS[settings.ratio](new, old, weights, settings)
    return -torch.where(sampled, of_trace, weights * new)
