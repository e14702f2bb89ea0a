"""The variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain.errors import UsageError
from gentrain.models import likelihoods
from gentrain.models.base import Encodes, LatentVariable, Reconstructs, StartsFromMean
from gentrain.models.layers import (
    LARGEST,
    SMALLEST,
    DiagonalNormal,
    StandardNormal,
    UnitNormal,
    double,
    halve,
    halvings,
    mlp,
)
from gentrain.types import PositiveInt, Shape


class VAE(LatentVariable, Encodes, Reconstructs, StartsFromMean):
    """p(x) = ∫ p(x|z) N(z; 0, I) dz with q(z|x) = N(z; μ(x), diag σ²(x)) (Kingma & Welling 2014, arXiv:1312.6114).

    `support` follows the likelihood: bernoulli -> binary, gaussian -> real, categorical and
    discretized_logistic -> levels. `decode(z)` is the distribution p(x|z) and `decode(z).mean` its picture; `sample`
    draws from the model, noise of p(x|z) included.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        network: `mlp`, or `conv` for images with sides of 8 to 64 (stride-2 convolutions, then `hidden` layers).
        latent_dim: dimensions of z.
        hidden: units of the encoder's fully connected layers; the decoder mirrors them.
        channels: feature maps of the first convolution, doubled at each halving; None is 32. Only for `conv`.
        likelihood: p(x|z); `auto` is gaussian for reals, bernoulli for one channel (binarized), else
            discretized_logistic.

    Raises:
        UsageError: `conv` asked of something that is no image of a fitting size, `channels` of an mlp, or a likelihood
            that the data can't have.

    >>> vae = VAE((1, 8, 8), levels=17, latent_dim=2, hidden=[16])
    >>> vae.support, vae.sample(3).shape
    ('binary', torch.Size([3, 1, 8, 8]))
    >>> q = vae.encode(torch.zeros(5, 1, 8, 8))
    >>> vae.decode(q.mean).log_prob(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 20,
        hidden: Sequence[PositiveInt] = (400,),
        channels: PositiveInt | None = None,
        likelihood: Literal["auto", "bernoulli", "gaussian", "categorical", "discretized_logistic"] = "auto",
    ):
        super().__init__()
        self.shape = tuple(shape)
        self.latent_dim = latent_dim
        self.likelihood = likelihoods.choose(likelihood, self.shape, levels)
        self.support = self.likelihood.support
        outputs = self.likelihood.per_element
        if network == "conv":
            _check_image(self.shape)
            self.encoder, self.decoder = _conv(self.shape, outputs, latent_dim, list(hidden), channels or 32)
        else:
            if channels is not None:
                raise UsageError(f"model.channels={channels} is for model.network=conv; an mlp has model.hidden")
            self.encoder, self.decoder = _mlp(self.shape, outputs, latent_dim, list(hidden))
        self._prior = StandardNormal(latent_dim)

    @property
    def prior(self) -> UnitNormal:
        return self._prior()

    def encode(self, x: Tensor) -> DiagonalNormal:
        mean, log_variance = self.encoder(self.likelihood.network_input(x)).float().chunk(2, -1)
        return DiagonalNormal(mean, log_variance)

    def decode(self, z: Tensor) -> Distribution:
        return self.likelihood(self.decoder(z))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n]))).sample()

    def codes(self, x: Tensor) -> Tensor:
        return self.encode(x).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at the posterior's mean."""
        return self.decode(self.encode(x).mean).mean

    def start_from_mean(self, mean: Tensor) -> None:
        self.likelihood.start_from_mean(mean)


def _check_image(shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise UsageError(f"model.network=conv takes images, and one example here has shape {shape}; use mlp")
    if not all(SMALLEST <= side <= LARGEST for side in shape[1:]):
        raise UsageError(
            f"model.network=conv takes sides of {SMALLEST} to {LARGEST} pixels, not {shape[1]}x{shape[2]}; "
            "resize the images or use model.network=mlp"
        )


def _mlp(shape: tuple[int, ...], outputs: int, latent: int, hidden: list[int]) -> tuple[nn.Module, nn.Module]:
    size = math.prod(shape)
    encoder = nn.Sequential(nn.Flatten(), *mlp([size, *hidden, 2 * latent]))
    return encoder, mlp([latent, *reversed(hidden), outputs * size], bias=False)  # the likelihood has the bias


def _conv(
    shape: tuple[int, ...], outputs: int, latent: int, hidden: list[int], width: int
) -> tuple[nn.Module, nn.Module]:
    depth = min(len(halvings(side)) for side in shape[1:])
    sides = [(shape[1] >> i, shape[2] >> i) for i in range(depth)]
    maps = [shape[0], *(width << i for i in range(depth - 1))]
    base = (maps[-1], *sides[-1])
    down: list[nn.Module] = []
    for d_in, d_out in pairwise(maps):
        down += [halve(d_in, d_out), nn.ReLU()]
    encoder = nn.Sequential(*down, nn.Flatten(), *mlp([math.prod(base), *hidden, 2 * latent]))
    up: list[nn.Module] = [*mlp([latent, *reversed(hidden), math.prod(base)]), nn.Unflatten(1, base)]
    for i in reversed(range(1, depth - 1)):
        up += [nn.ReLU(), double(maps[i + 1], maps[i], sides[i])]
    up += [nn.ReLU(), double(maps[1], outputs * maps[0], sides[0], bias=False)]
    return encoder, nn.Sequential(*up)
