"""The fully visible sigmoid belief network."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gentrain.errors import UsageError
from gentrain.models.autoregressive import Ancestral, ordering
from gentrain.models.base import Filters
from gentrain.models.likelihoods import BernoulliLikelihood
from gentrain.types import PositiveInt, Shape


class FVSBN(Ancestral, Filters):
    """p(x_o(i) = 1 | x_o(<i)) = σ(b_o(i) + Σ_{j<i} W_o(i)o(j) x_o(j)): a logistic regression on all earlier bits.

    The sigmoid belief network without hidden units (Neal 1992; Frey et al. 1996). All D regressions are one product
    with a masked D x D matrix.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data. More than two are binarized.
        order: `raster`, or `random`: drawn once, and kept with the weights.

    Raises:
        UsageError: the data are real numbers.

    >>> model = FVSBN((1, 2, 2), levels=2)
    >>> model.log_prob(torch.ones(3, 1, 2, 2)).exp()  # no weights yet: 1/2^4
    tensor([0.0625, 0.0625, 0.0625], grad_fn=<ExpBackward0>)
    """

    def __init__(self, shape: Shape, levels: PositiveInt | None = None, order: Literal["raster", "random"] = "raster"):
        if levels is None:
            raise UsageError("model=fvsbn models bits, and these data are real numbers: use data with levels")
        size = math.prod(shape)
        super().__init__(shape, BernoulliLikelihood(shape), ordering(order, size))
        self.weight = nn.Parameter(torch.zeros(size, size))  # rows and columns in the order

    def raw(self, u: Tensor) -> Tensor:
        return linear(u, self.weight.tril(-1))[..., None]

    def start(self, n: int) -> Tensor:
        return torch.zeros(n, self.size, device=self.device)

    def raw_at(self, state: Tensor, i: int) -> Tensor:
        return (state[:, :i] @ self.weight[i, :i])[:, None]

    def feed(self, state: Tensor, i: int, value: Tensor) -> None:
        state[:, i] = value

    @torch.no_grad()
    def filters(self) -> Tensor:
        """What each element looks for in those before it: the rows of W, (D, *shape)."""
        place = self.order.argsort()
        return self.weight.tril(-1)[place][:, place].view(-1, *self.shape)
