"""Drawing a token: inversion of the cumulative distribution, and the nucleus."""

import math
from itertools import accumulate

import pytest
import torch

import tiny  # noqa: F401  (one thread)
from native_reasoning.rollout.engine import Sampling
from native_reasoning.rollout.noise import GREEDY, nucleus, pick

PLAIN = Sampling(num_generations=1, max_tokens=1)
LARGEST = 1 - 2**-53


def draw(logits, u, sampling=PLAIN, **options):
    u = torch.as_tensor(u, dtype=torch.float64).reshape(-1)
    return pick(logits.expand(len(u), -1), sampling, u, **options).tolist()


def test_token_is_where_the_cumulative_distribution_passes_the_number():
    p = [0.1, 0.2, 0.3, 0.4]
    logits = torch.tensor(p).log()[None]
    edges = [0.0, 0.1, 0.3, 0.6]
    assert draw(logits, [e + 1e-6 for e in edges]) == [0, 1, 2, 3]
    assert draw(logits, [e - 1e-6 for e in edges[1:]]) == [0, 1, 2]
    assert draw(logits, [0.0, LARGEST]) == [0, 3]


def test_tokens_of_probability_zero_are_never_chosen():
    inf = math.inf
    logits = torch.tensor([[-inf, -inf, 0.0, -inf, 1.0, -inf, -200.0, -inf]])
    assert draw(logits, [0.0, 1e-300, LARGEST]) == [2, 2, 4]
    assert draw(logits, 1.0) == [4]  # a number that was rounded up stays in range
    u = torch.linspace(0, LARGEST, 1001, dtype=torch.float64)
    assert set(draw(logits, u)) == {2, 4}


@pytest.mark.parametrize("size", [152_064, 49_152])
def test_large_vocabularies_at_both_ends(size):
    torch.manual_seed(0)
    logits = 3 * torch.randn(1, size)
    assert draw(logits, [0.0, LARGEST]) == [0, size - 1]
    logits[0, -1000:] = -math.inf
    assert draw(logits, LARGEST) == [size - 1001]
    flat = torch.zeros(1, size)
    u = torch.tensor([0.0, 0.25, 0.5, 0.75, LARGEST], dtype=torch.float64)
    chosen = draw(flat, u)
    assert all(abs(c - x * size) <= 1 for c, x in zip(chosen, u.tolist(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distribution_over_many_numbers_is_the_softmax(dtype):
    torch.manual_seed(2)
    logits = (2 * torch.randn(1, 40)).to(dtype)
    for temperature in (1.0, 0.5, 2.0):
        p = (logits.double()[0] / temperature).softmax(-1)
        n = 20_000
        u = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # stratified: exact up to 1/n
        chosen = torch.tensor(draw(logits, u, Sampling(1, 1, temperature)))
        share = torch.bincount(chosen, minlength=40) / n
        assert (share - p).abs().max() <= 1.5 / n
        random = torch.rand(n, dtype=torch.float64)
        chosen = torch.tensor(draw(logits, random, Sampling(1, 1, temperature)))
        likely = p * n > 5
        counts, expected = torch.bincount(chosen, minlength=40)[likely], (p * n)[likely]
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert chi_square < likely.sum().item() + 4.5 * math.sqrt(2 * likely.sum().item())


def test_a_broken_model_gives_tokens_all_the_same():
    tokens = pick(torch.full((2, 300), math.nan), PLAIN, torch.tensor([0.1, LARGEST]))
    assert ((tokens >= 0) & (tokens < 300)).all()


def test_rows_are_drawn_apart():
    logits = torch.tensor([[0.0, 0.0], [-20.0, 0.0], [0.0, -20.0]])
    u = torch.tensor([0.6, 0.1, 0.9], dtype=torch.float64)
    assert pick(logits, PLAIN, u).tolist() == [1, 1, 0]


def test_a_number_below_zero_picks_the_likeliest_token_beside_drawn_ones():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert draw(logits, [LARGEST, GREEDY, 0.0], mixed=True) == [2, 1, 0]
    assert draw(logits, [GREEDY, GREEDY], mixed=True) == [1, 1]


def test_temperature_zero_is_the_likeliest_token_whatever_the_number():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert draw(logits, [0.0, 0.5, LARGEST], Sampling(1, 1, 0.0)) == [1, 1, 1]


def plain_nucleus(p, top_p):
    """Likeliest tokens one by one until their sum reaches top_p."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    sums = list(accumulate(p[i] for i in order))
    count = next((n + 1 for n, total in enumerate(sums) if total >= top_p), len(p))
    return [x if i in order[:count] else 0.0 for i, x in enumerate(p)]


@pytest.mark.parametrize("top_p", [1e-3, 0.3, 0.5, 0.9, 0.999])
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p):
    torch.manual_seed(0)
    probs = (2 * torch.randn(5, 30)).softmax(-1)
    got = nucleus(probs, top_p)
    for row, kept in zip(probs.tolist(), got.tolist(), strict=True):
        assert kept == pytest.approx(plain_nucleus(row, top_p), abs=0)
    assert (got.sum(-1) >= top_p - 1e-6).all()


def test_nucleus_by_hand():
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    assert [x > 0 for x in nucleus(p, 0.5)[0].tolist()] == [False, True, False, False]
    assert [x > 0 for x in nucleus(p, 0.51)[0].tolist()] == [False, True, False, True]
    logits = p.log()
    u = torch.linspace(0, LARGEST, 301, dtype=torch.float64)
    chosen = draw(logits, u, Sampling(1, 1, 1.0, top_p=0.7))
    assert set(chosen) == {1, 3}
    assert chosen.count(1) == pytest.approx(301 * 2 / 3, abs=1)
