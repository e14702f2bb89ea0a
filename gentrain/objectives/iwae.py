"""Importance-weighted bounds, which draw several codes an example.

With w_k = p(x, z_k)/q(z_k|x), z_k ~ q(z|x), log 1/K Σ_k w_k is in expectation the ELBO for K = 1, and rises to log p(x)
with K (Burda et al. 2016, arXiv:1509.00519, theorem 1). As it becomes tighter, the gradient of the encoder drowns in
noise (Rainforth et al. 2018, arXiv:1802.04537, theorem 1): MIWAE and CIWAE stand between it and the ELBO.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.models.base import LatentVariable, given, kind_given
from gentrain.models.latent import BinaryLatent, divergence, draw, log_likelihood, log_weights
from gentrain.types import Fraction, PositiveInt
from gentrain.update import Objective, Score, Update


def log_mean(log_w: Tensor) -> Tensor:
    """log of the mean weight over axis 0.

    >>> log_mean(torch.tensor([[-1000.0], [-1000.0]]))
    tensor([-1000.])
    """
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


class _Weighted(Objective):
    """What the bounds share: one pass through the encoder, and one through the decoder with all draws at once.

    Gradients are those of the reparametrised bound: in ∇ log Σ w each draw counts by its share of the weights.

    Metrics, per batch: `log_likelihood`, the bound with K draws; `elbo`, the mean of log w over all of them.
    """

    needs = LatentVariable
    excludes = (BinaryLatent,)
    monitor = "log_likelihood"
    compiled: ClassVar[tuple[str, ...]] = ("log_weights",)
    k: int
    """K."""

    @property
    def draws(self) -> int:
        """Codes drawn for an example."""
        return self.k

    @abstractmethod
    def objective(self, log_w: Tensor) -> Tensor:
        """What is maximised for each example, (B,), from its log weights (draws, B)."""

    def bound(self, log_w: Tensor) -> Tensor:
        """The bound with K draws, (B,): the mean over as many groups of K as there are draws for."""
        return log_mean(log_w.unflatten(0, (self.k, -1))).mean(0)

    def forward(self, model: LatentVariable, batch: Batch, progress: float) -> Iterator[Update]:
        log_w = self.log_weights(model, batch.x, batch.y)
        loss = -self.objective(log_w).mean()
        log_w = log_w.detach()
        metrics = {"loss": loss.detach(), "log_likelihood": self.bound(log_w).mean(), "elbo": log_w.mean()}
        yield Update(loss, metrics=metrics)

    @torch.no_grad()
    def validate(self, model: LatentVariable, batch: Batch) -> dict[str, Score]:
        x, y = batch.x, batch.y
        q = model.encode(x, **given(model, y))
        z, log_q = draw(q, self.draws)
        log_p = log_likelihood(model, x, y, z)
        kl = divergence(q, model.prior, z, log_q)
        reconstruction = log_p.mean(0)
        bound = self.bound(log_p + model.prior.log_prob(z) - log_q)
        return {
            "log_likelihood": Score(bound, kind_given(model, f"iwae-{self.k}")),
            "elbo": Score(reconstruction - kl, kind_given(model, "elbo")),
            "reconstruction": Score(reconstruction, kind_given(model, "recon")),
            "kl": Score(kl, kind_given(model, "kl")),
        }

    def log_weights(self, model: LatentVariable, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x, z)/q(z|x) for `draws` codes z an example, (draws, B)."""
        return log_weights(model, x, y, self.draws)


class IWAE(_Weighted):
    """Maximises E log 1/K Σ_k w_k, the importance-weighted bound (Burda et al. 2016, eq. 8).

    Args:
        k: K, draws of z an example. With one it is the ELBO, its KL by Monte Carlo.
    """

    def __init__(self, k: PositiveInt = 5):
        super().__init__()
        self.k = k

    def objective(self, log_w: Tensor) -> Tensor:
        return self.bound(log_w)


class MIWAE(_Weighted):
    """Maximises E 1/M Σ_m log 1/K Σ_k w_mk: the mean of M bounds with K draws each (Rainforth et al. 2018, eq. 9).

    K = 1 is the ELBO with M draws, M = 1 the IWAE.

    Args:
        m: M, bounds. k: K, draws of z an example in each.
    """

    def __init__(self, m: PositiveInt = 4, k: PositiveInt = 4):
        super().__init__()
        self.m, self.k = m, k

    @property
    def draws(self) -> int:
        return self.m * self.k

    def objective(self, log_w: Tensor) -> Tensor:
        return self.bound(log_w)


class CIWAE(_Weighted):
    """Maximises β ELBO + (1 - β) IWAE, both from the same K draws (Rainforth et al. 2018, eq. 10).

    Args:
        beta: β. k: K, draws of z an example.
    """

    def __init__(self, beta: Fraction = 0.05, k: PositiveInt = 5):
        super().__init__()
        self.beta, self.k = beta, k

    def objective(self, log_w: Tensor) -> Tensor:
        return self.beta * log_w.mean(0) + (1 - self.beta) * self.bound(log_w)
