"""The uniform numbers against a Philox written from its paper, and that against its vectors."""

import numpy as np
import pytest

from native_reasoning.rollout.noise import EVALUATION, ORDER, TRAINING, uniforms

MASK = (1 << 64) - 1


def philox(counter, key):
    """philox4x64-10 (Salmon et al., 2011) in plain Python."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (second >> 64) ^ b ^ k0, second & MASK, (first >> 64) ^ d ^ k1, first & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return a, b, c, d


#: Random123's kat_vectors for philox4x64-10: counter, key, output
VECTORS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (MASK,) * 4,
        (MASK,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
def test_philox_gives_the_published_vectors(counter, key, output):
    assert philox(counter, key) == output
    # numpy counts up before the first block: start one below, with carries
    below = (sum(word << 64 * i for i, word in enumerate(counter)) - 1) % (1 << 256)
    words = np.array([below >> 64 * i & MASK for i in range(4)], dtype=np.uint64)
    generator = np.random.Philox(counter=words, key=np.array(key, dtype=np.uint64))
    assert tuple(int(x) for x in generator.random_raw(4)) == output


@pytest.mark.parametrize("seed", [0, 42, MASK, -1])
def test_uniforms_are_philox_of_seed_domain_step_row_trace_and_token(seed):
    for domain, step, row, trace in ((0, 0, 0, 0), (1, 5, 0, 3), (2, 10**6, 2**40, 7)):
        got = uniforms(seed, domain, step, row, trace, 11)
        blocks = [philox((t // 4 + 1, trace, row, step), (seed & MASK, domain)) for t in range(11)]
        expected = [(block[t % 4] >> 11) / 2**53 for t, block in enumerate(blocks)]
        assert got.tolist() == expected


def test_every_argument_changes_the_numbers_and_the_count_does_not():
    at = {"seed": 1, "domain": 0, "step": 2, "row": 3, "trace": 4}
    base = uniforms(**at, count=6)
    for name in at:
        assert not np.intersect1d(base, uniforms(**{**at, name: at[name] + 1}, count=6)).size
    assert uniforms(**at, count=3).tolist() == base[:3].tolist()
    assert uniforms(**at, count=0).shape == (0,)
    assert len({TRAINING, EVALUATION, ORDER}) == 3


def test_uniforms_lie_in_the_half_open_interval_and_look_uniform():
    draws = np.concatenate([uniforms(0, 0, s, 0, 0, 1000) for s in range(20)])
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 85.4  # the 0.1 % point at 49 degrees of freedom
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03
