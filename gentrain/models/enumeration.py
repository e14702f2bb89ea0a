"""Sums over all states of binary units, block by block, and draws from their distribution."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

Block = tuple[Tensor, Tensor, Tensor]
"""States of the low units (I, low), some of the high units' (O, high), and the log weight of every pair, (O, I)."""

INNER, OUTER = 12, 8
"""2^INNER x 2^OUTER states are weighed at a time."""


def states(n: int, like: Tensor) -> Tensor:
    """All 2^n binary vectors, (2^n, n), of `like`'s type.

    >>> states(2, torch.zeros(()))
    tensor([[0., 0.], [1., 0.], [0., 1.], [1., 1.]])
    """
    codes = torch.arange(1 << n, device=like.device)
    return (codes[:, None] >> torch.arange(n, device=like.device) & 1).to(like.dtype)


def quadratic(bias: Tensor, coupling: Tensor) -> Iterator[Block]:
    """aᵀs + sᵀGs/2 for all states s of n binary units, in blocks.

    Args:
        bias: a, (n,). coupling: G, (n, n), symmetric; its diagonal counts, as s_i² = s_i.
    """
    low = min(len(bias), INNER)
    s_low, s_high = states(low, bias), states(len(bias) - low, bias)
    own = log_weight(s_low, bias[:low], coupling[:low, :low])
    for s in s_high.split(1 << OUTER):
        across = s @ coupling[low:, :low] @ s_low.t()
        yield s_low, s, across.add_(own).add_(log_weight(s, bias[low:], coupling[low:, low:])[:, None])


def log_weight(s: Tensor, bias: Tensor, coupling: Tensor) -> Tensor:
    """aᵀs + sᵀGs/2 of each of s (S, n), (S,)."""
    return s @ bias + 0.5 * ((s @ coupling) * s).sum(-1)


def log_total(blocks: Iterable[Block], like: Tensor) -> Tensor:
    """log of the sum of all weights, a scalar of `like`'s type."""
    total = torch.full((), -math.inf, dtype=like.dtype, device=like.device)
    with one_thread():
        for _, _, term in blocks:
            total = torch.logaddexp(total, torch.logsumexp(term.flatten(), 0))
    return total


def draw_states(blocks: Iterable[Block], n: int, units: int, like: Tensor) -> Tensor:
    """n independent states (n, units), of `like`'s type, with probabilities in proportion to their weights.

    A draw moves to a block of states with probability (the block's sum) / (the sum so far), and within it to a state
    in proportion: after the last block each state has its own probability, and no sum was needed beforehand.
    """
    drawn = like.new_zeros(n, units)
    total = torch.full((), -math.inf, dtype=like.dtype, device=like.device)
    with one_thread():
        for low, high, term in blocks:
            block = torch.logsumexp(term.flatten(), 0)
            total = torch.logaddexp(total, block)
            moves = torch.rand(n, dtype=like.dtype, device=like.device) < torch.exp(block - total)
            if count := int(moves.sum()):
                chosen = torch.multinomial(torch.exp(term.flatten() - block), count, replacement=True)
                drawn[moves] = torch.cat([low[chosen % len(low)], high[chosen // len(low)]], 1)
    return drawn


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For many small products: threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Remembered:
    """A value that is dear to compute from some tensors, kept until one of these changes."""

    def __init__(self) -> None:
        self._of: list[Tensor] = []
        self._value: Tensor | None = None

    def __call__(self, tensors: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        if self._value is None or not all(map(torch.equal, tensors, self._of)):  # no version counter sees `.data`
            self._value, self._of = compute(), [t.detach().clone() for t in tensors]
        return self._value
