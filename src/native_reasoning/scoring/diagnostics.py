"""Do traces say something about their question? Asked every so often, of one trace per prompt.

σ shifts the traces cyclically over the distinct prompts of a step. Two rows without gradient per
prompt, its own trace and another prompt's, and one with none give

    specificity        mean of (1/T) Σ_i (l_i − l^σ_i) over prompts with a trace that is not empty
    trace dependence   mean of (1/|z|) [log π(z | its own prompt) − log π(z | another prompt)]
    leakage            share of the answer's tokens that stand in the trace, as part of n tokens
                       in a row that the prompt does not have, less the same with another's trace

l_i = log π(y*_i | x, z, y*_<i), with b_i after the empty trace; nats. docs/diagnostics.md says what
the numbers mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.model.forward import inference
from native_reasoning.objective.types import Scores, uplift
from native_reasoning.rollout.window import MicroBatch
from native_reasoning.scoring.scorer import Scorer

#: Difficulty of an answer token by exp(b), its probability after no trace: upper edges.
BINS = {"hard": 0.1, "middle": 0.5, "easy": math.inf}
#: Tokens in a row that count as taken over; answers shorter than this never count as leaked.
RUN = 5


@dataclass(frozen=True)
class Finding:
    """Of one prompt with a trace of its own and another prompt's. All in nats per token.

    ``specificity`` is None for an empty trace, ``dependence`` where the other's is empty.
    ``leak`` (own, other's) is None for answers under ``RUN`` tokens; ``clean_uplift``, l − b over
    the tokens that are not taken over, is None where none is left. ``bins`` has for each of
    ``BINS`` the tokens, Σ (l − l^σ) and Σ (l − b).
    """

    specificity: float | None
    dependence: float | None
    leak: tuple[float, float] | None
    clean_uplift: float | None
    bins: tuple[tuple[int, float, float], ...]


def diagnose(minibatch: Sequence[MicroBatch], scorer: Scorer, model: nn.Module) -> list[Finding]:
    """What the first trace of each distinct prompt of a step does for it, and another's.

    [] where all prompts are the same. A prompt with a log-probability that is not finite has no
    finding. Every rank forwards once per micro-batch, so all of them can take part.
    """
    pairs = [pair for micro in minibatch for pair in micro.pairs if pair[0].weight]
    first: dict[tuple[int, ...], Traces] = {}
    for group, traces in pairs:
        first.setdefault(group.prompt_ids, traces)
    prompts = list(first)
    others = dict(zip(prompts, prompts[1:] + prompts[:1], strict=True))
    found: dict[tuple[int, ...], tuple[PromptGroup, Traces, Scores]] = {}
    for micro in minibatch:
        asked = []
        for group, traces in micro.pairs:
            other = first.get(others.get(group.prompt_ids, ()), traces)
            asked.append((group, _two(traces, other)))
        with inference(model):
            scores = scorer.of_pairs(model, asked)
        for (group, two), score in zip(asked, scores, strict=True):
            if group.weight:
                found.setdefault(group.prompt_ids, (group, two, score))
    if len(found) < 2:
        return []
    finite = {prompt for prompt in prompts if _is_finite(found[prompt][2])}
    return [
        _finding(*found[prompt], own=found[others[prompt]][2], template=scorer.template)
        for prompt in prompts
        if {prompt, others[prompt]} <= finite
    ]


def _is_finite(scores: Scores) -> bool:
    parts = (scores.answer, scores.trace, scores.baseline)
    return all(bool(part.isfinite().all()) for part in parts)


def _two(own: Traces, other: Traces) -> Traces:
    """The first trace of each."""
    return Traces(
        ids=(own.ids[0], other.ids[0]),
        closed=(own.closed[0], other.closed[0]),
        ended=(own.stops()[0][1], other.stops()[0][1]),
    )


def _finding(
    group: PromptGroup, two: Traces, scores: Scores, *, own: Scores, template: Template
) -> Finding:
    """``own``: the scores of the other prompt, whose first trace is this one's second."""
    gain = (scores.answer[0] - scores.answer[1]).tolist()
    lifted = uplift(scores.answer[0], scores.baseline).tolist()
    empty = [template.is_empty(ids) for ids in two.ids]
    length = int(scores.trace_mask[1].sum())
    dependence = None
    if length and not empty[1]:
        dependence = float(own.trace[0].sum() - scores.trace[1].sum()) / length
    answer, prompt = (_pieces(template, ids) for ids in (group.answer_ids[:-1], group.prompt_ids))
    taken = [taken_over(answer, _pieces(template, ids), prompt) for ids in two.ids]
    clean = [value for value, hit in zip(lifted, taken[0], strict=False) if not hit]
    shares = [sum(hits) / max(len(hits), 1) for hits in taken]
    return Finding(
        specificity=None if empty[0] else sum(gain) / len(gain),
        dependence=dependence,
        leak=(shares[0], shares[1]) if len(answer) >= RUN else None,
        clean_uplift=sum(clean) / len(clean) if clean else None,
        bins=_binned(scores.baseline.exp().tolist(), gain, lifted),
    )


def _pieces(template: Template, ids: Sequence[int]) -> list[str]:
    return [text.strip().lower() for text in template.token_texts(ids)]


def taken_over(answer: Sequence[str], trace: Sequence[str], prompt: Sequence[str]) -> list[bool]:
    """For each piece of the answer, whether it is part of min(``RUN``, T) pieces in a row that the
    trace has and the prompt has not.

    >>> taken_over(["4", "2"], ["so", "4", "2"], ["6", "*", "7"])
    [True, True]
    """
    n = min(RUN, len(answer))
    fresh = _runs(trace, n) - _runs(prompt, n)
    hits = [False] * len(answer)
    for i in range(len(answer) - n + 1):
        if tuple(answer[i : i + n]) in fresh:
            hits[i : i + n] = [True] * n
    return hits


def _runs(pieces: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(pieces[i : i + n]) for i in range(len(pieces) - n + 1)}


def _binned(
    probabilities: Sequence[float], gain: Sequence[float], lifted: Sequence[float]
) -> tuple[tuple[int, float, float], ...]:
    cells: dict[str, tuple[int, float, float]] = dict.fromkeys(BINS, (0, 0.0, 0.0))
    for p, of_trace, of_any in zip(probabilities, gain, lifted, strict=True):
        name = next(name for name, edge in BINS.items() if p < edge)
        count, a, b = cells[name]
        cells[name] = (count + 1, a + of_trace, b + of_any)
    return tuple(cells.values())


def summary(findings: Sequence[Finding]) -> dict[str, float]:
    """Metrics of the findings of all ranks; a name is absent where nothing could be measured.

    ``specificity_se`` is the standard error of its mean over prompts. ``gain_hard`` (and so on) is
    the mean of l − l^σ over the answer tokens of a bin, ``uplift_hard`` of l − b, which has
    regression to the mean: tokens are in the bin because b was low.
    """
    leaks = [f.leak for f in findings if f.leak is not None]
    values: dict[str, list[float | None]] = {
        "specificity": [f.specificity for f in findings],
        "trace_dependence": [f.dependence for f in findings],
        "leakage": [own - other for own, other in leaks],
        "restated": [float(own == 1) for own, _ in leaks],
        "clean_uplift": [f.clean_uplift for f in findings],
    }
    out: dict[str, float] = {}
    for name, found in values.items():
        known = [value for value in found if value is not None]
        if not known:
            continue
        out[name] = mean = sum(known) / len(known)
        if name == "specificity" and len(known) > 1:
            spread = sum((x - mean) ** 2 for x in known) / (len(known) - 1)
            out["specificity_se"] = math.sqrt(spread / len(known))
    for i, name in enumerate(BINS):
        count = sum(f.bins[i][0] for f in findings)
        if count:
            out[f"gain_{name}"] = sum(f.bins[i][1] for f in findings) / count
            out[f"uplift_{name}"] = sum(f.bins[i][2] for f in findings) / count
    return out
