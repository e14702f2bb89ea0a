"""The conditional variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from gentrain.errors import UsageError
from gentrain.models.base import Conditional
from gentrain.models.labels import beside, one_hot
from gentrain.models.layers import DiagonalNormal
from gentrain.models.vae import GaussianVAE
from gentrain.types import PositiveInt, Shape


class CVAE(GaussianVAE, Conditional):
    """p(x|y) = ∫ p(x|z, y) N(z; 0, I) dz with q(z|x, y) = N(z; μ(x, y), diag σ²(x, y)).

    The deep conditional generative model of Sohn et al. (2015, "Learning structured output representation using deep
    conditional generative models", NeurIPS) with a label for the condition and a code that doesn't depend on it: the
    supervised half of Kingma et al.'s M2 (2014, arXiv:1406.5298). Labels enter both networks one-hot, and a convolving
    encoder as feature maps that are on or off. What z then holds is style: what the label doesn't tell.

    `encode`, `decode` and `reconstruct` need y (B,); `sample` draws the labels evenly without it. It gives no `Codes`:
    what was told the label is not to be judged by how well it tells labels.

    Args:
        classes: K, labels 0…K-1. Others: as of the `VAE`.

    Raises:
        UsageError: as of the `VAE`, and where the data, or a call, have no labels.

    >>> cvae = CVAE((1, 8, 8), levels=17, classes=10, latent_dim=2, hidden=[16])
    >>> y = torch.tensor([3, 3, 7])
    >>> cvae.sample(3, y=y).shape, cvae.encode(torch.zeros(3, 1, 8, 8), y=y).mean.shape
    (torch.Size([3, 1, 8, 8]), torch.Size([3, 2]))
    """

    classes: int

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        classes: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 20,
        hidden: Sequence[PositiveInt] = (400,),
        channels: PositiveInt | None = None,
        activation: Literal["relu", "tanh"] = "relu",
        likelihood: Literal["auto", "bernoulli", "gaussian", "categorical", "discretized_logistic"] = "auto",
    ):
        if classes is None:
            raise UsageError(
                "model=cvae is p(x|y), and these data have no labels y: use data with labels, or model=vae"
            )
        super().__init__(shape, levels, network, latent_dim, hidden, channels, activation, likelihood, classes)
        self.classes = classes

    def encode(self, x: Tensor, y: Tensor | None = None) -> DiagonalNormal:
        label = one_hot(self, y, len(x))
        inputs = beside(self.likelihood.network_input(x), label, maps=self.network == "conv")
        mean, log_variance = self.encoder(inputs).float().chunk(2, -1)
        return DiagonalNormal(mean, log_variance)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        return self.likelihood(self.decoder(beside(z, one_hot(self, y, len(z)), maps=False)))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        if y is None:
            y = torch.randint(self.classes, (n,), device=self.device)
        return self.decode(self.prior.sample(torch.Size([n])), y).sample()

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x, y).mean, y).mean
