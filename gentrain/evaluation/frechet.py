"""The Frechet distance between Gaussians fitted to two sets of features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.evaluation.estimator import Finding, Subject, Track, untracked
from gentrain.evaluation.paired import Comparison, blocks_of, jackknife
from gentrain.types import PositiveInt


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
    blocks = blocks_of(blocks, fake, real)
    without = []
    for b in track(range(blocks), blocks, "frechet"):
        sides = (_leave_out(x, b, blocks) for x in (fake, real))
        without.append(frechet(*(m for side in sides for m in side)))
    return value, *jackknife(value, without)


def _leave_out(x: Tensor, block: int, blocks: int) -> tuple[Tensor, Tensor]:
    """Moments of x (N, d) without every `blocks`-th element from the `block`-th on."""
    keep = torch.arange(len(x), device=x.device) % blocks != block
    return moments(x[keep])
