"""The variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain.errors import UsageError
from gentrain.models import likelihoods
from gentrain.models.base import LatentVariable, Reconstructs, StartsFromMean
from gentrain.models.latent import Unlabelled
from gentrain.models.layers import DiagonalNormal, StandardNormal, UnitNormal, mlp
from gentrain.models.pyramid import pyramid
from gentrain.types import PositiveInt, Shape


class GaussianVAE(LatentVariable, Reconstructs, StartsFromMean):
    """What VAEs with a Gaussian q(z|x) and a standard normal prior share.

    Args:
        labels: further inputs of both networks, as feature maps where the encoder convolves. Others: as of the `VAE`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        levels: int | None,
        network: str,
        latent_dim: int,
        hidden: Sequence[int],
        channels: int | None,
        activation: str,
        likelihood: str,
        labels: int = 0,
    ):
        super().__init__()
        self.shape, self.network, self.latent_dim = tuple(shape), network, latent_dim
        self.likelihood = likelihoods.choose(likelihood, self.shape, levels)
        self.support = self.likelihood.support
        form = Form(self.shape, self.likelihood.per_element, latent_dim, list(hidden), activation, labels)
        if network == "conv":
            self.encoder, self.decoder = pyramid(
                form.shape, form.hidden, 2 * latent_dim, latent_dim, channels or 32, form.between,
                outputs=form.outputs, further=labels,
            )  # fmt: skip
        else:
            if channels is not None:
                raise UsageError(f"model.channels={channels} is for model.network=conv; an mlp has model.hidden")
            self.encoder, self.decoder = _mlp(form)
        if activation == "tanh":
            self.apply(start_glorot)
        self._prior = StandardNormal(latent_dim)

    @property
    def prior(self) -> UnitNormal:
        return self._prior()

    def start_from_mean(self, mean: Tensor) -> None:
        self.likelihood.start_from_mean(mean)


class VAE(Unlabelled, GaussianVAE):
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
        activation: of the layers between; with `tanh`, fully connected weights start as Glorot & Bengio (2010) have it.
        likelihood: p(x|z); `auto` is gaussian for reals, bernoulli for one channel (binarized), else
            discretized_logistic.

    Raises:
        UsageError: `conv` asked of something that is no image of a fitting size, `channels` of an mlp, or a likelihood
            that the data can't have.

    >>> import torch
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
        activation: Literal["relu", "tanh"] = "relu",
        likelihood: Literal["auto", "bernoulli", "gaussian", "categorical", "discretized_logistic"] = "auto",
    ):
        super().__init__(shape, levels, network, latent_dim, hidden, channels, activation, likelihood)

    def encode(self, x: Tensor) -> DiagonalNormal:
        mean, log_variance = self.encoder(self.likelihood.network_input(x)).float().chunk(2, -1)
        return DiagonalNormal(mean, log_variance)

    def decode(self, z: Tensor) -> Distribution:
        return self.likelihood(self.decoder(z))


class Form(NamedTuple):
    """What the networks of a VAE are built from."""

    shape: tuple[int, ...]
    outputs: int
    """Numbers that the decoder gives for each element of x."""
    latent: int
    hidden: list[int]
    activation: str
    labels: int
    """Further inputs of both networks, as feature maps where the encoder convolves."""

    @property
    def between(self) -> type[nn.Module]:
        return nn.Tanh if self.activation == "tanh" else nn.ReLU


def _mlp(form: Form) -> tuple[nn.Module, nn.Module]:
    size, labels = math.prod(form.shape), form.labels
    encoder = nn.Sequential(nn.Flatten(), *mlp([size + labels, *form.hidden, 2 * form.latent], form.between))
    sizes = [form.latent + labels, *reversed(form.hidden), form.outputs * size]
    return encoder, mlp(sizes, form.between, bias=False)  # the likelihood has the bias


def start_glorot(module: nn.Module) -> None:
    """Weights of a linear layer from U(-a, a), a² = 6/(inputs + outputs), and no bias (Glorot & Bengio 2010)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
