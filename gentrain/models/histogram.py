"""A count for every state: the density of small discrete spaces that assumes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.models.base import Accumulates, Conditions, Density, Law
from gentrain.models.missing import masks_of
from gentrain.types import PositiveFloat, PositiveInt, Shape, Support

LIMIT = 20
"""log2 of the largest number of states that are counted."""
CHUNK = 1 << 22
"""States that are looked at together in completing examples."""


class Histogram(Density, Accumulates, Conditions):
    """p(x) = (N_x + s) / (N + s K^D) from N examples, of which N_x are x, in a space of D elements of K values.

    Additive smoothing (Lidstone 1920): s = 1 is Laplace's rule. As s goes to 0 it is the maximum of the likelihood,
    which gives what was never seen no probability at all. The number of states is what ends this model: nothing is
    shared between states, however alike.

    Args:
        shape: of one example.
        levels: K, number of values an element can take in the data.
        stored: the support that the data are stored in, `${data.support}`.
        support: `binary` (K = 2), `levels`, `tokens`, or `auto`: tokens of text, binary of two levels or one channel
            (binarized), as the VAE has it, else levels.
        smoothing: s, pseudo-counts for each state.

    Raises:
        UsageError: the data are real numbers, or there are more than 2^20 states.

    >>> model = Histogram((1, 1, 2), levels=2, smoothing=0.5)
    >>> model.accumulate(torch.ones(8, 1, 1, 2))
    >>> model.log_prob(torch.tensor([[[[1.0, 1.0]]], [[[0.0, 1.0]]]])).exp()  # 8.5/10 and 0.5/10
    tensor([0.8500, 0.0500])
    """

    counts: Tensor
    place: Tensor

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        stored: Support | None = None,
        support: Literal["auto", "binary", "levels", "tokens"] = "auto",
        smoothing: PositiveFloat = 0.1,
    ):
        super().__init__()
        if levels is None:
            raise UsageError("model=histogram counts values, and these data are real numbers: use data with levels")
        if support == "auto":
            binary = levels == 2 or (len(shape) == 3 and shape[0] == 1)
            support = "tokens" if stored == "tokens" else "binary" if binary else "levels"
        self.shape, self.support, self.smoothing = tuple(shape), support, smoothing
        self.values, size = 2 if support == "binary" else levels, math.prod(shape)
        if size * math.log2(self.values) > LIMIT:
            raise UsageError(
                f"model=histogram counts each of {self.values}^{size} states of {'x'.join(map(str, shape))} {support}"
                f" elements, and 2^{LIMIT} is the most it can: data=bars fits, or smaller images and fewer levels;"
                " model=factorial takes these data"
            )
        self.register_buffer("counts", torch.zeros(self.values**size, dtype=torch.int64))
        self.register_buffer("place", self.values ** torch.arange(size), persistent=False)

    def _state(self, x: Tensor) -> Tensor:
        """The number of each x (B, *shape), (B,): element i is digit i."""
        return (x.flatten(1).long() * self.place).sum(1)

    def accumulate(self, x: Tensor) -> None:
        state = self._state(x)
        self.counts.scatter_add_(0, state, torch.ones_like(state))

    def log_prob(self, x: Tensor) -> Tensor:
        total = self.counts.sum() + self.smoothing * len(self.counts)
        return (self.counts[self._state(x)] + self.smoothing).log() - total.log()

    def _completions(self, x: Tensor, known: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Groups of examples (B,) with the states that agree with what is known of each, (b, M), and their weights."""
        flat = x.flatten(1).long()
        for mask, rows in masks_of(known):
            places = self.place[~mask]
            fillings = torch.arange(self.values ** len(places), device=x.device)[:, None]
            step = (fillings // self.values ** torch.arange(len(places), device=x.device) % self.values * places).sum(1)
            base = (flat * self.place * mask).sum(1)
            for part in rows.nonzero()[:, 0].split(max(1, CHUNK // len(step))):
                states = base[part, None] + step
                yield part, states, self.counts[states].double() + self.smoothing

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """One of the states that agree with what is known, by their probabilities."""
        drawn = torch.empty_like(x)
        for part, states, weights in self._completions(torch.where(known, x, 0), known):
            state = states.gather(1, torch.multinomial(weights, 1))
            drawn[part] = (state // self.place % self.values).view(-1, *self.shape).to(x.dtype)
        return drawn

    def completion(self, known: Tensor) -> Law:
        return "exact"

    def log_conditional(self, x: Tensor, known: Tensor) -> Tensor:
        total = torch.empty(len(x), device=x.device)
        for part, _, weights in self._completions(x, known):
            own = self.counts[self._state(x[part])] + self.smoothing
            total[part] = (own.log() - weights.sum(1).log()).float()
        return total

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        state = torch.multinomial(self.counts.float() + self.smoothing, n, replacement=True)
        values = (state[:, None] // self.place % self.values).view(n, *self.shape)
        return values.float() if self.support == "binary" else values
