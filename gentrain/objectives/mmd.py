"""Matching moments: the maximum mean discrepancy between data and what a generator makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.gmmn import GMMNAutoencoder, MomentMatching
from gentrain.objectives.stages import Stages
from gentrain.types import PositiveFloat
from gentrain.update import Objective, Score, Update


class MMD(Objective):
    """The squared maximum mean discrepancy of data x and generated y (Gretton et al. 2012; Li et al. 2015,
    arXiv:1502.02761; Dziugaite et al. 2015, arXiv:1505.03906), minimised:

        biased      mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j)
        unbiased    the same with i ≠ j in the first two means; it may be negative
        root        the root of `biased`, whose gradient doesn't fade as the two meet

    with k(x, y) = Σ_q exp(-‖x - y‖²/(2σ_q²)), in the model's space of matching, of as many y as x. All pairs of a batch
    count: batches of several hundreds are usual, and time and memory go with the square of their size.

    Metrics: `mmd`, MMD², unbiased where that is minimised, else biased; `loss`.

    Args:
        bandwidths: σ_q. relative: they are multiples of the batch's root mean squared distance between examples.
        estimator: what is minimised.

    Raises:
        UsageError: there is no bandwidth.
    """

    needs = MomentMatching
    parts = ("generator",)

    def __init__(
        self,
        bandwidths: Sequence[PositiveFloat] = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0),
        relative: bool = True,
        estimator: Literal["root", "biased", "unbiased"] = "root",
    ):
        super().__init__()
        if not bandwidths:
            raise UsageError("objective.bandwidths=[]: a kernel has one bandwidth at least, e.g. [0.5, 1, 2]")
        self.bandwidths, self.relative = tuple(bandwidths), relative
        self.estimator = estimator

    def forward(self, model: MomentMatching, batch: Batch, progress: float) -> Iterator[Update]:
        if self.estimator == "unbiased" and len(batch.x) < 2:
            raise UsageError("data.batch_size=1: the unbiased estimate is of pairs; take two examples or more")
        with torch.no_grad():
            real = noise.of_all_processes(model.embed(batch.x))
        fake = noise.joined(model.generate(noise.sample(model.prior, len(batch.x))))
        with torch.autocast(real.device.type, enabled=False):  # means of large numbers whose differences are small
            real, fake = real.float(), fake.float()
            kernel = self.kernel(real)
            squared = mmd2(kernel, real, fake, unbiased=self.estimator == "unbiased")
            loss = squared.clamp_min(TINY).sqrt() if self.estimator == "root" else squared
        yield Update(loss, "generator", metrics={"loss": loss.detach(), "mmd": squared.detach()})

    def kernel(self, real: Tensor) -> Kernel:
        """The bank of kernels for data (N, d)."""
        unit = (2 * real.var(0, unbiased=False).sum()).sqrt().clamp_min(TINY) if self.relative else 1.0
        return bank([s * unit for s in self.bandwidths])

    @torch.no_grad()
    def validate(self, model: MomentMatching, batch: Batch) -> dict[str, Score]:
        """`mmd`, unbiased, as terms of examples whose mean it is and whose scatter is to first order its own: with

            h_i = mean_j≠i k(x_i, x_j) + mean_j≠i k(y_i, y_j) - mean_j k(x_i, y_j) - mean_j k(x_j, y_i)

        its mean is MMD², and as each example stands in it twice, the terms are mean h + 2 (h_i - mean h).
        """
        real, n = model.embed(batch.x).float(), len(batch.x)
        if n < 2:
            return {}
        fake = model.generate(model.prior.sample(torch.Size([n]))).float()
        kernel = self.kernel(real)
        within, made = kernel(real, real), kernel(fake, fake)
        across = kernel(real, fake)
        h = sum((k.sum(1) - k.diagonal()) / (n - 1) for k in (within, made)) - across.mean(1) - across.mean(0)
        space = "codes" if isinstance(model, GMMNAutoencoder) else "examples"
        widths = "/".join(f"{s:g}" for s in self.bandwidths) + (" distances" if self.relative else "")
        return {"mmd": Score(h.mean() + 2 * (h - h.mean()), "mmd", f"kernel of {widths} between {space}")}


TINY = 1e-12  # keeps the root's slope finite

Kernel = Callable[[Tensor, Tensor], Tensor]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i - y_j‖² by a matrix product, (N, M). In float64 it is exact for bits, and never negative."""
    products = torch.addmm(y.square().sum(1)[None], x, y.T, alpha=-2)
    return products.add_(x.square().sum(1)[:, None]).clamp_min_(0)


def bank(bandwidths: Sequence[float | Tensor]) -> Kernel:
    """k(x, y) = Σ_q exp(-‖x - y‖²/(2σ_q²)) of all pairs of x (N, d) and y (M, d), (N, M).

    >>> bank([1.0, 2.0])(torch.zeros(1, 1), torch.tensor([[0.0], [2.0]]))  # at a distance of 2, e^-2 + e^-1/2
    tensor([[2.0000, 0.7419]])
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        distances = squared_distances(x, y)
        total = torch.exp(distances / (-2 * bandwidths[0] ** 2))
        for s in bandwidths[1:]:
            total = total + torch.exp(distances / (-2 * s**2))
        return total

    return kernel


def mmd2(kernel: Kernel, x: Tensor, y: Tensor, unbiased: bool) -> Tensor:
    """MMD²(x, y) of x (N, d) and y (M, d), over all pairs, or without those of an example with itself.

    >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    >>> [float(mmd2(lambda a, b: (a @ b.T) ** 2, x, y, u)) for u in (False, True)]  # 1/4 + 4 - 2 and 0 + 0 - 2
    [2.25, -2.0]
    """
    within = []
    for t in (x, y):
        k = kernel(t, t)
        pairs = len(t) * (len(t) - 1) if unbiased else len(t) ** 2
        within.append((k.sum() - k.diagonal().sum() if unbiased else k.sum()) / pairs)
    return within[0] + within[1] - 2 * kernel(x, y).mean()


class PretrainGMMN(Stages):
    """The autoencoder layer by layer, then as a whole, then the generator of its codes by their MMD (Li et al. 2015).

    Args:
        stages: as in `Stages`.
    """

    needs = GMMNAutoencoder

    def __init__(self, stages: Mapping[str, Any]):
        super().__init__(stages)
