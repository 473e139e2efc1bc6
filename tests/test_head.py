"""Log-probabilities in pieces against a plain log-softmax over whole logits."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

import tiny
from native_reasoning.scoring import head
from native_reasoning.scoring.head import Choice, chosen_logps, direct_head, takes_embeddings

N, H, V = 37, 8, 301


def parts(bias, scale, dtype=torch.float64, seed=0):
    """Hidden states, a head, and a choice that asks some positions twice and some never."""
    torch.manual_seed(seed)
    linear = nn.Linear(H, V + 20, bias=bias, dtype=dtype)
    hidden = (3 * torch.randn(N, H, dtype=dtype)).requires_grad_()
    at = torch.randint(0, N - 5, (50,))
    token = torch.randint(0, V, (50,))
    scales = (0.5 + torch.rand(N, dtype=dtype)) if scale else None
    return hidden, linear, Choice(at, token, V, scales)


def plain(hidden, linear, choice):
    logits = linear(hidden)[:, : choice.vocabulary]
    logits = logits if choice.scale is None else logits * choice.scale[:, None]
    return logits.log_softmax(-1)[choice.at, choice.token]


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setitem(head.PIECE, "cpu", 4 * 16 * 64)
    monkeypatch.setattr(head, "_ROWS", 16)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kept", [0, 2, 15], ids="{} pieces kept".format)
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_those_of_whole_logits(bias, scale, kept, monkeypatch):
    monkeypatch.setitem(head.KEPT, "cpu", kept * 8 * 16 * 64)
    hidden, linear, choice = parts(bias, scale)
    assert len(head._pieces(hidden, choice)) == 3 * 5
    weights = torch.randn(50, dtype=torch.float64)
    leaves = [hidden, *linear.parameters()]
    found = chosen_logps(hidden, linear, choice)
    expected = plain(hidden, linear, choice)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((weights * found).sum(), leaves, retain_graph=True)
    again = torch.autograd.grad((weights * found).sum(), leaves)
    assert all(map(torch.equal, ours, again))
    theirs = torch.autograd.grad((weights * expected).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert (ours[1][V:] == 0).all()  # padding of the table


@pytest.mark.usefixtures("small_pieces")
def test_a_frozen_head_gets_no_gradient_and_hidden_states_do():
    hidden, linear, choice = parts(bias=True, scale=False)
    linear.requires_grad_(False)
    chosen_logps(hidden, linear, choice).sum().backward()
    assert linear.weight.grad is None
    assert hidden.grad.abs().sum() > 0


@pytest.mark.usefixtures("small_pieces")
def test_nothing_is_kept_where_no_backward_follows(monkeypatch):
    hidden, linear, choice = parts(bias=False, scale=False)
    expected = chosen_logps(hidden, linear, choice)
    monkeypatch.setattr(head, "_slots", lambda *args: pytest.fail("kept"))
    with torch.no_grad():
        assert torch.equal(chosen_logps(hidden, linear, choice), expected)


@pytest.mark.usefixtures("small_pieces")
def test_extreme_logits_stay_finite():
    hidden, linear, choice = parts(bias=False, scale=False, dtype=torch.float32)
    found = chosen_logps(1e4 * hidden, linear, choice)
    found.sum().backward()
    assert found.isfinite().all() and hidden.grad.isfinite().all()
    assert (found <= 0).all() and found.min() < -1e4


@pytest.mark.usefixtures("small_pieces")
def test_bfloat16_and_autocast_give_float32_within_their_rounding():
    hidden, linear, choice = parts(bias=False, scale=True, dtype=torch.float32)
    exact = plain(hidden, linear, choice)
    with torch.autocast("cpu", torch.bfloat16):
        cast = chosen_logps(hidden, linear, choice)
    whole = chosen_logps(hidden.bfloat16(), deepcopy(linear).bfloat16(), choice)
    for found in (cast, whole):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, atol=0.2, rtol=0.02)
    cast.sum().backward()
    assert hidden.grad.dtype == torch.float32
    found, hidden.grad, linear.weight.grad = linear.weight.grad, None, None
    with torch.autocast("cpu", torch.bfloat16):
        plain(hidden, linear, choice).sum().backward()
    assert found.dtype == linear.weight.grad.dtype == torch.float32
    assert (found - linear.weight.grad).norm() < 0.02 * found.norm()


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_confident_tokens_in_bfloat16_are_no_likelier_than_certain(how, small_pieces):
    """Numbers that are nearly 1 and gradients that are nearly 0, where rounding shows."""
    torch.manual_seed(0)
    width, size = 256, 1000
    linear = nn.Linear(width, size, bias=False)
    nn.init.normal_(linear.weight)
    token = torch.randint(0, size, (N,))
    with torch.no_grad():  # each state points at its own token
        linear.weight.copy_(linear.weight.bfloat16())
        hidden = (14.0 / width * linear.weight[token]).bfloat16().float()
    choice = Choice(torch.arange(N), token, size)
    exact_hidden = hidden.double().requires_grad_()
    exact_head = nn.Linear(width, size, bias=False).double()
    exact_head.load_state_dict(linear.state_dict())
    exact = plain(exact_hidden, exact_head, choice)
    exact.sum().backward()
    assert 0.99 < exact.exp().median() < 0.9999
    if how == "weights":
        leaf, cast = hidden.bfloat16().requires_grad_(), linear.bfloat16()
        found = chosen_logps(leaf, cast, choice)
    else:
        leaf, cast = hidden.clone().requires_grad_(), linear
        with torch.autocast("cpu", torch.bfloat16):
            found = chosen_logps(leaf, cast, choice)
    found.sum().backward()
    assert (found <= 1e-6).all()
    assert (found - exact).abs().mean() < 0.01
    for ours, theirs in (
        (leaf.grad, exact_hidden.grad),
        (cast.weight.grad, exact_head.weight.grad),
    ):
        assert (ours.double() - theirs).norm() < 0.1 * theirs.norm()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_no_tensor_is_as_large_as_the_logits():
    vocabulary, rows = 151_936, 300
    linear, hidden = nn.Linear(2, vocabulary, bias=False), torch.randn(rows, 2, requires_grad=True)
    choice = Choice(torch.arange(rows), torch.randint(0, vocabulary, (rows,)), vocabulary)
    with Largest() as largest:
        chosen_logps(hidden, linear, choice).sum().backward()
    assert largest.elements <= head.KEPT["cpu"] // 4 < rows * vocabulary // 2


def test_sixteen_thousand_positions_of_a_large_vocabulary_come_in_bounded_pieces():
    hidden = torch.empty(16_384, 1)
    choice = Choice(torch.arange(16_384), torch.arange(16_384) * 9, 151_936)
    pieces = head._pieces(hidden, choice)
    sizes = [rows * columns for rows, columns in (p.shape for p in pieces)]
    assert sum(len(p.wanted) for p in pieces) == 16_384
    assert sum(sizes) == 16_384 * 151_936
    assert max(sizes) * 4 <= head.PIECE["cpu"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "qwen3"])
def test_heads_that_only_multiply_are_recognised(kind):
    assert direct_head(tiny.tiny_model(kind))


def test_heads_that_do_more_are_recognised():
    assert not direct_head(tiny.tiny_model("gemma2", final_logit_softcapping=2.0))
    small = tiny.tiny_model("gemma2", final_logit_softcapping=30.0)
    with torch.no_grad():  # logits that a cap of 30 hardly bends
        small.lm_head.weight.mul_(0.01)
    assert not direct_head(small)
    model = tiny.tiny_model("llama")
    model.lm_head = nn.Sequential(model.lm_head)
    model.train()
    assert not direct_head(model)
    assert model.training


def test_models_that_look_up_more_than_embeddings_are_given_ids():
    model = tiny.tiny_model("llama").eval()
    assert takes_embeddings(model)
    plain_forward, extra = model.model.forward, torch.randn(352, 32)

    def forward(*args, input_ids=None, **kwargs):
        found = plain_forward(*args, input_ids=input_ids, **kwargs)
        if input_ids is not None:
            found.last_hidden_state = found.last_hidden_state + extra[input_ids]
        return found

    model.model.forward = forward
    assert not takes_embeddings(model)


def test_models_that_search_their_table_for_the_ids_of_embeddings_are_given_ids():
    torch.manual_seed(0)
    model = Gemma4ForCausalLM(
        Gemma4TextConfig(
            vocab_size=352,
            vocab_size_per_layer_input=352,
            hidden_size=32,
            hidden_size_per_layer_input=8,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            layer_types=["sliding_attention", "full_attention"],
            per_layer_config={},
        )
    )
    assert not takes_embeddings(model)
