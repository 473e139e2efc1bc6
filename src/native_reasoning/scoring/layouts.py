"""Four ways to lay the rows of a prompt out in a forward, and which costs least.

``shared``: the prompt once, its cache for each row, rows padded to the longest.
``packed``: prompt and rows one after the other in one long row, under a mask that lets each row see
the prompt and itself. Nothing is padded, no cache is needed (activation checkpointing forbids one),
but attention looks at the square of the whole.
``rows``: prompt and row, for each row; prompts are padded on the left.
``right``: the same with all padding at the end, where a causal model cannot see it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAYOUTS = ("shared", "packed", "rows", "right")

#: How much longer attention is taken to be under a mask of its own than without; what the choices
#: that follow from it cost is measured by benchmarks/layouts/run.py.
MASKED = 2.0


@dataclass(frozen=True, eq=False)
class LongRows:
    """One long row for each group, (G, P + L): ``ids``, ``at`` (positions, those of a row going on
    from the prompt's), and ``owner``: 0 for the prompt, 1 + r for row r, −1 for padding.
    ``place`` (R, S) is where each suffix position stands in the flattened rows."""

    ids: Tensor
    at: Tensor
    owner: Tensor
    place: Tensor

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What each position must not see, to be added to attention scores (G, 1, L, L): other
        rows, padding, what comes later, and what lies ``window`` tokens back."""
        owner, distance = self.owner, self.at[:, :, None] - self.at[:, None, :]
        mine = (owner[:, None, :] == 0) | (owner[:, :, None] == owner[:, None, :])
        seen = mine & (owner[:, None, :] >= 0) & (distance >= 0)
        seen = seen if window is None else seen & (distance < window)
        seen |= torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)  # padding: itself
        zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return zeros.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def long_rows(
    prompts: Sequence[Sequence[int]], rows: Sequence[tuple[int, Sequence[int]]]
) -> LongRows:
    """``rows`` are (group, suffix ids); each group's rows follow its prompt."""
    mine: list[list[int]] = [[] for _ in prompts]
    for r, (g, _) in enumerate(rows):
        mine[g].append(r)
    width = max(
        len(prompt) + sum(len(rows[r][1]) for r in own)
        for prompt, own in zip(prompts, mine, strict=True)
    )
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    at, owner = torch.zeros_like(ids), torch.full_like(ids, -1)
    place = torch.zeros(len(rows), max(len(suffix) for _, suffix in rows), dtype=torch.long)
    for g, (prompt, own) in enumerate(zip(prompts, mine, strict=True)):
        end = len(prompt)
        ids[g, :end] = torch.tensor(prompt, dtype=torch.long)
        at[g, :end], owner[g, :end] = torch.arange(end), 0
        for r in own:
            suffix = rows[r][1]
            start, end = end, end + len(suffix)
            ids[g, start:end] = torch.tensor(suffix)
            at[g, start:end] = torch.arange(len(prompt), len(prompt) + len(suffix))
            owner[g, start:end] = 1 + r
            place[r, : len(suffix)] = torch.arange(g * width + start, g * width + end)
    return LongRows(ids, at, owner, place)


def cheapest(
    allowed: Sequence[str],
    prompts: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, Sequence[int]]],
    hidden: int,
) -> str:
    """The layout with the least work: multiplications with a layer's weights, about 12 H² for each
    token, and attention, 2 H for each pair of positions."""
    groups, count = len(prompts), len(rows)
    prompt = max(map(len, prompts))
    suffix = max(len(ids) for _, ids in rows)
    own = [0] * groups
    for g, ids in rows:
        own[g] += len(ids)
    long = max(len(p) + n for p, n in zip(prompts, own, strict=True))
    work = {
        "shared": (groups * prompt + count * suffix, groups * prompt**2 / 2
                   + count * suffix * (prompt + suffix)),
        "packed": (groups * long, MASKED * groups * long**2),
        "rows": (count * (prompt + suffix), count * (prompt + suffix) ** 2 / 2),
    }  # fmt: skip
    work["right"] = work["rows"]
    return min(allowed, key=lambda name: 12 * hidden * work[name][0] + 2 * work[name][1])
