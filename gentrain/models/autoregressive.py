"""What models share that take the elements of x one by one, in an order of their own."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from gentrain.models.base import Autoregressive, Completes, StartsFromMean
from gentrain.models.likelihoods import Likelihood

Order = Literal["raster", "random"]


def ordering(name: Order, size: int) -> Tensor:
    """Flat indices of the elements, first one first: as they lie in memory, or drawn from torch's generator."""
    return torch.arange(size) if name == "raster" else torch.randperm(size)


class Ancestral(Autoregressive, Completes, StartsFromMean):
    """p(x) = Π_i p(x_o(i) | x_o(<i)), each factor an element of `likelihood`; sampled element by element.

    A class gives the raw parameters of all conditionals at once (`raw`), for learning, and one by one from a state that
    takes in each element as it becomes known (`start`, `raw_at`, `feed`), for sampling.

    Args:
        shape: of one example.
        likelihood: of one element given those before it.
        order: flat indices of the elements, first one first, (D,). Kept with the weights.
    """

    ordering: Tensor

    def __init__(self, shape: tuple[int, ...], likelihood: Likelihood, order: Tensor):
        super().__init__()
        self.shape, self.likelihood = tuple(shape), likelihood
        self.support = likelihood.support
        self.register_buffer("ordering", order)

    @property
    def order(self) -> Tensor:
        return self.ordering

    @property
    def size(self) -> int:
        """D, the number of elements."""
        return math.prod(self.shape)

    @property
    def bias(self) -> Tensor:
        """The output biases, (D, P)."""
        return self.likelihood.bias.view(self.likelihood.per_element, -1).t()

    @abstractmethod
    def raw(self, x: Tensor) -> Tensor:
        """`conditionals` without the output biases, (B, D, P), from `likelihood.network_input` (B, D)."""

    @abstractmethod
    def start(self, n: int) -> Tensor:
        """The state in which nothing is known of n examples, leading axis n."""

    @abstractmethod
    def raw_at(self, state: Tensor, d: Tensor) -> Tensor:
        """`raw` of element d (a scalar index) given what the state has been fed, (n, P)."""

    @abstractmethod
    def feed(self, state: Tensor, d: Tensor, value: Tensor) -> None:
        """Let the state know element d of each example, as `likelihood.network_input`, (n,). In place."""

    def conditionals(self, x: Tensor) -> Tensor:
        return self.raw(self.likelihood.network_input(x).flatten(1)) + self.bias

    def log_prob(self, x: Tensor) -> Tensor:
        return self._log_prob(self.conditionals(x), x)

    def _log_prob(self, conditionals: Tensor, x: Tensor) -> Tensor:
        """log p(x) from the parameters of its conditionals, (B,)."""
        raw = conditionals.transpose(1, 2).unflatten(2, self.shape)
        return self.likelihood.independent(self.likelihood.elements(raw)).log_prob(x)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        dtype = torch.int64 if self.support == "levels" else torch.float32
        nothing = torch.zeros(n, *self.shape, dtype=dtype, device=self.device)
        return self.complete(nothing, torch.zeros_like(nothing, dtype=torch.bool))

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """Draw each missing element given all that come before it in the order, known or drawn.

        That is a draw from p(missing | known) where the known elements come first in the order; where some come later,
        what is drawn before them knows nothing of them.
        """
        x, known, state, bias = x.flatten(1).clone(), known.flatten(1), self.start(len(x)), self.bias
        for d in self.order:
            elements = self.likelihood.elements((self.raw_at(state, d) + bias[d])[..., None])
            x[:, d] = torch.where(known[:, d], x[:, d], elements.sample()[:, 0].to(x.dtype))
            self.feed(state, d, self._element_input(x[:, d]))
        return x.view(-1, *self.shape)

    def _element_input(self, value: Tensor) -> Tensor:
        return self.likelihood.network_input(value)

    def start_from_mean(self, mean: Tensor) -> None:
        self.likelihood.start_from_mean(mean)
