"""The sliced Wasserstein distance between two sets of features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.evaluation.estimator import Finding, Subject, mean_and_error
from gentrain.evaluation.paired import Comparison
from gentrain.types import PositiveFloat, PositiveInt


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
