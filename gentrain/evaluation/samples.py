"""Estimators of how near a model's samples are to the data: distances between two sets of features.

All of them compare `n_fake` samples with examples of a `reference` split, in a feature space (`gentrain.evaluation.
features`) that is part of the number's unit: a distance between classifier features and one between pixels are never
in one column. Numbers of different `n_fake` or `n_real` are not comparable where an estimator is biased, as the Frechet
distance and the manifold measures are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gentrain.errors import DataError, UsageError
from gentrain.evaluation.estimator import Estimator, Finding, Subject, Track, mean_and_error, untracked
from gentrain.evaluation.features import Space, how_many, space
from gentrain.objectives.mmd import Kernel, squared_distances
from gentrain.types import PositiveFloat, PositiveInt

ROWS = 1000  # of a block of distances


@dataclass(frozen=True)
class Pair:
    """Two sets of features, `fake` (n_fake, d) and `real` (n_real, d), in float64, and what a row says of them."""

    fake: Tensor
    real: Tensor
    space: Space
    settings: dict[str, Any]

    def unit(self, of: str) -> str:
        return f"{of} ({self.space.name})"


@dataclass(frozen=True)
class Comparison(Estimator):
    """Compares samples with examples.

    Args:
        n_fake: samples of the model.
        reference: split of the examples; published numbers mostly compare with the training set.
        n_reference: examples of it; None takes n_fake, or all where there are fewer. The row's `n_real` says which.
        features: `classifier`, `pixels` (of a point: its coordinates), `inception`; `auto` is the classifier for
            labelled images and pixels for all else.
    """

    of_samples = True
    n_fake: PositiveInt = 10_000
    reference: Literal["train", "validation", "test"] = "train"
    n_reference: PositiveInt | None = None
    features: Literal["auto", "classifier", "pixels", "inception"] = "auto"

    def unfit(self, subject: Subject) -> str | None:
        if subject.model.support == "tokens":
            return "models tokens, between which there are no distances"
        return super().unfit(subject)

    def pair(self, subject: Subject, least: int = 2) -> Pair:
        """Both sets of features.

        Raises:
            UsageError: one has fewer than `least` elements, or the reference split fewer than asked for.
        """
        n_real = how_many(subject, self.reference, self.n_reference, self.n_fake)
        for name, n in (("n_fake", self.n_fake), ("n_reference", n_real)):
            if n < least:
                raise UsageError(f"{name}={n}: this estimator needs at least {least}")
        where = space(subject, self.features)
        real = where.of_examples(subject, self.reference, n_real).double()
        fake = where.of_samples(subject, self.n_fake).double()
        settings = {"n_real": n_real, "dimensions": real.shape[1], **where.settings}
        return Pair(fake, real, where, settings)


# --- Frechet distance -----------------------------------------------------------------------------------------------


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of x (N, d)."""
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def frechet(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """Squared Frechet distance of two Gaussians (Dowson & Landau 1982), in float64:

        |m_x - m_y|² + tr(C_x + C_y - 2 (C_x C_y)^½)

    The trace of the root is the sum of the roots of the eigenvalues of C_x^½ C_y C_x^½, which is symmetric.

    >>> two, one = torch.full((1,), 2.0), torch.ones(1)
    >>> frechet(two, one[None], one, 9 * one[None])  # (2 - 1)² + (1 - 3)²
    5.0
    """
    mean_x, cov_x, mean_y, cov_y = (t.double() for t in (mean_x, cov_x, mean_y, cov_y))
    values, vectors = torch.linalg.eigh(cov_x)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    trace = torch.linalg.eigvalsh(root @ cov_y @ root).clamp_min(0).sqrt().sum()
    return float((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * trace)


@dataclass(frozen=True)
class FID(Comparison):
    """The Frechet distance between Gaussians fitted to samples and examples (Heusel et al. 2017, arXiv:1706.08500).

    Of Inception features it is the FID of the literature, of other features it has another scale. It is biased upward
    by some multiple of 1/n: a perfect model does not score 0. The row's `bias` estimates by how much. Standard error
    and bias are the jackknife's, that leaves out a block of both sets at a time.

    Args:
        blocks: of the jackknife.
    """

    blocks: PositiveInt = 10

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        pair = self.pair(subject, 4)
        value, error, bias = frechet_estimate(pair.fake, pair.real, self.blocks, subject.track)
        yield Finding("fid", "fid", value, error, pair.unit("squared distance"), self.n_fake,
                      {**pair.settings, "bias": bias})  # fmt: skip


def frechet_estimate(fake: Tensor, real: Tensor, blocks: int, track: Track = untracked) -> tuple[float, float, float]:
    """The Frechet distance of Gaussians fitted to features (n, d) and (m, d), its standard error and its bias.

    Args:
        blocks: of the jackknife. track: shows progress.
    """
    shift = real.mean(0)
    fake, real = fake - shift, real - shift
    value = frechet(*moments(fake), *moments(real))
    blocks = _blocks(blocks, fake, real)
    without = []
    for b in track(range(blocks), blocks, "frechet"):
        sides = (_leave_out(x, b, blocks) for x in (fake, real))
        without.append(frechet(*(m for side in sides for m in side)))
    return value, *jackknife(value, without)


def _blocks(wanted: int, fake: Tensor, real: Tensor) -> int:
    """How many blocks both sets can be cut into such that each has two elements."""
    return max(2, min(wanted, len(fake) // 2, len(real) // 2))


def _leave_out(x: Tensor, block: int, blocks: int) -> tuple[Tensor, Tensor]:
    """Moments of x (N, d) without every `blocks`-th element from the `block`-th on."""
    keep = torch.arange(len(x), device=x.device) % blocks != block
    return moments(x[keep])


def jackknife(value: float, without: list[float]) -> tuple[float, float]:
    """Standard error and bias from the values without one block each (Efron & Stein 1981).

    With B blocks and mean m of the values v_b: √((B-1)/B Σ_b (v_b - m)²) and (B-1)(m - value).

    >>> error, bias = jackknife(2.0, [2.5, 2.0, 1.5])  # the mean of 1, 2, 3
    >>> round(error, 6), bias
    (0.57735, 0.0)
    """
    t, blocks = torch.tensor(without, dtype=torch.float64), len(without)
    error = ((blocks - 1) / blocks * (t - t.mean()).square().sum()).sqrt()
    return float(error), float((blocks - 1) * (t.mean() - value))


# --- maximum mean discrepancies -------------------------------------------------------------------------------------


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
    blocks = _blocks(blocks, fake, real)
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


# --- manifolds ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifolds:
    """Terms of the four means: `precision` and `density` of each sample (n_fake,), `recall` and `coverage` of each real
    example (n_real,)."""

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def radii(x: Tensor, k: int) -> Tensor:
    """Squared distance from each of x (N, d) to its k-th nearest among the others, (N,)."""
    return torch.cat([squared_distances(piece, x).topk(k + 1, largest=False).values[:, -1] for piece in x.split(ROWS)])


def manifolds(fake: Tensor, real: Tensor, k: int) -> Manifolds:
    """Balls around each element, with the distance to its k-th nearest neighbour in its own set as radius.

        precision   a sample lies in some ball of the real examples   (Kynkäänniemi et al. 2019, arXiv:1904.06991)
        recall      an example lies in some ball of the samples       (the same)
        density     1/k times the number of real balls a sample lies in   (Naeem et al. 2020, arXiv:2002.09797)
        coverage    the ball of a real example contains a sample          (the same)

    Balls are closed, with 1e-9 of slack for rounding: bits have many equal distances.

    Args:
        fake: (n, d), real: (m, d), float64, more than k of each. k: neighbours.
    """
    slack = 1e-9 * float(real.square().sum(1).mean())
    real_radii, fake_radii = radii(real, k) + slack, radii(fake, k) + slack
    precision, density = [], []
    recall, coverage = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    for start in range(0, len(fake), ROWS):
        distances = squared_distances(fake[start : start + ROWS], real)
        inside = distances <= real_radii
        precision.append(inside.any(1))
        density.append(inside.sum(1) / k)
        coverage |= inside.any(0)
        recall |= (distances <= fake_radii[start : start + ROWS, None]).any(0)
    return Manifolds(torch.cat(precision), recall, torch.cat(density), coverage)


@dataclass(frozen=True)
class PRDC(Comparison):
    """Precision, recall, density and coverage of samples: is each like the data, is each example like a sample.

    All are shares in [0, 1] but density, whose expectation is 1 where both sets come from one distribution. Recall
    believes in outliers among the samples and precision in outliers among the data; density and coverage were made to
    bear them. Where many examples are equal, as with few bits, all of their balls count and density is far above 1. The
    standard errors take the other set's balls as given.

    Args:
        k: neighbours.
    """

    k: PositiveInt = 5

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        pair = self.pair(subject, self.k + 1)
        found = manifolds(pair.fake, pair.real, self.k)
        for metric in ("precision", "recall", "density", "coverage"):
            terms = getattr(found, metric)
            value, error = mean_and_error(terms)
            yield Finding(metric, "prdc", value, error, pair.unit("share"), len(terms), pair.settings)


# --- sliced Wasserstein ---------------------------------------------------------------------------------------------


def wasserstein(x: Tensor, y: Tensor, p: float) -> Tensor:
    """W_p^p of each pair of columns of x (N, P) and y (M, P), exactly, (P,): ∫ |F⁻¹(t) - G⁻¹(t)|^p dt.

    Both inverse distribution functions are constant between neighbours of {i/N} ∪ {j/M}.

    >>> wasserstein(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]]), p=1)
    tensor([1.3333])
    """
    n, m = len(x), len(y)
    x, y = x.sort(0).values, y.sort(0).values
    if n == m:
        return (x - y).abs().pow(p).mean(0)
    # in units of 1/(NM), so that equal breaks are equal
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([torch.zeros(1, dtype=ends.dtype), ends[:-1]])
    widths = ((ends - starts) / (n * m)).to(x.device, x.dtype)
    i, j = (starts // m).to(x.device), (starts // n).to(x.device)
    return ((x[i] - y[j]).abs().pow(p) * widths[:, None]).sum(0)


@dataclass(frozen=True)
class SWD(Comparison):
    """The sliced Wasserstein distance (Σ_θ W_p^p(θᵀx, θᵀy)/P)^(1/p) over P random directions θ (Rabin et al. 2011).

    The standard error is that of the directions' draw, to first order; the draw of samples and examples adds to it, and
    to the distance: it is biased upward and a perfect model does not score 0.

    Args:
        projections: P. p: of W_p.
    """

    projections: PositiveInt = 512
    p: PositiveFloat = 2.0

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        pair = self.pair(subject)
        values = []
        chunks = [min(64, self.projections - start) for start in range(0, self.projections, 64)]
        for count in subject.track(chunks, len(chunks), "projections"):
            directions = torch.randn(pair.real.shape[1], count, dtype=torch.float64).to(pair.real.device)
            directions /= directions.norm(dim=0)
            values.append(wasserstein(pair.fake @ directions, pair.real @ directions, self.p))
        mean, error = mean_and_error(torch.cat(values))
        value = mean ** (1 / self.p)
        error = error * value / (self.p * mean) if mean > 0 else 0.0
        yield Finding("swd", "swd", value, error, pair.unit("distance"), self.n_fake, pair.settings)
