"""Maximum mean discrepancies: two sets of features by the means of a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentrain.errors import DataError
from gentrain.evaluation.estimator import Finding, Subject
from gentrain.evaluation.paired import ROWS, Comparison, blocks_of, jackknife
from gentrain.objectives.mmd import Kernel, squared_distances
from gentrain.types import PositiveFloat, PositiveInt


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """(xᵀy/d + 1)³, the kernel of KID.

    >>> polynomial(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([[8.]])
    """
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


@dataclass(frozen=True)
class Gaussians:
    """Σ_m exp(-‖x - y‖²/(2 σ_m²)) over the five bandwidths σ_m = σ/4, σ/2, σ, 2σ, 4σ.

    >>> one = torch.ones(1, 1)
    >>> round(float(Gaussians(1.0)(one, 2 * one)), 4)  # e^-8 + e^-2 + e^-1/2 + e^-1/8 + e^-1/32
    2.5939
    """

    bandwidth: float

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        term = squared_distances(x, y).mul_(-1 / (2 * (4 * self.bandwidth) ** 2)).exp_()
        total = term.clone()
        for _ in range(4):  # half the bandwidth is the fourth power
            total += term.square_().square_()
        return total


def unbiased_mmd(fake: Tensor, real: Tensor, kernel: Kernel, blocks: int, track: Any = None) -> tuple[float, float]:
    """MMD²(fake, real), the U-statistic, and its standard error (Gretton et al. 2012, eq. 3):

        Σ_{i≠j} k(x_i, x_j)/(n(n-1)) + Σ_{i≠j} k(y_i, y_j)/(m(m-1)) - 2 Σ_{i,j} k(x_i, y_j)/(nm)

    Its mean is 0 where both come from one distribution, so it may be negative. The error is the jackknife's over blocks
    of both sets, in random order; there it is somewhat too large.

    Args:
        fake: (n, d), real: (m, d), float64. kernel: of (N, d) and (M, d), (N, M). blocks: of the jackknife.
        track: shows progress, as `Subject.track`.
    """
    blocks = blocks_of(blocks, fake, real)
    xs, ys = (list(t[torch.randperm(len(t)).to(t.device)].tensor_split(blocks)) for t in (fake, real))
    sums = torch.zeros(3, blocks, blocks, dtype=torch.float64)  # of k(x, x'), k(y, y') and k(x, y) by pairs of blocks
    rounds = range(blocks) if track is None else track(range(blocks), blocks, "kernels")
    for a in rounds:
        for b in range(blocks):
            sums[2, a, b] = _kernel_sum(xs[a], ys[b], kernel)
            for s, z in ((0, xs), (1, ys)):
                if a <= b:
                    sums[s, a, b] = sums[s, b, a] = _kernel_sum(z[a], z[b], kernel, same=a == b)

    def statistic(keep: list[int]) -> float:
        n, m = (sum(len(z[b]) for b in keep) for z in (xs, ys))
        xx, yy, xy = (float(s[keep][:, keep].sum()) for s in sums)
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)

    everything = list(range(blocks))
    value = statistic(everything)
    error, _ = jackknife(value, [statistic([b for b in everything if b != out]) for out in everything])
    return value, error


def _kernel_sum(x: Tensor, y: Tensor, kernel: Kernel, same: bool = False) -> float:
    """Σ k(x_i, y_j), over i ≠ j if x and y are one set."""
    total = 0.0
    for start in range(0, len(x), ROWS):
        k = kernel(x[start : start + ROWS], y)
        total += float(k.sum()) - (float(k.diagonal(start).sum()) if same else 0.0)
    return total


@dataclass(frozen=True)
class KID(Comparison):
    """The squared maximum mean discrepancy with kernel (xᵀy/d + 1)³ (Bińkowski et al. 2018, arXiv:1801.01401).

    Unbiased at any n. The paper averages it over random subsets to save time; here it is computed over all pairs,
    which has the same expectation and less noise. Of Inception features it is the KID of the literature. Samples that
    repeat the examples of the reference score below 0: the two sets must be independent.

    Args:
        blocks: of the jackknife.
    """

    blocks: PositiveInt = 10

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        pair = self.pair(subject, 4)
        value, error = unbiased_mmd(pair.fake, pair.real, polynomial, self.blocks, subject.track)
        yield Finding("kid", "kid", value, error, pair.unit("kernel"), self.n_fake, pair.settings)


@dataclass(frozen=True)
class MMD(Comparison):
    """The squared maximum mean discrepancy with a sum of Gaussian kernels (Gretton et al. 2012; Li et al. 2015).

    Bandwidths are 1/4, 1/2, 1, 2 and 4 times the median distance between examples of the reference: the same for all
    models of the data. Unbiased at any n.

    Args:
        bandwidth: in place of the median; None takes that, and the row says what it was (`sigma`).
        blocks: of the jackknife.
    """

    bandwidth: PositiveFloat | None = None
    blocks: PositiveInt = 10

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        pair = self.pair(subject, 4)
        sigma = self.bandwidth or median_distance(pair.real)
        value, error = unbiased_mmd(pair.fake, pair.real, Gaussians(sigma), self.blocks, subject.track)
        settings = {**pair.settings, "sigma": sigma}
        yield Finding("mmd", "mmd", value, error, pair.unit("kernel"), self.n_fake, settings)


def median_distance(x: Tensor, most: int = 1000) -> float:
    """The median distance between `most` of x (N, d), evenly spread over it, or between all of fewer.

    Raises:
        DataError: it is 0: most examples are the same.

    >>> median_distance(torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64))
    2.0
    """
    some = x[torch.linspace(0, len(x) - 1, min(most, len(x))).long().to(x.device)]
    i, j = torch.triu_indices(len(some), len(some), 1, device=x.device)
    median = float(squared_distances(some, some)[i, j].sqrt().median())
    if median == 0:
        raise DataError("bandwidth=null: more than half of the examples are equal, their median distance is 0; set one")
    return median
