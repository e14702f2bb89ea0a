"""Precision, recall, density and coverage: two sets of features by the balls around their elements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.evaluation.estimator import Finding, Subject, mean_and_error
from gentrain.evaluation.paired import ROWS, Comparison
from gentrain.objectives.mmd import squared_distances
from gentrain.types import PositiveInt


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
