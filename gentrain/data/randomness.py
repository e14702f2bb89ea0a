"""Random numbers that are functions of integers: the draw for an example never depends on what was drawn before.

A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") from two well-known
integer hashes. A 64-bit key per example is an element of the SplitMix64 sequence (Steele et al. 2014); the number at an
element of the example is a 32-bit multiply-xorshift hash of that key and of the element's position. Integers only up to
the last conversion, so every device gives the same bits; on a CPU it is several times faster than `torch.rand`.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

__all__ = ["derive", "fixed_permutation", "sample_keys", "uniform"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_SPLITMIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def _signed(value: int, bits: int) -> int:
    """The two's complement reading of an unsigned integer, as torch's integer types want their constants."""
    return value - (1 << bits) if value >> (bits - 1) else value


# Two multiplier constants of a 32-bit hash found by search for low avalanche bias (C. Wellons' hash-prospector).
_MULTIPLIER_1, _MULTIPLIER_2 = _signed(0x7FEB352D, 32), _signed(0x846CA68B, 32)


def _mix(z: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    for shift, multiplier in _SPLITMIX:
        z = ((z ^ (z >> shift)) * multiplier) & _MASK
    return z ^ (z >> 31)


def _mix_tensor(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors; the masks turn arithmetic shifts into logical ones."""
    for shift, multiplier in _SPLITMIX:
        z = (z ^ ((z >> shift) & (_MASK >> shift))) * _signed(multiplier, 64)
    return z ^ ((z >> 31) & (_MASK >> 31))


def derive(*words: int) -> int:
    """A 64-bit hash of integers of any sign and size; the order of the words counts.

    >>> derive(1, 2) == derive(1, 2), derive(1, 2) == derive(2, 1)
    (True, False)
    """
    state = 0
    for word in words:
        state = _mix((state + _GOLDEN + word) & _MASK)
    return state


def sample_keys(base: int, index: Tensor) -> Tensor:
    """The 64-bit key of each example: element `index + 1` of the SplitMix64 sequence that starts at `base`.

    Args:
        base: what all the examples share, e.g. `derive(seed, epoch)`.
        index: integer positions in the data set, (B,).

    Returns:
        int64 keys, (B,), all different for different indices.
    """
    return _mix_tensor((index.to(torch.int64) + 1) * _signed(_GOLDEN, 64) + _signed(base & _MASK, 64))


def fixed_permutation(n: int, name: str = "") -> Tensor:
    """A permutation of 0…n-1 that depends on nothing but n and `name`: not on torch's version, nor on the seed."""
    return sample_keys(derive(*name.encode()), torch.arange(n)).argsort()


@functools.lru_cache(maxsize=32)
def _positions(count: int, device: torch.device) -> Tensor:
    """A fixed 32-bit word for each element of an example, (1, count)."""
    return (sample_keys(0, torch.arange(count)) >> 32).to(torch.int32).unsqueeze(0).to(device)


def _xorshift_(h: Tensor, shift: int, scratch: Tensor) -> None:
    """h ^= h >>> shift, in place."""
    torch.bitwise_right_shift(h, shift, out=scratch)
    scratch.bitwise_and_((1 << (32 - shift)) - 1)  # torch shifts signed integers arithmetically
    h.bitwise_xor_(scratch)


def uniform(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24, as a function of each example's key and the element's position.

    Args:
        keys: int64, (B,), as `sample_keys` makes them.
        shape: of one example.

    Returns:
        float32, (B, *shape), the same on every device.

    >>> keys = sample_keys(derive(0, 3), torch.tensor([7, 8, 9]))
    >>> bool((uniform(keys, (4, 4))[1] == uniform(keys[1:2], (4, 4))[0]).all())
    True
    """
    low, high = keys.to(torch.int32).unsqueeze(1), (keys >> 32).to(torch.int32).unsqueeze(1)
    h = low ^ _positions(math.prod(shape), keys.device)
    scratch = torch.empty_like(h)
    h.mul_(_MULTIPLIER_1)
    _xorshift_(h, 15, scratch)
    h.add_(high)  # the other half of the key: examples whose low words happen to agree part here
    h.mul_(_MULTIPLIER_2)
    _xorshift_(h, 16, scratch)
    h.bitwise_right_shift_(8)  # 24 signed bits: every one is exact in float32
    return h.to(torch.float32).mul_(2.0**-24).add_(0.5).view(-1, *shape)
