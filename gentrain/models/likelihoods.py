"""p(x | z): from a network's output to a normalised distribution over examples of a support.

A `Likelihood` is the last layer of a decoder: it owns the output biases (one per element of x, also after a
convolution), turns `raw` (B, per_element * D) into a distribution with event shape `shape`, and knows how to start at
the training mean. Densities and masses are in nats; every distribution here has an exact `mean`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from gentrain.errors import UsageError
from gentrain.types import Support

MARGIN = 1e-3
"""Means are moved into [MARGIN, 1 - MARGIN] of their range: a pixel that is never lit must stay possible."""


class Grades(Categorical):
    """A categorical distribution over 0…K-1 read as numbers, so it has a mean (torch's own is NaN).

    >>> Grades(logits=torch.zeros(2, 5)).mean
    tensor([2., 2.])
    """

    @property
    def mean(self) -> Tensor:
        return self.probs @ torch.arange(self._num_events, dtype=self.probs.dtype, device=self.probs.device)


class IndependentBits(Independent):
    """Independent Bernoulli elements; the sum is taken before the sign, which saves two passes over a batch."""

    base_dist: Bernoulli

    def log_prob(self, value: Tensor) -> Tensor:
        loss = binary_cross_entropy_with_logits(self.base_dist.logits, value, reduction="none")
        return -loss.sum(tuple(range(-len(self.event_shape), 0)))


class DiscretizedLogistic(Distribution):
    """A logistic variable rounded to the integers 0…K-1; the outermost two take the tails.

    P(x) = σ((e(x+1) - μ)/s) - σ((e(x) - μ)/s) with e(0) = -∞, e(K) = ∞, and edges e(x) = (2x - K)/(K - 1) between:
    the coordinates in which level 0 lies at -1 and level K-1 at 1 (Salimans et al. 2017, arXiv:1701.05517, eq. 2).

    Args:
        loc: μ, any shape.
        log_scale: log s, the same shape.
        levels: K.

    >>> p = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(-1.0), levels=4)
    >>> round(sum(p.log_prob(torch.tensor(k)).exp().item() for k in range(4)), 5)
    1.0
    """

    def __init__(self, loc: Tensor, log_scale: Tensor, levels: int):
        self.loc, self.log_scale, self.levels = loc, log_scale, levels
        super().__init__(loc.shape, validate_args=False)

    def _standardized(self, edge: Tensor | float) -> Tensor:
        """(e - μ)/s for the lower edge of level `edge`."""
        return ((2 * edge - self.levels) / (self.levels - 1) - self.loc) * torch.exp(-self.log_scale)

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.to(self.loc.dtype)
        low, high = self._standardized(value), self._standardized(value + 1)
        # σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)): no difference of nearly equal numbers, not even in the tails
        width = 2 / (self.levels - 1) * torch.exp(-self.log_scale)
        inner = logsigmoid(high) + logsigmoid(-low) + torch.log(-torch.expm1(-width))
        inner = torch.where(value <= 0, logsigmoid(high), inner)
        return torch.where(value >= self.levels - 1, logsigmoid(-low), inner)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        u = torch.rand(*sample_shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        x = self.loc + self.log_scale.exp() * torch.logit(u, eps=1e-7)
        return ((x + 1) * (self.levels - 1) / 2).round().clamp(0, self.levels - 1).detach()

    @property
    def mean(self) -> Tensor:
        """E x = Σ_{k=1}^{K-1} P(x >= k), level by level so that memory stays that of one example a time."""
        total = torch.zeros_like(self.loc)
        for k in range(1, self.levels):
            total += torch.sigmoid(-self._standardized(k))
        return total

    def expand(self, batch_shape: torch.Size, _instance: Distribution | None = None) -> DiscretizedLogistic:
        return DiscretizedLogistic(self.loc.expand(batch_shape), self.log_scale.expand(batch_shape), self.levels)


class Likelihood(nn.Module, ABC):
    """The last layer of a decoder.

    Args:
        shape: of one example.
        per_element: raw numbers a network must give for each element of x.

    Class attributes:
        support: of x.
    """

    support: ClassVar[Support]

    def __init__(self, shape: tuple[int, ...], per_element: int = 1):
        super().__init__()
        self.shape, self.per_element = tuple(shape), per_element
        self.bias = nn.Parameter(torch.zeros(per_element * math.prod(shape)))

    def forward(self, raw: Tensor) -> Independent:
        """The distribution of x for `raw`, (B, per_element * D) or (B, per_element * C, H, W)."""
        # The sum of a bfloat16 product and a float32 bias is float32: what follows is exact under autocast too.
        raw = (raw.flatten(1) + self.bias).view(-1, self.per_element, *self.shape)
        return self.independent(self.elements(raw))

    def independent(self, elements: Distribution) -> Independent:
        """The joint distribution of the elements of one example."""
        return Independent(elements, len(self.shape), validate_args=False)

    @abstractmethod
    def elements(self, raw: Tensor) -> Distribution:
        """Independent elements from `raw` (B, per_element, *shape)."""

    @abstractmethod
    def start_from_mean(self, mean: Tensor) -> None:
        """Set the biases such that raw = 0 gives `mean`, (*shape) in `support`."""

    def network_input(self, x: Tensor) -> Tensor:
        """x as an encoder likes it: of order one."""
        return x.to(self.bias.dtype)


class BernoulliLikelihood(Likelihood):
    """x in {0, 1}; raw = logit P(x = 1)."""

    support = "binary"

    def elements(self, raw: Tensor) -> Distribution:
        return Bernoulli(logits=raw[:, 0], validate_args=False)

    def independent(self, elements: Distribution) -> Independent:
        return IndependentBits(elements, len(self.shape), validate_args=False)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self.bias.copy_(torch.logit(mean.flatten().clamp(MARGIN, 1 - MARGIN)))


class GaussianLikelihood(Likelihood):
    """x real; raw = the mean, and one learned scale for all elements (σ-VAE, Rybkin et al. 2021, arXiv:2006.13202).

    A scale per element would let the density of an element that never varies grow without bound. The scale stays
    above exp(-7) for the same reason: log σ = -7 + softplus(log_scale + 7), which is log_scale wherever that is large.
    """

    support = "real"
    floor = -7.0

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(shape)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def elements(self, raw: Tensor) -> Distribution:
        scale = torch.exp(self.floor + softplus(self.log_scale - self.floor))
        return Normal(raw[:, 0], scale.expand_as(raw[:, 0]), validate_args=False)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self.bias.copy_(mean.flatten())


class _Levels(Likelihood):
    """What likelihoods over the integers 0…K-1 share."""

    support = "levels"

    def __init__(self, shape: tuple[int, ...], levels: int, per_element: int):
        super().__init__(shape, per_element)
        self.levels = levels

    def network_input(self, x: Tensor) -> Tensor:
        return super().network_input(x) * (2 / (self.levels - 1)) - 1

    def _inside(self, mean: Tensor) -> Tensor:
        return (mean.flatten() / (self.levels - 1)).clamp(MARGIN, 1 - MARGIN)


class CategoricalLikelihood(_Levels):
    """x in 0…K-1; raw = K logits an element, no order among the levels presumed.

    Starts from the distribution of largest entropy with the given mean, P(k) ∝ exp(η k).
    """

    def __init__(self, shape: tuple[int, ...], levels: int):
        super().__init__(shape, levels, per_element=levels)

    def elements(self, raw: Tensor) -> Distribution:
        return Grades(logits=raw.movedim(1, -1), validate_args=False)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        target = self._inside(mean)
        k = torch.linspace(0, 1, self.levels, dtype=target.dtype, device=target.device)[:, None]
        low, high = torch.full_like(target, -2e3), torch.full_like(target, 2e3)
        for _ in range(40):  # the mean grows with η: bisection
            eta = (low + high) / 2
            above = (k * torch.softmax(k * eta, 0)).sum(0) > target
            low, high = torch.where(above, low, eta), torch.where(above, eta, high)
        self.bias.copy_(((k - 0.5) * eta).flatten())


class DiscretizedLogisticLikelihood(_Levels):
    """x in 0…K-1; raw = location and log-scale of a `DiscretizedLogistic`, two numbers an element."""

    def __init__(self, shape: tuple[int, ...], levels: int):
        super().__init__(shape, levels, per_element=2)
        with torch.no_grad():
            self.bias.view(2, -1)[1] = -1.0  # a scale of a third: grey levels of one pixel spread about that much

    def elements(self, raw: Tensor) -> Distribution:
        loc, log_scale = raw.unbind(1)
        return DiscretizedLogistic(loc, log_scale.clamp(min=-7.0), self.levels)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self.bias.view(2, -1)[0] = 2 * self._inside(mean) - 1


def choose(name: str, shape: tuple[int, ...], levels: int | None) -> Likelihood:
    """The likelihood called `name`; `auto` goes by the data.

    auto: reals are gaussian; two levels, or one channel (grey images, binarized), bernoulli; else discretized_logistic.

    Raises:
        UsageError: data without levels and a likelihood over levels, or bits.

    >>> [choose("auto", shape, levels).support for shape, levels in (((1, 8, 8), 17), ((3, 8, 8), 256), ((2,), None))]
    ['binary', 'levels', 'real']
    """
    if name == "auto":
        over_levels = "bernoulli" if levels == 2 or shape[0] == 1 else "discretized_logistic"
        name = "gaussian" if levels is None else over_levels
    if name == "gaussian":
        return GaussianLikelihood(shape)
    if levels is None:
        raise UsageError(f"model.likelihood={name}: these data are real numbers without levels; use gaussian or auto")
    if name == "bernoulli":
        return BernoulliLikelihood(shape)
    return {"categorical": CategoricalLikelihood, "discretized_logistic": DiscretizedLogisticLikelihood}[name](
        shape, levels
    )
