"""Random groups of scores with everything that any objective may ask for."""

import torch

from native_reasoning.objective.types import Judgement, Scores, Verdict


def full_scores(k=6, t=4, length=5, *, deep=3.0, dtype=torch.float32, seed=0) -> Scores:
    """A group of ``k`` traces of 0 to ``length`` tokens, then their tag or not, then an answer.

    Log-probabilities go down to −``deep``. The last trace is open, the first is empty (its answer
    is scored as the baseline), the second one's sampled answer is malformed.
    """
    random = torch.Generator().manual_seed(seed)

    def logps(*shape):
        return -deep * torch.rand(*shape, generator=random, dtype=torch.float64).to(dtype)

    lengths = torch.arange(k) % (length + 1)
    closed = torch.ones(k, dtype=torch.bool)
    closed[-1] = False
    answered = torch.where(closed, 3, 0)
    total = lengths + closed + answered
    mask = torch.arange(length + 4) < total[:, None]
    answer, baseline = logps(k, t), logps(t)
    answer[0] = baseline
    complete = closed.clone()
    complete[1:2] = False
    verdict = Verdict(
        complete=complete,
        correct=torch.arange(k) == 2,
        repetitive=torch.arange(k) == 3,
        added=logps(k),
    )
    trace = logps(k, length + 4) * mask
    return Scores(
        trace=trace,
        trace_mask=mask,
        answer=answer,
        baseline=baseline,
        forced_tag=torch.where(closed, 0, logps(k)),
        closed=closed,
        rounding={torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3}[dtype],
        trace_length=lengths,
        answer_length=answered,
        verdict=verdict,
        frozen=Judgement(logps(t), trace=logps(k, length + 4) * mask),
        ema=Judgement(logps(t), answer=logps(k, t)),
    )
