"""The evidence lower bound."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gentrain.batch import Batch
from gentrain.models.base import LatentVariable, given, kind_given
from gentrain.models.latent import BinaryLatent, divergence, draw, log_likelihood
from gentrain.types import Fraction, NonNegativeFloat, PositiveInt
from gentrain.update import Objective, Score, Update


class ELBO(Objective):
    """log p(x) >= E_q[log p(x|z)] - β KL(q(z|x) ‖ p(z)), maximised (Kingma & Welling 2014, arXiv:1312.6114).

    z is reparametrised. The KL is in closed form where there is one, else the mean of log q - log p over the draws.
    With β != 1 this is the β-VAE's objective (Higgins et al. 2017) and no bound of log p(x): the `elbo` reported, in
    training and validation, always has β = 1. Of a conditional model it bounds log p(x|y).

    Args:
        beta: weight of the KL term.
        warmup: fraction of training over which the weight rises linearly from 0 to `beta` (Bowman et al. 2016).
        samples: draws of z an example that the reconstruction term is averaged over.
    """

    needs = LatentVariable
    excludes = (BinaryLatent,)
    monitor = "elbo"
    compiled = ("terms",)

    def __init__(self, beta: NonNegativeFloat = 1.0, warmup: Fraction = 0.0, samples: PositiveInt = 1):
        super().__init__()
        self.beta, self.warmup, self.samples = beta, warmup, samples

    def weight(self, progress: float) -> float:
        """β at this point of training.

        >>> [ELBO(beta=4.0, warmup=0.5).weight(t) for t in (0.0, 0.25, 0.5, 0.9)]
        [0.0, 2.0, 4.0, 4.0]
        """
        return self.beta * min(1.0, progress / self.warmup) if self.warmup else self.beta

    def forward(self, model: LatentVariable, batch: Batch, progress: float) -> Iterator[Update]:
        reconstruction, kl = (term.mean() for term in self.terms(model, batch.x, batch.y))
        loss = self.weight(progress) * kl - reconstruction
        reconstruction, kl = reconstruction.detach(), kl.detach()
        metrics = {"loss": loss.detach(), "elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        yield Update(loss, metrics=metrics)

    def validate(self, model: LatentVariable, batch: Batch) -> dict[str, Score]:
        reconstruction, kl = self.terms(model, batch.x, batch.y)
        return {
            "elbo": Score(reconstruction - kl, kind_given(model, "elbo")),
            "reconstruction": Score(reconstruction, kind_given(model, "recon")),
            "kl": Score(kl, kind_given(model, "kl")),
        }

    def terms(self, model: LatentVariable, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """E_q[log p(x|z)] by `samples` draws and KL(q(z|x) ‖ p(z)), in nats, (B,) each."""
        q = model.encode(x, **given(model, y))
        z, log_q = draw(q, self.samples)
        return log_likelihood(model, x, y, z).mean(0), divergence(q, model.prior, z, log_q)
