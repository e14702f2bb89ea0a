"""The fully visible sigmoid belief network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gentrain.errors import UsageError
from gentrain.models.autoregressive import Ancestral, Order, ordering
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

    mask: Tensor

    def __init__(self, shape: Shape, levels: PositiveInt | None = None, order: Order = "raster"):
        if levels is None:
            raise UsageError("model=fvsbn models bits, and these data are real numbers: use data with levels")
        size = math.prod(shape)
        super().__init__(shape, BernoulliLikelihood(shape), ordering(order, size))
        self.weight = nn.Parameter(torch.zeros(size, size))
        self.register_buffer("mask", torch.empty(size, size, dtype=torch.bool), persistent=False)
        self._set_mask()
        self.register_load_state_dict_post_hook(lambda model, _: model._set_mask())

    def _set_mask(self) -> None:
        place = self.ordering.argsort()
        torch.gt(place[:, None], place, out=self.mask)

    def masked_weight(self) -> Tensor:
        """W with zeros where the column's element isn't before the row's, (D, D)."""
        return self.weight * self.mask

    def raw(self, x: Tensor) -> Tensor:
        return linear(x, self.masked_weight())[..., None]

    def start(self, n: int) -> Tensor:
        return torch.zeros(n, self.size, device=self.device)

    def raw_at(self, state: Tensor, d: Tensor) -> Tensor:
        return (state @ self.weight[d])[:, None]  # what comes later is zero in the state

    def feed(self, state: Tensor, d: Tensor, value: Tensor) -> None:
        state[:, d] = value

    @torch.no_grad()
    def filters(self) -> Tensor:
        """What each element looks for in those before it: the rows of W, (D, *shape)."""
        return self.masked_weight().view(-1, *self.shape)
