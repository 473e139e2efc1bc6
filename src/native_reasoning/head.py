"""Log-probabilities of chosen tokens from hidden states, without the logits of a whole vocabulary.

    log π(v | h) = (h · W_v + b_v) / T − log Σ_u exp((h · W_u + b_u) / T)

The sum runs over pieces of the vocabulary, so that no more than ``PIECE`` bytes of logits exist at
a time; the backward pass computes each piece again. With n positions that is a quarter more work in
the head than keeping n·V logits, which for 16,000 positions of a 150,000-token vocabulary would be
10 GB, three times over.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from native_reasoning.inputs import tried

#: Bytes of logits that exist at a time, by kind of device: on a CPU what its caches hold.
PIECE = {"cpu": 2**22, "other": 2**29}
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Choice:
    """Which log-probabilities are wanted: of token ``token[m]`` at position ``at[m]``, both (M,).

    ``scale`` (N,) is one over each position's temperature, None means 1. Ids from ``vocabulary`` on
    are padding of the table: their probability is 0.
    """

    at: Tensor
    token: Tensor
    vocabulary: int
    scale: Tensor | None = None


def chosen_logps(hidden: Tensor, head: nn.Linear, choice: Choice) -> Tensor:
    """log π (M,) of the chosen tokens, in at least float32, from ``hidden`` (N, H)."""
    weight, bias = head.weight[: choice.vocabulary], head.bias
    bias = None if bias is None else bias[: choice.vocabulary]
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    scale = choice.scale
    if scale is not None:
        scale = scale.to(torch.promote_types(hidden.dtype, torch.float32))
    with torch.autocast(kind, enabled=False):
        found = _ChosenLogps.apply(hidden, weight, bias, choice.at, choice.token, scale)
    assert isinstance(found, Tensor)
    return found


def direct_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its last hidden states times its head's weights, and nothing
    more: no soft cap, no scaling, no adapter on the head. Tried out on a few tokens."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or not head.weight.is_floating_point():
        return False

    def trial() -> bool:
        ids = torch.arange(3, 9, device=model.device)[None] % len(head.weight)
        hidden = model.base_model(input_ids=ids, use_cache=False)[0]
        hook = head.register_forward_pre_hook(lambda module, args: (100 * args[0],))
        try:  # large, so that a soft cap shows
            logits, again = model(input_ids=ids, use_cache=False).logits, head(hidden)
        finally:
            hook.remove()
        return _near(logits, again)

    return tried(model, trial)


def takes_embeddings(model: PreTrainedModel) -> bool:
    """Whether the model makes of embeddings what it makes of their ids: some look up more for each
    id than its embedding."""

    def trial() -> bool:
        embed = model.get_input_embeddings()
        table = embed.weight
        assert isinstance(table, Tensor)
        ids = torch.arange(3, 9, device=model.device)[None] % len(table)
        whole = model.base_model(input_ids=ids, use_cache=False)[0]
        return _near(whole, model.base_model(inputs_embeds=embed(ids), use_cache=False)[0])

    return tried(model, trial)


def _near(one: Tensor, other: Tensor) -> bool:
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max())


class _ChosenLogps(torch.autograd.Function):
    """See ``chosen_logps``. Backward, with p the softmax and g the incoming gradient::

    dh = Σ_m g_m (W_token − Σ_v p_v W_v) / T,    dW_v = Σ_m g_m (1[v = token] − p_v) h / T
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        hidden, weight, bias, at, token, scale = tensors
        exact = torch.promote_types(hidden.dtype, torch.float32)
        top = hidden.new_full((len(hidden),), -torch.inf, dtype=exact)
        total, picked = torch.zeros_like(top), top.new_zeros(len(at))
        for rows, columns in _pieces(hidden, weight):
            logits = _logits(hidden, weight, bias, scale, rows, columns)
            here, place = _inside(at, token, rows, columns)
            picked[here] = logits[place]
            highest = torch.maximum(top[rows], logits.amax(-1))
            summed = logits.sub_(highest[:, None]).exp_().sum(-1)
            total[rows] = total[rows] * (top[rows] - highest).exp() + summed
            top[rows] = highest
        norm = top + total.log()
        ctx.save_for_backward(*tensors, norm)
        return picked - norm[at]  # of the same logits: in 16 bits others would round otherwise

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        hidden, weight, bias, at, token, scale, norm = ctx.saved_tensors
        (g,) = incoming
        pull = norm.new_zeros(len(hidden)).index_add_(0, at, g)  # of each position's softmax
        pull, push = (pull, g) if scale is None else (pull * scale, g * scale[at])
        d_hidden = hidden.new_zeros(hidden.shape, dtype=norm.dtype)
        d_weight = weight.new_zeros(weight.shape) if ctx.needs_input_grad[1] else None
        d_bias = None if bias is None else torch.zeros_like(bias)
        for rows, columns in _pieces(hidden, weight):
            logits = _logits(hidden, weight, bias, scale, rows, columns)
            p = logits.sub_(norm[rows, None]).exp_().mul_(-pull[rows, None])
            here, place = _inside(at, token, rows, columns)
            p.index_put_(place, push[here], accumulate=True)  # before p is rounded: 1 − p is small
            if d_bias is not None:
                d_bias[columns] += p.sum(0)
            p = p.to(hidden.dtype)
            d_hidden[rows] += p @ weight[columns].to(p.dtype)
            if d_weight is not None:
                d_weight[columns].addmm_(p.T.to(weight.dtype), hidden[rows].to(weight.dtype))
        return d_hidden.to(hidden.dtype), d_weight, d_bias, None, None, None


def _inside(
    at: Tensor, token: Tensor, rows: slice, columns: slice
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Which of the wanted log-probabilities lie in a piece of the logits, and where in it."""
    here = (at >= rows.start) & (at < rows.stop) & (token >= columns.start) & (token < columns.stop)
    return here, (at[here] - rows.start, token[here] - columns.start)


def _pieces(hidden: Tensor, weight: Tensor) -> list[tuple[slice, slice]]:
    """Rows and columns of the logits, a piece at a time."""
    limit = PIECE.get(hidden.device.type, PIECE["other"])
    rows = min(len(hidden), _ROWS)
    columns = max(limit // (4 * max(rows, 1)) // 64 * 64, 64)
    return [
        (slice(r, min(r + rows, len(hidden))), slice(c, min(c + columns, len(weight))))
        for c in range(0, len(weight), columns)
        for r in range(0, len(hidden), rows)
    ]


def _logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    rows: slice,
    columns: slice,
) -> Tensor:
    """A piece of the logits over their temperatures, in at least float32; the caller may write
    into it."""
    logits = hidden[rows] @ weight[columns].T.to(hidden.dtype)
    if bias is not None:
        logits += bias[columns]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if scale is None else logits.mul_(scale[rows, None])
