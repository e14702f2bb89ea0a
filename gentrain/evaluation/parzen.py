"""Parzen windows: the density of Gaussian kernels around a model's samples (Breuleux et al. 2011).

For comparison with older papers only. The bandwidth decides most of the number, k-means centroids score better than
the data's own distribution, and it says little of the model's likelihood (Theis et al. 2016, arXiv:1511.01844).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from gentrain.errors import GentrainError, UsageError
from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.evaluation.judged import representation, samples, unit
from gentrain.models.base import Generative, LatentVariable, evenly
from gentrain.models.gdae import DenoisingChain
from gentrain.types import PositiveFloat, PositiveInt

DRAWN = 500  # codes decoded at a time


def parzen_log_likelihood(x: Tensor, centres: Tensor, sigma: float | Sequence[float], cells: int = 2_000_000) -> Tensor:
    """log 1/M Σ_m N(x; c_m, σ² I) in nats, float64: (N,) for one σ, (S, N) for several.

    Args:
        x: examples (N, …). centres: (M, …), of the same shape and type.
        sigma: σ > 0. The distances, which take the time, are computed once for all of them.
        cells: distances held in memory at a time.

    >>> x = torch.zeros(1, 2)
    >>> parzen_log_likelihood(x, torch.zeros(3, 2), 1.0)  # -log 2π
    tensor([-1.8379], dtype=torch.float64)
    """
    x, centres = x.flatten(1), centres.flatten(1)
    several = [sigma] if isinstance(sigma, int | float) else sigma
    origin = centres.mean(0)  # |x|² - 2xᵀc + |c|² loses fewer digits around it
    x, centres = x - origin, centres - origin
    norms = centres.square().sum(1)
    parts = []
    for rows in x.split(max(1, cells // len(centres))):
        half = torch.addmm(norms, rows, centres.t(), alpha=-2).add_(rows.square().sum(1, keepdim=True))
        half = half.clamp_(min=0).mul_(-0.5)
        nearest = half.max(1).values
        half -= nearest[:, None]  # 0 at the nearest centre: the sum of exponentials is never 0
        kernel = torch.empty_like(half)
        sums = [torch.mul(half, s**-2, out=kernel).exp_().sum(1).log() + nearest / s**2 for s in several]
        parts.append(torch.stack(sums).cpu().double())
    size = x.shape[1]
    scale = torch.tensor([size * math.log(s * math.sqrt(2 * math.pi)) for s in several], dtype=torch.float64)
    found = torch.cat(parts, 1) - math.log(len(centres)) - scale[:, None]
    return found[0] if isinstance(sigma, int | float) else found


class Parzen(Estimator):
    """The mean Parzen log-likelihood of the split, on the scale where images lie in [0, 1].

    σ is the one of a grid that suits the validation split best. The standard error is over examples alone: neither
    other samples nor another σ are in it.

    Args:
        samples: M, of the model, the centres.
        centres: `draws` of the model, or `means`: E[x | z] of a latent-variable model at draws of z, E[x | x̃] of a
            denoising chain at its last step.
        sigmas: the grid; null is 0.10, 0.11 … 0.50 for images (grey ones need 0.1 to 0.3, bits more), and 31 values
            from 0.01 to 10 in equal ratios for points, whose scale is theirs.
        validation: examples that choose σ, at most.
    """

    of_samples = True

    def __init__(
        self,
        samples: PositiveInt = 10_000,
        centres: Literal["draws", "means"] = "draws",
        sigmas: Sequence[PositiveFloat] | None = None,
        validation: PositiveInt = 1000,
    ):
        if sigmas is not None and not sigmas:
            raise UsageError("sigmas=[]: give at least one, or null for a grid")
        self.samples, self.centres, self.sigmas, self.validation = samples, centres, sigmas, validation

    def unfit(self, subject: Subject) -> str | None:
        if subject.model.support == "tokens":
            return "models tokens, between which there are no distances"
        if self.centres == "means" and not isinstance(subject.model, LatentVariable | DenoisingChain):
            return "is no LatentVariable or DenoisingChain, and only those have means: use centres=draws"
        if not subject.spec.sizes.get("validation"):
            return f"needs a validation split to choose its bandwidth, and data={subject.spec.name} has none here"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        pipeline = subject.pipeline
        centres = torch.cat(list(samples(subject, self.samples) if self.centres == "draws" else self.means(subject)))
        points = subject.spec.support == "real"
        grid = list(self.sigmas or ([10 ** (i / 10 - 2) for i in range(31)] if points else _IMAGES))
        held_out = torch.cat([unit(pipeline, b.x) for b in subject.batches("validation", self.validation)])
        chosen = parzen_log_likelihood(held_out, centres, grid).mean(1)
        best = int(chosen.argmax())
        values = []
        for batch in subject.track(subject.batches(), math.ceil(subject.size() / 500), "parzen"):
            values.append(parzen_log_likelihood(unit(pipeline, batch.x), centres, grid[best]))
        mean, error = mean_and_error(torch.cat(values))
        settings = {
            "sigma": grid[best],
            "grid": grid,
            "edge": len(grid) > 1 and best in (0, len(grid) - 1),  # the best σ may lie beyond
            "validation_n": len(held_out),
            "representation": representation(pipeline),
        }
        yield Finding("log_likelihood", "parzen", mean, error, "nats", subject.size(), settings)

    def means(self, subject: Subject) -> Iterator[Tensor]:
        """E[x | z], z ~ prior, or E[x | x̃] of a chain, (samples, *shape) in parts."""
        model: Generative = subject.model
        for start in subject.track(range(0, self.samples, DRAWN), math.ceil(self.samples / DRAWN), "means"):
            n = min(DRAWN, self.samples - start)
            if isinstance(model, LatentVariable):
                mean = model.decode(model.prior.sample(torch.Size([n])), **evenly(model, n)).mean
            else:
                assert isinstance(model, DenoisingChain)
                mean = model.means(n)
            if not bool(torch.isfinite(mean).all()):
                raise GentrainError(
                    f"means of {type(model).__name__}: some are NaN or infinite; the model has diverged"
                )
            yield unit(subject.pipeline, mean)


_IMAGES = [i / 100 for i in range(10, 51)]
