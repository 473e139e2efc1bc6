"""Scores read off the sampler's own caches, while it samples.

A trace is scored the moment it is whole: its closing tag and the reference answer are fed to a copy
of its cache (once its row has left the batch, a sliding window would count the empty places). The
log-probabilities of the trace itself were known when it was drawn. So a rollout that has to be
scored before it is trained on (several updates, or groups that are trained on in parts) costs a few
answer tokens per trace, and no second forward over prompts and traces.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.model.forward import right_pad
from native_reasoning.objective.types import Scores
from native_reasoning.rollout.decoders import SharedDecoder
from native_reasoning.rollout.engine import Sample
from native_reasoning.scoring.head import Choice, chosen_logps


class Rater:
    """Looks on while K traces of each of these groups are sampled, and scores them.

    ``temperature`` is the sampler's; the answer is scored at 1. ``scores`` gives the result.
    """

    def __init__(
        self,
        groups: Sequence[PromptGroup],
        copies: int,
        template: Template,
        temperature: float,
        rounding: float,
    ) -> None:
        self.groups, self.copies, self.template = groups, copies, template
        self.temperature, self.rounding = temperature, rounding
        rows = len(groups) * copies
        self._drawn: list[tuple[Sequence[int], Tensor]] = []
        self._answer: list[Tensor | None] = [None] * rows
        self._tag: list[Tensor | None] = [None] * rows
        self._baseline: list[Tensor] = []

    # -- looking on (rollout.hf.Watcher) -----------------------------------------------------------

    def begins(self, decoder: SharedDecoder) -> None:
        """Scores every group's answer after its empty trace."""
        branch, _ = decoder.branch([g * self.copies for g in range(len(self.groups))])
        heads = [[*self.template.empty_trace(), *self.template.gap_ids]] * len(self.groups)
        for _, answer in self._after(branch, heads, [0] * len(heads), [*range(len(heads))]):
            self._baseline.append(answer)

    def drew(self, which: Sequence[int], logps: Tensor) -> None:
        """Keeps the log-probability of each token that was drawn."""
        self._drawn.append((which, logps))

    def finished(
        self,
        decoder: SharedDecoder,
        rows: Sequence[int],
        which: Sequence[int],
        samples: Sequence[Sample],
    ) -> None:
        """Scores the tags that have to be spliced in, and the answers."""
        close, gap = self.template.boundary.close_ids, self.template.gap_ids
        heads, forced, by_row = [], [], dict(zip(rows, range(len(rows)), strict=True))
        for sample in samples:
            last = () if sample.stopped == "ended" else sample.ids[-1:]
            tag = () if sample.stopped == "closed" else close
            heads.append([*last, *tag, *gap])
            forced.append(len(tag))
        branch, places = decoder.branch(rows)
        order = [by_row[place] for place in places]  # a row that fills up is scored again
        found = self._after(
            branch,
            [heads[i] for i in order],
            [forced[i] for i in order],
            [which[i] // self.copies for i in order],
        )
        for i, (tags, answer) in zip(order, found, strict=True):
            first = tags.new_zeros(())
            if samples[i].stopped == "ended":  # the tag stands where the end of turn was drawn
                first = self._of_logits(decoder.logits[rows[i]], close[0])
            self._answer[which[i]], self._tag[which[i]] = answer, tags.sum() + first

    def _of_logits(self, logits: Tensor, token: int) -> Tensor:
        logits = logits[: self.template.vocabulary]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        return logits[token] - logits.logsumexp(-1)

    def _after(
        self,
        decoder: SharedDecoder,
        heads: Sequence[Sequence[int]],
        forced: Sequence[int],
        groups: Sequence[int],
    ) -> list[tuple[Tensor, Tensor]]:
        """For each row of ``decoder``, log π of the forced tag's tokens that follow another token
        of ``heads`` (its last ``forced`` before the gap), and of its group's answer (T,)."""
        answers = [self.groups[g].answer_ids for g in groups]
        rows = [[*head, *answer[:-1]] for head, answer in zip(heads, answers, strict=True)]
        hidden = decoder.forward(right_pad(rows, decoder.lengths.device))
        gap, at, token, tempered, cuts = len(self.template.gap_ids), [], [], [], []
        width = hidden.shape[1]
        for r, (head, tag, answer) in enumerate(zip(heads, forced, answers, strict=True)):
            first = max(len(head) - gap - tag, 1)  # the first token has nothing before it here
            tags = range(first, len(head) - gap) if tag else range(0)
            places = [*(t - 1 for t in tags), *range(len(head) - 1, len(head) - 1 + len(answer))]
            at += [r * width + place for place in places]
            token += [*(head[t] for t in tags), *answer]
            tempered += [True] * len(tags) + [False] * len(answer)
            cuts += [len(tags), len(answer)]
        head_module = decoder.model.get_output_embeddings()
        assert isinstance(head_module, nn.Module)
        warm = torch.tensor(tempered, dtype=torch.float64)
        chosen = Choice(
            at=torch.arange(len(at), device=hidden.device),
            token=torch.tensor(token, device=hidden.device),
            vocabulary=self.template.vocabulary,
            scale=(warm / self.temperature + (1 - warm)).to(hidden.device),
        )
        states = hidden.flatten(0, 1)[torch.tensor(at, device=hidden.device)]
        parts = chosen_logps(states, head_module, chosen).split(cuts)
        return list(zip(parts[::2], parts[1::2], strict=True))

    # -- the result --------------------------------------------------------------------------------

    def scores(self, traces: Sequence[Traces]) -> list[Scores]:
        """The scores of each group, whose traces are ``traces``."""
        out, device = [], self._drawn[0][1].device
        drawn = self._drawn[0][1].new_zeros(len(self._answer), len(self._drawn))
        for t, (which, logps) in enumerate(self._drawn):
            drawn[[*which], t] = logps
        for g, sampled in enumerate(traces):
            rows = slice(g * self.copies, (g + 1) * self.copies)
            answers, tags = self._answer[rows], self._tag[rows]
            lengths = torch.tensor(sampled.lengths, device=device)
            out.append(
                Scores(
                    trace=drawn[rows, : max(sampled.lengths)],
                    trace_mask=torch.arange(max(sampled.lengths), device=device) < lengths[:, None],
                    answer=torch.stack([a for a in answers if a is not None]),
                    baseline=self._baseline[g],
                    forced_tag=torch.stack([t for t in tags if t is not None]),
                    closed=torch.tensor(sampled.closed, device=device),
                    rounding=self.rounding,
                    trace_length=torch.tensor(self.template.trace_lengths(sampled), device=device),
                )
            )
        return out
