"""The variational autoencoder with two stochastic layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain.models import likelihoods
from gentrain.models.base import StartsFromMean
from gentrain.models.latent import Ancestral, Unlabelled
from gentrain.models.layers import DiagonalNormal, StandardNormal, mlp
from gentrain.models.vae import start_glorot
from gentrain.types import PositiveInt, Shape


class HierarchicalVAE(Unlabelled, StartsFromMean):
    """p(x) = ∫ p(x|z_1) p(z_1|z_2) N(z_2; 0, I) dz with q(z|x) = q(z_1|x) q(z_2|z_1), all between Gaussian.

    The deep latent Gaussian model of Rezende et al. (2014, arXiv:1401.4082) with the bottom-up encoder of Burda et al.
    (2016, arXiv:1509.00519, section 5: 100 and 50 units). A code is the vector (z_1, z_2). Its prior and its posterior
    know how to draw and to weigh, and have no KL in closed form: the ELBO takes log q - log p at the draws.

    `codes` is (μ_1(x), μ_2(μ_1(x))); the upper part is no mean, since q(z_2|x) is a mixture over z_1.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        latent_dim: dimensions of z_1 and of z_2.
        hidden: units of the layers from x to z_1; the decoder mirrors them.
        upper_hidden: units of the layers from z_1 to z_2; the prior mirrors them.
        activation: of the layers between; with `tanh`, weights start as Glorot & Bengio (2010) have it.
        likelihood: p(x|z_1), as of the `VAE`.

    Raises:
        UsageError: a likelihood that the data can't have.

    >>> import torch
    >>> model = HierarchicalVAE((1, 8, 8), levels=17, latent_dim=(4, 2), hidden=[16], upper_hidden=[8])
    >>> q = model.encode(torch.zeros(5, 1, 8, 8))
    >>> q.sample().shape, model.prior.log_prob(q.sample()).shape, model.sample(3).shape
    (torch.Size([5, 6]), torch.Size([5]), torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        latent_dim: tuple[PositiveInt, PositiveInt] = (40, 20),
        hidden: Sequence[PositiveInt] = (200,),
        upper_hidden: Sequence[PositiveInt] = (100,),
        activation: Literal["relu", "tanh"] = "relu",
        likelihood: Literal["auto", "bernoulli", "gaussian", "categorical", "discretized_logistic"] = "auto",
    ):
        super().__init__()
        self.shape = tuple(shape)
        self.lower, self.upper = latent_dim
        self.likelihood = likelihoods.choose(likelihood, self.shape, levels)
        self.support = self.likelihood.support
        size, between = math.prod(self.shape), nn.Tanh if activation == "tanh" else nn.ReLU
        down = [*hidden][::-1], [*upper_hidden][::-1]
        self.encoder = nn.Sequential(nn.Flatten(), *mlp([size, *hidden, 2 * self.lower], between))
        self.upper_encoder = mlp([self.lower, *upper_hidden, 2 * self.upper], between)
        self.upper_decoder = mlp([self.upper, *down[1], 2 * self.lower], between)
        self.decoder = mlp([self.lower, *down[0], self.likelihood.per_element * size], between, bias=False)
        if activation == "tanh":
            self.apply(start_glorot)
        self._top = StandardNormal(self.upper)
        self._like = StandardNormal(self.lower + self.upper)

    @property
    def prior(self) -> Ancestral:
        """p(z_2) p(z_1|z_2) of (z_1, z_2)."""
        sizes = self.upper, self.lower
        return Ancestral(self._top(), self._below, sizes, like=self._like.zero, first_is_last=True)

    def encode(self, x: Tensor) -> Ancestral:
        q = _normal(self.encoder(self.likelihood.network_input(x)))
        like = self._like.zero.expand(len(x), -1)
        return Ancestral(q, self._above, (self.lower, self.upper), like)

    def _above(self, lower: Tensor) -> DiagonalNormal:
        """q(z_2|z_1)."""
        return _normal(self.upper_encoder(lower))

    def _below(self, upper: Tensor) -> DiagonalNormal:
        """p(z_1|z_2)."""
        return _normal(self.upper_decoder(upper))

    def decode(self, z: Tensor) -> Distribution:
        return self.likelihood(self.decoder(z[..., : self.lower]))

    def start_from_mean(self, mean: Tensor) -> None:
        self.likelihood.start_from_mean(mean)


def _normal(raw: Tensor) -> DiagonalNormal:
    return DiagonalNormal(*raw.float().chunk(2, -1))
