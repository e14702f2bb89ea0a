"""Independent elements: the base rate that every model of images must beat."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.models.base import Accumulates, Conditions, Density, Law
from gentrain.types import PositiveFloat, PositiveInt, Shape


class Factorial(Density, Accumulates, Conditions):
    """p(x) = Π_d p_d(x_d), with p_d(k) = (N_dk + s) / (N + s K) from N examples of which N_dk have x_d = k.

    As s goes to 0 that is the maximum of the likelihood; s > 0 keeps a value possible that was never seen.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data.
        likelihood: `bernoulli` (`support` binary, K = 2), `categorical` (`support` levels, K = `levels`), or `auto`:
            bernoulli for two levels or one channel (binarized), as the VAE has it, else categorical.
        smoothing: s, pseudo-counts for each value.

    Raises:
        UsageError: the data are real numbers, which have no values to count.

    >>> model = Factorial((1, 2, 2), levels=2)
    >>> model.accumulate(torch.ones(8, 1, 2, 2))
    >>> model.log_prob(torch.ones(1, 1, 2, 2)).exp()  # (9/10)^4
    tensor([0.6561])
    """

    counts: Tensor

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        likelihood: Literal["auto", "bernoulli", "categorical"] = "auto",
        smoothing: PositiveFloat = 1.0,
    ):
        super().__init__()
        if levels is None:
            raise UsageError("model=factorial counts values, and these data are real numbers: use data with levels")
        if likelihood == "auto":
            likelihood = "bernoulli" if levels == 2 or shape[0] == 1 else "categorical"
        self.shape, self.smoothing = tuple(shape), smoothing
        self.support = "binary" if likelihood == "bernoulli" else "levels"
        values = 2 if likelihood == "bernoulli" else levels
        self.register_buffer("counts", torch.zeros(values, math.prod(shape), dtype=torch.int64))

    def accumulate(self, x: Tensor) -> None:
        values = x.flatten(1).long()
        self.counts.scatter_add_(0, values, torch.ones_like(values))

    def probabilities(self) -> Tensor:
        """p_d(k), (K, D)."""
        counts = self.counts.float() + self.smoothing
        return counts / counts.sum(0)

    def _elements(self, x: Tensor) -> Tensor:
        """log p_d(x_d), (B, D)."""
        return self.probabilities().log().gather(0, x.flatten(1).long())

    def log_prob(self, x: Tensor) -> Tensor:
        return self._elements(x).sum(1)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        return torch.where(known, x, self.sample(len(x)).to(x.dtype))

    def completion(self, known: Tensor) -> Law:
        return "exact"

    def log_conditional(self, x: Tensor, known: Tensor) -> Tensor:
        return self._elements(x).masked_fill(known.flatten(1), 0).sum(1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        values = torch.multinomial(self.probabilities().t(), n, replacement=True).t().reshape(n, *self.shape)
        return values.float() if self.support == "binary" else values
