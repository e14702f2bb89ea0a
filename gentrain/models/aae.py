"""The adversarial autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal, Normal
from torch.distributions import Independent as Together
from torch.nn.functional import one_hot

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.autoencoder import EncoderDecoder
from gentrain.models.coders import leaky
from gentrain.models.layers import mlp
from gentrain.types import OpenFraction, PositiveFloat, PositiveInt, Shape

RADIUS, ACROSS = 4.0, 0.3
"""Of a mixture's components, in their deviations along the ray: how far out they are, and their deviation across it."""


class AAE(EncoderDecoder):
    """x = g(z), z ~ p(z), an autoencoder whose codes E(x) of data are made to follow p(z) by a discriminator of codes.

    So the aggregated posterior q(z) = ∫ q(z|x) p_data(x) dx, of which the decoder has learned to make data, is the
    prior (Makhzani et al. 2016, arXiv:1511.05644). The encoder is deterministic, as in the paper's experiments.
    `prior` is N(0, s² I), or a mixture of 2-D Gaussians evenly spread on a circle, each stretched along its ray (the
    paper's figure 4). If it is `supervised`, the discriminator sees the label beside the code: each class is then to
    follow its own component, or, under a Gaussian prior, all of it.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        classes: K, labels 0…K-1, if the data have any.
        network: `mlp`, or `conv` for images with sides of 8 to 64 (stride-2 convolutions, then `hidden` layers).
        latent_dim: numbers in the code.
        hidden: units of the encoder's fully connected layers; the decoder mirrors them.
        discriminator_hidden: of the discriminator's, with leaky rectifiers (0.2).
        channels: feature maps of the first convolution, doubled at each halving; None is 32. Only for `conv`.
        activation: of hidden layers and convolutions.
        output: `linear`, `logistic`, or `auto`: linear for reals, else logistic.
        support: of x; `auto` is `real` for reals, else `unit`.
        prior: `gaussian` or `mixture`. scale: s, of a mixture's component its deviation along the ray.
        components: of a mixture. supervised: whether labels choose them.
        dropout: share of the inputs of each of the encoder's layers that is left out in training, the first layer's
            first, the last one for all that follow; () is without. Only for `mlp`.

    Raises:
        UsageError: a mixture of codes that aren't 2-D, labels that the data lack or that are no component's, dropout of
            layers that aren't there, or as of the `Autoencoder`.

    >>> aae = AAE((1, 8, 8), levels=17, latent_dim=2, hidden=[16], prior="mixture")
    >>> z = aae.codes(aae.sample(3))
    >>> aae.support, z.shape, aae.discriminate_code(z).shape
    ('unit', torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        classes: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 8,
        hidden: Sequence[PositiveInt] = (400, 400),
        discriminator_hidden: Sequence[PositiveInt] = (400, 400),
        channels: PositiveInt | None = None,
        activation: Literal["relu", "tanh", "sigmoid", "linear"] = "relu",
        output: Literal["auto", "linear", "logistic"] = "auto",
        support: Literal["auto", "binary", "unit", "real"] = "auto",
        prior: Literal["gaussian", "mixture"] = "gaussian",
        scale: PositiveFloat = 1.0,
        components: PositiveInt = 10,
        supervised: bool = False,
        dropout: Sequence[OpenFraction] = (),
    ):
        super().__init__()
        self._set_space(shape, levels, support, output, latent_dim)
        self._set_networks(network, hidden, channels, activation, dropout=dropout)
        mixed = prior == "mixture"
        if mixed and latent_dim != 2:
            raise UsageError(f"model.latent_dim={latent_dim}: a mixture is of 2-D Gaussians; use 2, or prior=gaussian")
        if supervised and classes is None:
            raise UsageError("model.supervised=true: these data have no labels; use data with labels")
        if supervised and mixed and classes != components:
            raise UsageError(f"model.components={components}: these data have {classes} labels, each its own component")
        self.classes = classes if supervised else None
        codes = latent_dim + (self.classes or 0)
        self.discriminator = mlp([codes, *discriminator_hidden, 1], leaky)
        self._prior = _Petals(components, scale) if mixed else _Ball(latent_dim, scale)

    @property
    def prior(self) -> Distribution:
        return self._prior()

    def prior_codes(self, n: int, y: Tensor | None = None) -> Tensor:
        """n draws from the prior, (n, latent_dim), in training with `gentrain.noise`; if supervised, from the
        components of labels y (n,)."""
        if self.classes is not None and isinstance(self._prior, _Petals):
            assert y is not None
            return self._prior.of(y.long())
        return noise.sample(self.prior, n)

    def discriminate_code(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """The discriminator's output, (B,), larger for what it takes for a draw from the prior; if supervised, from
        the component of label y (B,)."""
        if self.classes is not None:
            assert y is not None
            z = torch.cat([z, one_hot(y.long(), self.classes).to(z.dtype)], 1)
        return self.discriminator(z).float().flatten()


class _Ball(nn.Module):
    """N(0, scale² I)."""

    deviation: Tensor

    def __init__(self, dim: int, scale: float):
        super().__init__()
        self.register_buffer("deviation", torch.full((dim,), scale), persistent=False)

    def forward(self) -> Distribution:
        return Together(Normal(0 * self.deviation, self.deviation, validate_args=False), 1, validate_args=False)


class _Petals(nn.Module):
    """K Gaussians of equal weight, evenly on a circle, long along its radii."""

    centre: Tensor
    root: Tensor

    def __init__(self, components: int, scale: float):
        super().__init__()
        angle = torch.arange(components) * (2 * math.pi / components)
        along, across = torch.stack([angle.cos(), angle.sin()], 1), torch.stack([-angle.sin(), angle.cos()], 1)
        self.register_buffer("centre", scale * RADIUS * along, persistent=False)
        # C = R diag(1, a²) Rᵀ, whose lower root MultivariateNormal wants
        rotation, squares = torch.stack([along, across], 2), torch.tensor([1.0, ACROSS**2])
        covariance = scale**2 * (rotation * squares) @ rotation.mT
        self.register_buffer("root", torch.linalg.cholesky(covariance), persistent=False)

    def forward(self) -> Distribution:
        each = MultivariateNormal(self.centre, scale_tril=self.root, validate_args=False)
        even = Categorical(logits=torch.zeros_like(self.centre[:, 0]), validate_args=False)
        return MixtureSameFamily(even, each, validate_args=False)

    def of(self, component: Tensor) -> Tensor:
        """A draw from each of these components, (B,): (B, 2)."""
        epsilon = noise.normal(len(component), 2, device=component.device)
        return self.centre[component] + (self.root[component] @ epsilon[..., None])[..., 0]
