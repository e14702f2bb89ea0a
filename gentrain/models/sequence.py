"""What a model of sequences can do beyond its density: read on, and write."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from gentrain.models.base import Density, Generative


class Memory(NamedTuple):
    """What a recurrent model keeps of the sequences that it has read so far, a row for each.

    Attributes:
        state: of the network, (B, layers, 2, hidden): hidden state and memory cell, which only an LSTM uses.
        last: the element read last, (B,), int64; -1 where nothing has been read.
    """

    state: Tensor
    last: Tensor


class Recurrent(Density):
    """A density over sequences that reads them from left to right and keeps all of their past in a `Memory`.

    So a sequence of any length can be read piece by piece:
    log p(x_1 … x_T) = log p(x_1 … x_t) + log p(x_{t+1} … x_T | memory after x_t).

    Attributes:
        layers, hidden: sizes of a memory's state.
    """

    layers: int
    hidden: int

    @abstractmethod
    def read(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """log p(x_t | x_<t, memory) in nats for sequences x (B, T) of any length, (B, T), and the memory after them."""

    def blank(self, n: int) -> Memory:
        """The memory of n sequences of which nothing has been read."""
        state = torch.zeros(n, self.layers, 2, self.hidden, device=self.device, dtype=next(self.parameters()).dtype)
        return Memory(state, torch.full((n,), -1, device=self.device))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of sequences that nothing came before, (B,)."""
        return self.read(x, self.blank(len(x)))[0].sum(1)


class Writes(Generative):
    """A distribution over texts, which can be begun and go on to any length. Its support is tokens.

    Attributes:
        vocabulary: the characters that tokens stand for, in their order; the last one for any that isn't among them.
    """

    vocabulary: str

    @abstractmethod
    def write(self, n: int, length: int, prime: str = "", temperature: float = 1.0) -> list[str]:
        """n texts: `prime`, and `length` characters that go on after it.

        The next character is drawn from p^(1/temperature), normalised.

        Raises:
            UsageError: a character of `prime` isn't in the vocabulary.
        """

    def texts(self, x: Tensor) -> list[str]:
        """Tokens (B, T) as texts."""
        return ["".join(self.vocabulary[i] for i in row) for row in x.tolist()]
