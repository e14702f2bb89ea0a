"""Gaussians: K of them side by side, which a mixture weighs, and one as a model of its own."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gentrain import noise
from gentrain.models.base import Conditions, Law, Reparametrised, StartsFromMean
from gentrain.models.missing import GivenPart, masks_of
from gentrain.types import PositiveFloat, Shape

Covariance = Literal["full", "diagonal", "spherical"]


def mixture_log_prob(x: Tensor, centres: Tensor, std: float) -> Tensor:
    """log 1/M Σ_m N(x; c_m, σ² I) in nats of x (B, D) for centres (M, D), (B,).

    >>> mixture_log_prob(torch.zeros(1, 2), torch.zeros(3, 2), 1.0)  # -log 2π
    tensor([-1.8379])
    """
    count, dim = centres.shape
    square = ((x[:, None] - centres) / std).square().sum(2)
    return torch.logsumexp(-0.5 * square, 1) - 0.5 * dim * math.log(2 * math.pi * std**2) - math.log(count)


class Gaussians(nn.Module):
    """N(x; μ_k, Σ_k) for k < K over D reals, Σ_k = L_k L_kᵀ with L_k lower triangular.

    Spherical is one variance for all dimensions, diagonal one for each, full the whole matrix: then `lower` has what
    stands below L's diagonal, row by row.

    Args:
        count, dim: K and D. floor: the least variance: L's diagonal is held at its root or above.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, count: int, dim: int, covariance: Covariance, floor: float):
        super().__init__()
        self.covariance: Covariance = "diagonal" if covariance == "full" and dim == 1 else covariance
        self.dim, self.floor = dim, floor
        self.mean = nn.Parameter(torch.randn(count, dim))
        self.log_scale = nn.Parameter(torch.zeros(count, 1 if covariance == "spherical" else dim))
        if self.covariance == "full":
            rows, columns = torch.tril_indices(dim, dim, -1)
            self.lower = nn.Parameter(torch.zeros(count, len(rows)))
            self.register_buffer("rows", rows, persistent=False)
            self.register_buffer("columns", columns, persistent=False)

    @property
    def scale(self) -> Tensor:
        """L's diagonal, (K, D)."""
        return self.log_scale.clamp(min=0.5 * math.log(self.floor)).exp().expand(-1, self.dim)

    @property
    def scale_tril(self) -> Tensor:
        """L, (K, D, D)."""
        matrix = torch.diag_embed(self.scale)
        if self.covariance == "full":
            matrix = matrix.index_put(
                (torch.arange(len(matrix), device=matrix.device)[:, None], self.rows, self.columns), self.lower
            )
        return matrix

    def given(self, k: int, known: Tensor) -> GivenPart:
        """Gaussian k with so much known, (D,)."""
        if self.covariance == "full":
            factor = self.scale_tril[k].double()
            return GivenPart(self.mean[k], factor @ factor.t(), known)
        return GivenPart(self.mean[k], torch.diag(self.scale[k].double().square()), known)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; μ_k, Σ_k) of x (B, D), in nats, (B, K)."""
        if self.covariance == "full":
            distance = (x - self.mean[:, None]).mT  # (K, D, B)
            z = torch.linalg.solve_triangular(self.scale_tril, distance, upper=False)
            square = z.square().sum(1).t()
        else:
            square = ((x[:, None] - self.mean) / self.scale).square().sum(2)
        return -0.5 * (square + self.dim * math.log(2 * math.pi)) - self.scale.log().sum(1)

    def transform(self, z: Tensor, k: int) -> Tensor:
        """μ_k + L_k z for z (B, D): draws of Gaussian k from standard normal ones."""
        if self.covariance == "full":
            return self.mean[k] + z @ self.scale_tril[k].t()
        return self.mean[k] + z * self.scale[k]

    @torch.no_grad()
    def set_moments(self, mean: Tensor, covariance: Tensor) -> None:
        """Take up μ (K, D) and Σ: (K, D, D) of full, (K, D) of diagonal, (K, 1) of spherical Gaussians."""
        self.mean.copy_(mean)
        if self.covariance == "full":
            factor = torch.linalg.cholesky_ex(covariance).L  # unchecked: that would stall a GPU
            self.log_scale.copy_(factor.diagonal(dim1=1, dim2=2).log())
            self.lower.copy_(factor[:, self.rows, self.columns])
        else:
            self.log_scale.copy_(0.5 * covariance.log())


class Gaussian(Reparametrised, Conditions, StartsFromMean):
    """p(x) = N(x; μ, Σ) over D real elements, Σ = L Lᵀ with L lower triangular.

    Which Gaussian is nearest to a distribution of another form depends on the direction: KL(data ‖ p) has its minimum
    at the data's mean and covariance and covers all modes, KL(p ‖ data) has one in each mode (Bishop 2006, section
    10.1.2).

    Args:
        shape: of one example.
        covariance: `full`, `diagonal` or `spherical`.
        floor: the least variance, in the data's unit squared: of an element given those before it, for a full matrix.

    >>> model = Gaussian((2,), covariance="diagonal")
    >>> with torch.no_grad():
    ...     model.normal.set_moments(torch.zeros(1, 2), torch.tensor([[1.0, 4.0]]))
    >>> model.log_prob(torch.zeros(1, 2))  # -log 2π - log 2
    tensor([-2.5310], grad_fn=<SelectBackward0>)
    """

    support = "real"

    def __init__(
        self,
        shape: Shape,
        covariance: Literal["full", "diagonal", "spherical"] = "full",
        floor: PositiveFloat = 1e-6,
    ):
        super().__init__()
        self.shape = tuple(shape)
        self.normal = Gaussians(1, math.prod(shape), covariance, floor)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.normal.log_prob(x.flatten(1))[:, 0]

    def rsample(self, n: int) -> Tensor:
        z = noise.normal(n, self.normal.dim, device=self.device)
        return self.normal.transform(z, 0).view(n, *self.shape)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.rsample(n)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        flat = torch.where(known, x, 0).flatten(1)
        for mask, rows in masks_of(known):
            flat[rows] = self.normal.given(0, mask).fill(flat[rows])
        return flat.view_as(x)

    def completion(self, known: Tensor) -> Law:
        return "exact"

    @torch.no_grad()
    def log_conditional(self, x: Tensor, known: Tensor) -> Tensor:
        total = self.log_prob(x).double()
        for mask, rows in masks_of(known):
            total[rows] -= self.normal.given(0, mask).log_known(x[rows].flatten(1))
        return total.float()

    def start_from_mean(self, mean: Tensor) -> None:
        """Begin around the mean: at a distance of N(0, I), so that no symmetry of the data holds the start in place."""
        with torch.no_grad():
            self.normal.mean.add_(mean.flatten())
