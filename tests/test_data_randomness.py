"""Random numbers as functions of integers: known answers, and honest statistics (fixed keys, so never flaky)."""

from __future__ import annotations

import math

import numpy as np
import torch

from gentrain.data.randomness import derive, fixed_permutation, sample_keys, uniform

M32, M64 = (1 << 32) - 1, (1 << 64) - 1


def splitmix64(base: int, index: int) -> int:
    """Element `index + 1` of the SplitMix64 sequence, in plain integers."""
    z = (base + 0x9E3779B97F4A7C15 * (index + 1)) & M64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


def reference_uniform(key: int, position: int) -> float:
    h = (key & M32) ^ (splitmix64(0, position) >> 32)
    h = (h * 0x7FEB352D) & M32
    h ^= h >> 15
    h = ((h + (key >> 32)) * 0x846CA68B) & M32
    h ^= h >> 16
    return (((h >> 8) + (1 << 23)) % (1 << 24)) / (1 << 24)  # the shift of a signed integer, moved up by a half


def test_keys_are_the_published_splitmix64_sequence():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    keys = sample_keys(1234567, torch.arange(4))
    assert [key & M64 for key in keys.tolist()] == published


def test_uniform_follows_its_definition():
    keys = sample_keys(derive(3, 14), torch.tensor([0, 5, 10**9]))
    u = uniform(keys, (2, 3))
    expected = [[reference_uniform(key & M64, p) for p in range(6)] for key in keys.tolist()]
    assert u.dtype == torch.float32 and u.view(3, 6).tolist() == expected


def test_words_of_any_sign_and_size_count():
    seeds = [0, 1, -1, 2**63, 2**64 - 2, -(2**70) + 3]
    assert len({derive(seed, epoch) for seed in seeds for epoch in range(100)}) == 600


def draws(n: int = 20_000, shape: tuple[int, ...] = (28, 28), epoch: int = 0) -> np.ndarray:
    keys = sample_keys(derive(0, epoch), torch.arange(n))
    return uniform(keys, shape).view(n, -1).numpy()


def scores(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlations as numbers of standard errors, for columns of standardised independent variables."""
    return (a * b).sum(0) / math.sqrt(len(a))


def test_mean_variance_and_bins():
    u = draws()
    n = u.size
    assert u.min() >= 0 and u.max() < 1
    z = (u - 0.5) * math.sqrt(12)
    assert abs(z.mean(dtype=np.float64)) * math.sqrt(n) < 4
    assert abs((z.astype(np.float64) ** 2).mean() - 1) / math.sqrt(0.8 / n) < 4
    counts = np.bincount((u * 256).astype(int).ravel(), minlength=256)
    chi_square = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


def test_every_bit_is_fair_and_neighbours_agree_half_the_time():
    integers = (draws(4_000) * 2**24).astype(np.int64)
    n = integers.size
    for bit in range(24):
        b = (integers >> bit & 1) * 2.0 - 1
        assert abs(b.mean()) * math.sqrt(n) < 5, bit
        for other in (b[:, 1:] * b[:, :-1], b[:, 28:] * b[:, :-28], b[1:] * b[:-1], b[2:] * b[:-2]):
            assert abs(other.mean()) * math.sqrt(other.size) < 5, bit


def test_no_pair_of_pixels_nor_of_examples_nor_of_epochs_is_correlated():
    z = (draws(4_000, (300,)) - 0.5) * math.sqrt(12)
    pixels = np.triu(z.T @ z / math.sqrt(len(z)), 1)[np.triu_indices(300, 1)]
    examples = np.triu(z[:300] @ z[:300].T / math.sqrt(300), 1)[np.triu_indices(300, 1)]
    for found in (pixels, examples):
        assert abs(found.std() - 1) < 0.02 and abs(found).max() < 6  # 44,850 pairs: about 4.3 is expected
    for later in (1, 2, 1000):
        other = (draws(4_000, (300,), epoch=later) - 0.5) * math.sqrt(12)
        assert abs(scores(z, other)).max() < 5


def test_low_bits_of_pairs_of_pixels_are_independent():
    """What a single multiplication round would fail: pairs of positions share the low bits of a product."""
    bits = (draws(20_000, (300,)) * 2**24).astype(np.int64) & 1
    z = bits * 2.0 - 1
    pairs = (z.T @ z / math.sqrt(len(z)))[np.triu_indices(300, 1)]
    assert abs(pairs).max() < 6


def test_fixed_permutation_is_one_and_stays():
    order = fixed_permutation(10, "digits")
    assert sorted(order.tolist()) == list(range(10))
    assert order.tolist() == sorted(range(10), key=lambda i: as_signed(splitmix64(derive(*b"digits"), i)))
    assert order.tolist() != fixed_permutation(10, "other").tolist()


def as_signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
