"""Principal components by streaming sums, and the Gaussian that goes with them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.models.base import Accumulates, Codes, Completes, Conditions, Density, Filters, Law, Reconstructs
from gentrain.models.missing import GivenPart, masks_of
from gentrain.types import PositiveInt, Shape

FLOOR = 1e-6
"""Smallest variance in any direction: data that lie in a plane would have a density without bound."""


class Components(NamedTuple):
    """The eigen-decomposition of a covariance, float64: what all answers are made of."""

    mean: Tensor  # (D,)
    axes: Tensor  # U, the q leading eigenvectors as rows, (q, D), each with its largest element positive
    variances: Tensor  # λ_1 >= … >= λ_q, (q,)
    rest: Tensor  # σ², the mean of the D - q other eigenvalues; 0 if there are none


class PCA(Accumulates, Codes, Completes, Reconstructs, Filters):
    """x ≈ μ + Σ_k u_k z_k, z_k = u_kᵀ(x - μ), with u_k the leading eigenvectors of the covariance (Pearson 1901).

    Sums of x and of x xᵀ are kept in float64, so that the fit is exact whatever the size of a batch, and the
    eigenvectors are computed when they are asked for. The mean squared error of the training examples, summed over
    elements, is the sum of the eigenvalues that are left out. `codes` are z, `filters` the u_k.

    `sample` draws from probabilistic PCA at its maximum of the likelihood, N(μ, U diag(λ - σ²) Uᵀ + σ² I) with σ² the
    mean of the eigenvalues left out (Tipping & Bishop 1999, J. R. Stat. Soc. B 61, eq. 7 and 8). Of images, `support`
    unit, pixels beyond [0, 1] are moved to its ends, and the result has no density; `PPCA` has.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        latent_dim: q, components kept.

    Raises:
        UsageError: more components than elements of x.

    >>> model = PCA((2,), latent_dim=1)
    >>> model.accumulate(torch.tensor([[1.0, 1.0], [3.0, 3.0], [2.0, 2.0]]))
    >>> model.codes(torch.tensor([[2.0, 2.0], [3.0, 3.0]])).squeeze(1)
    tensor([0.0000, 1.4142])
    >>> model.reconstruct(torch.tensor([[1.0, 2.0]]))
    tensor([[1.5000, 1.5000]])
    """

    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, shape: Shape, levels: PositiveInt | None = None, latent_dim: PositiveInt = 30):
        super().__init__()
        size = math.prod(shape)
        if latent_dim > size:
            raise UsageError(f"model.latent_dim={latent_dim}: data of {size} elements have {size} components at most")
        self.shape, self.latent_dim = tuple(shape), latent_dim
        self.support = "real" if levels is None else "unit"
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(size, size, dtype=torch.float64))
        self._kept: tuple[list[Tensor], Components] | None = None

    def accumulate(self, x: Tensor) -> None:
        x = x.flatten(1).double()
        self.count += len(x)
        self.total += x.sum(0)
        self.products.addmm_(x.t(), x)

    @torch.no_grad()
    def components(self) -> Components:
        """Mean, axes and variances, kept until an example comes in.

        Before the second example there is no covariance: I stands in for it.
        """
        sums = [self.count, self.total]
        if self._kept is None or not all(map(torch.equal, sums, self._kept[0])):
            self._kept = [s.clone() for s in sums], self._decompose()
        return self._kept[1]

    def _decompose(self) -> Components:
        q, size = self.latent_dim, len(self.total)
        mean = self.total / self.count.clamp(min=1)
        if self.count < 2:
            axes = torch.eye(size, dtype=mean.dtype, device=mean.device)
            ones = torch.ones_like(mean)
            return Components(mean, axes[:q], ones[:q], ones[0] if q < size else 0 * ones[0])
        values, vectors = torch.linalg.eigh(self.products / self.count - torch.outer(mean, mean))
        values = values.flip(0).clamp(min=0)
        axes = vectors.t().flip(0)[:q]
        signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        return Components(mean, axes * signs, values[:q], values[q:].sum() / max(1, size - q))

    def _require_examples(self) -> None:
        if self.count < 2:
            raise UsageError(f"{type(self).__name__} has seen no two examples yet: train it for a step at least")

    def codes(self, x: Tensor) -> Tensor:
        found = self.components()
        return ((x.flatten(1).double() - found.mean) @ found.axes.t()).float()

    def reconstruct(self, x: Tensor) -> Tensor:
        """μ + U Uᵀ(x - μ): a projection, which may leave [0, 1]."""
        found = self.components()
        z = (x.flatten(1).double() - found.mean) @ found.axes.t()
        return (found.mean + z @ found.axes).float().view(-1, *self.shape)

    def filters(self) -> Tensor:
        return self.components().axes.float().view(-1, *self.shape)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n examples, (n, *shape).

        Raises:
            UsageError: it has not seen two examples yet.
        """
        self._require_examples()
        mean, axes, variances, rest = self.components()
        scales, rest = _floored(variances, rest)
        z = torch.randn(n, len(axes), dtype=mean.dtype, device=mean.device)
        noise = torch.randn(n, len(mean), dtype=mean.dtype, device=mean.device) * rest.sqrt()
        noise -= (noise @ axes.t()) @ axes  # across the axes alone: along them the variance is λ
        x = (mean + (z * scales.sqrt()) @ axes + noise).float().view(-1, *self.shape)
        return x.clamp_(0, 1) if self.support == "unit" else x

    def _given(self, known: Tensor) -> GivenPart:
        """The Gaussian that is sampled, with so much known, (D,)."""
        self._require_examples()
        mean, axes, variances, rest = self.components()
        along, across = _floored(variances, rest)
        covariance = (axes.t() * (along - across)) @ axes + across * torch.eye(len(mean)).to(axes)
        return GivenPart(mean, covariance, known)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """By the Gaussian that is sampled given what is known; of images, pixels beyond [0, 1] are moved to its ends.

        Raises:
            UsageError: it has not seen two examples yet.
        """
        flat = torch.where(known, x, 0).flatten(1)
        for mask, rows in masks_of(known):
            flat[rows] = self._given(mask).fill(flat[rows])
        return torch.where(known, x, flat.view_as(x).clamp(0, 1) if self.support == "unit" else flat.view_as(x))

    def completion(self, known: Tensor) -> Law:
        return "exact" if self.support == "real" else "approximate"


class PPCA(PCA, Density, Conditions):
    """p(x) = N(x; μ, U diag(λ) Uᵀ + σ² (I - U Uᵀ)): probabilistic PCA, a density (Tipping & Bishop 1999).

    It is the Gaussian of largest likelihood among those with covariance W Wᵀ + σ² I, W of q columns. Its support is
    the reals. Grey levels are numbers between 0 and 1 here; their density means something with `data.dequantize=true`
    only, and the protocol says which it was. No variance is below 1e-6.

    Args: as `PCA`.

    >>> model = PPCA((2,), latent_dim=1)
    >>> model.accumulate(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    >>> model.log_prob(torch.zeros(1, 2))  # -log 2π - log(2 x 1/2)/2
    tensor([-1.8379])
    """

    def __init__(self, shape: Shape, levels: PositiveInt | None = None, latent_dim: PositiveInt = 30):
        super().__init__(shape, levels, latent_dim)
        self.support = "real"

    def log_prob(self, x: Tensor) -> Tensor:
        mean, axes, variances, rest = self.components()
        along, across = _floored(variances, rest)
        x = x.flatten(1).double() - mean
        z = x @ axes.t()
        off = (x - z @ axes).square().sum(1)  # exact also where the two parts nearly cancel
        others = len(mean) - len(axes)
        determinant = along.log().sum() + others * across.log()
        quadratic = (z.square() / along).sum(1) + off / across * (others > 0)
        return (-0.5 * (len(mean) * math.log(2 * math.pi) + determinant + quadratic)).float()

    @torch.no_grad()
    def log_conditional(self, x: Tensor, known: Tensor) -> Tensor:
        total = self.log_prob(x).double()
        for mask, rows in masks_of(known):
            total[rows] -= self._given(mask).log_known(x[rows].flatten(1))
        return total.float()


def _floored(along: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    return along.clamp(min=FLOOR), across.clamp(min=FLOOR)
