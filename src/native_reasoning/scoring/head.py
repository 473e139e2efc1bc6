"""Log-probabilities of chosen tokens from hidden states, without the logits of a whole vocabulary.

    log π(v | h) = (h · W_v + b_v) / T − log Σ_u exp((h · W_u + b_u) / T)

The sum runs over pieces of the vocabulary, so that no more than ``PIECE`` bytes of logits exist at
a time. The first ``KEPT`` bytes of them are kept for the backward pass, which computes the others
again. With n positions that is up to a quarter more work in the head than keeping n·V logits, which
for 16,000 positions of a 150,000-token vocabulary would be 10 GB, three times over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from native_reasoning.model.adapters import linear_parts
from native_reasoning.model.forward import inference

#: Bytes of logits that exist at a time, by kind of device: on a CPU what its caches hold.
PIECE = {"cpu": 2**22, "other": 2**29}
#: Bytes of logits that a forward keeps for its backward.
KEPT = {"cpu": 2**26, "other": 2**29}
#: Rows of a piece: the fewer blocks of rows, the fewer sums in the gradient of the weights.
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Choice:
    """Which log-probabilities are wanted: of token ``token[m]`` at position ``at[m]``, both (M,).

    ``scale`` (N,) is one over each position's temperature, None means 1. Ids from ``vocabulary`` on
    are padding of the table: their probability is 0. ``trained`` (n,): the only rows of the weights
    that have a gradient, where they are trained apart (inplace.py).
    """

    at: Tensor
    token: Tensor
    vocabulary: int
    scale: Tensor | None = None
    trained: Tensor | None = None


def chosen_logps(hidden: Tensor, head: nn.Module, choice: Choice) -> Tensor:
    """log π (M,) of the chosen tokens, in at least float32, from ``hidden`` (N, H)."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    parts, scale = linear_parts(head), choice.scale
    assert parts is not None, head
    choice = replace(choice, trained=parts.ids)
    if scale is not None:
        scale = scale.to(torch.promote_types(hidden.dtype, torch.float32))
    backward = torch.is_grad_enabled()  # inside a Function it never is
    with torch.autocast(kind, enabled=False):
        found = _ChosenLogps.apply(
            hidden, parts.weight, parts.bias, parts.rows, scale, choice, backward
        )
    assert isinstance(found, Tensor)
    return found


def logps_inside(head: nn.Module, hidden: Tensor, choice: Choice) -> Tensor:
    """``chosen_logps`` in the place of the head's own forward: where the weights are cut among
    ranks, the hooks around that forward make them whole, and only there."""
    before = vars(head).get("forward")
    head.forward = lambda states: chosen_logps(states, head, choice)
    try:
        return head(hidden)
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before


def direct_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its last hidden states times its head's weights, and nothing
    more: no soft cap, no scaling, no adapter on the head. Tried out on a few tokens."""
    head = model.get_output_embeddings()
    parts = linear_parts(head)
    if not isinstance(head, nn.Module) or parts is None or not parts.weight.is_floating_point():
        return False

    def trial() -> bool:
        ids = torch.arange(3, 9, device=model.device)[None] % len(parts.weight)
        hidden = model.base_model(input_ids=ids, use_cache=False)[0]
        # large, so that a soft cap shows
        with head.register_forward_pre_hook(lambda module, args: (100 * args[0],)):
            logits, again = model(input_ids=ids, use_cache=False).logits, head(hidden)
        return _near(logits, again)

    return _tried(model, trial)


def takes_embeddings(model: PreTrainedModel) -> bool:
    """Whether the model makes of embeddings what it makes of their ids: some look up more for each
    id than its embedding."""

    def trial() -> bool:
        embed = model.get_input_embeddings()
        table = embed.weight
        assert isinstance(table, Tensor)
        ids = torch.arange(3, 5, device=model.device)[None] % len(table)
        # embeddings that are no rows of the table: some models search it for their ids
        with embed.register_forward_hook(lambda module, args, out: out.mul(1.5)):
            whole = model.base_model(input_ids=ids, use_cache=False)[0]
            again = model.base_model(inputs_embeds=embed(ids), use_cache=False)[0]
        return _near(whole, again)

    return _tried(model, trial)


def _tried(model: nn.Module, trial: Callable[[], bool]) -> bool:
    """What ``trial`` says of the model in eval mode; False where its code refuses."""
    with inference(model):
        try:
            return trial()
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return False


def _near(one: Tensor, other: Tensor) -> bool:
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max())


class _ChosenLogps(torch.autograd.Function):
    """See ``chosen_logps``. Backward, with p the softmax and g the incoming gradient::

    dh = Σ_m g_m (W_token − Σ_v p_v W_v) / T,    dW_v = Σ_m g_m (1[v = token] − p_v) h / T
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        scale: Tensor | None,
        choice: Choice,
        backward: bool,
    ) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        top = hidden.new_full((len(hidden),), -torch.inf, dtype=exact)
        total, picked = torch.zeros_like(top), top.new_zeros(len(choice.at))
        pieces = _pieces(hidden, choice)
        slots = _slots(pieces, top) if backward and any(ctx.needs_input_grad) else []
        kept: list[Tensor] = []
        for piece, slot in zip_longest(pieces, slots):
            part = piece.rows
            logits = _logits(hidden, weight, bias, scale, piece)
            picked[piece.wanted] = logits[piece.place]
            highest = torch.maximum(top[part], logits.amax(-1))
            logits.sub_(highest[:, None])
            powers = torch.exp(logits, out=logits if slot is None else slot)
            total[part] = total[part] * (top[part] - highest).exp() + powers.sum(-1)
            top[part] = highest
            if slot is not None:
                kept += [powers, highest]
        norm = top + total.log()
        ctx.choice = choice
        ctx.save_for_backward(hidden, weight, bias, rows, scale, norm, *kept)
        return picked - norm[choice.at]  # of the same logits: in 16 bits others round otherwise

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        hidden, weight, bias, trained, scale, norm, *kept = ctx.saved_tensors
        (g,), choice = incoming, ctx.choice
        pull = norm.new_zeros(len(hidden)).index_add_(0, choice.at, g)  # of each softmax
        pull, push = (pull, g) if scale is None else (pull * scale, g * scale[choice.at])
        d_hidden = hidden.new_zeros(hidden.shape, dtype=norm.dtype)
        d_weight = weight.new_empty(weight.shape) if ctx.needs_input_grad[1] else None
        d_bias = None if bias is None else torch.zeros_like(bias)
        d_trained = None if trained is None else torch.zeros_like(trained)
        for i, piece in enumerate(_pieces(hidden, choice)):
            rows, columns = piece.rows, piece.columns
            if 2 * i < len(kept):
                powers, highest = kept[2 * i : 2 * i + 2]
                p = powers * ((highest - norm[rows]).exp() * -pull[rows])[:, None]
            else:
                logits = _logits(hidden, weight, bias, scale, piece)
                p = logits.sub_(norm[rows, None]).exp_().mul_(-pull[rows, None])
            # before p is rounded: 1 − p is small
            p.index_put_(piece.place, push[piece.wanted], accumulate=True)
            if d_bias is not None:
                d_bias[columns] += p.sum(0)
            if d_trained is not None:
                _add_rows(d_trained, choice.trained, p, hidden, piece)
            p = p.to(hidden.dtype)
            d_hidden[rows] += p @ weight[columns].to(p.dtype)
            if d_weight is not None:
                _add_product(d_weight[columns], p, hidden[rows], first=rows.start == 0)
        if d_weight is not None:
            d_weight[choice.vocabulary :] = 0
        return d_hidden.to(hidden.dtype), d_weight, d_bias, d_trained, None, None, None


def _add_product(d_part: Tensor, p: Tensor, hidden: Tensor, *, first: bool) -> None:
    """pᵀ · hidden to a part of a gradient, which is empty at ``first``; multiplied in the dtype of
    both, as autocast multiplies for the gradient of a linear layer, and added up in its own."""
    if d_part.dtype == p.dtype:
        d_part.addmm_(p.T, hidden, beta=0 if first else 1)
    elif first:
        d_part.copy_(p.T @ hidden)
    else:
        d_part.add_(p.T @ hidden)


def _add_rows(d_rows: Tensor, ids: Tensor, p: Tensor, hidden: Tensor, piece: "_Piece") -> None:
    """To the gradient (n, H) of single rows of the weights what a piece of the logits has of it."""
    columns = ids - piece.columns.start
    here = (columns >= 0) & (ids < piece.columns.stop)
    mine = p[:, columns[here]].to(d_rows.dtype)
    d_rows[here] += mine.T @ hidden[piece.rows].to(d_rows.dtype)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some rows and columns of the logits; ``wanted`` numbers the log-probabilities that are chosen
    from them, ``place`` says where in the piece they stand."""

    rows: slice
    columns: slice
    wanted: Tensor
    place: tuple[Tensor, Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def _pieces(hidden: Tensor, choice: Choice) -> list[_Piece]:
    """The logits, a piece at a time."""
    count, at, token = len(hidden), choice.at, choice.token
    rows = max(min(count, _ROWS), 1)
    columns = max(_limit(PIECE, hidden) // (4 * rows) // 64 * 64, 64)
    down, across = -(-count // rows), -(-choice.vocabulary // columns)
    number = token // columns * down + at // rows
    order = number.argsort(stable=True)
    wanted = order.split(number.bincount(minlength=down * across).tolist())
    out = []
    for i, which in enumerate(wanted):
        c, r = i // down * columns, i % down * rows
        width, height = min(c + columns, choice.vocabulary), min(r + rows, count)
        place = (at[which] - r, token[which] - c)
        out.append(_Piece(slice(r, height), slice(c, width), which, place))
    return out


def _slots(pieces: Sequence[_Piece], like: Tensor) -> list[Tensor]:
    """Where what is kept of the first pieces goes: one block of memory, which an allocator gives
    back whole."""
    limit = _limit(KEPT, like) // like.element_size()
    sizes = [rows * columns for rows, columns in (piece.shape for piece in pieces)]
    count = sum(end <= limit for end in accumulate(sizes))
    block = like.new_empty(sum(sizes[:count])).split(sizes[:count])
    return [flat.view(piece.shape) for flat, piece in zip(block, pieces, strict=False)]


def _limit(bytes_of: dict[str, int], like: Tensor) -> int:
    return bytes_of.get(like.device.type, bytes_of["other"])


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, piece: _Piece
) -> Tensor:
    """A piece of the logits over their temperatures, in at least float32; the caller may write
    into it."""
    logits = hidden[piece.rows] @ weight[piece.columns].T.to(hidden.dtype)
    if bias is not None:
        logits += bias[piece.columns]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if scale is None else logits.mul_(scale[piece.rows, None])
