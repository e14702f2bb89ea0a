"""Generative adversarial networks: fully connected, and DCGAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import adaptive_max_pool2d

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import Codes, Decoder, TakesReference
from gentrain.models.critics import Perceives
from gentrain.models.layers import LARGEST, SMALLEST, StandardNormal, StandardUniform, every_layer
from gentrain.models.minibatch import ACROSS, Minibatch
from gentrain.models.normalisation import Norm
from gentrain.models.players import (
    ACTIVATIONS,
    Network,
    bound_spectrum,
    conv_critic,
    conv_generator,
    dense_critic,
    dense_generator,
    metz_critic,
    metz_generator,
    radford,
    start_orthogonal,
)
from gentrain.types import DenseNormKind, NonNegativeInt, NormKind, OpenFraction, PositiveFloat, PositiveInt, Shape


class GeneratorNetwork(Decoder):
    """x = G(z), z ~ prior, a simple distribution of independent numbers, with the part `generator` for G."""

    generator: nn.Module

    def _set_generator(self, generator: nn.Module, prior: StandardNormal | StandardUniform) -> None:
        self.generator, self._prior = generator, prior

    @property
    def prior(self) -> Distribution:
        return self._prior()

    def decode(self, z: Tensor) -> Tensor:
        return self.generator(z).float()

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n draws of the generator."""
        return self.decode(self.prior.sample(torch.Size([n])))


class TwoNetworks(GeneratorNetwork, Perceives, TakesReference):
    """A generator, and a critic whose last layer gives one number."""

    generator: Network
    discriminator: Network

    def __init__(self, shape: tuple[int, ...], latent_dim: int, generator: Network, discriminator: Network):
        super().__init__()
        self.shape = shape
        self._set_generator(generator, StandardNormal(latent_dim))
        self.discriminator = discriminator
        self.judges_batches = any(isinstance(layer, ACROSS) for layer in discriminator)

    def discriminate(self, x: Tensor) -> Tensor:
        return self.discriminator(x).float().flatten()

    def features(self, x: Tensor) -> Tensor:
        return self.discriminator.outputs(x)[-2].float().flatten(1)

    @property
    def reference_size(self) -> int:
        return 0 if self.discriminator.reference is None else len(self.discriminator.reference)

    def take_reference(self, batch: Batch) -> None:
        self.discriminator.refer(batch.x)


class GAN(TwoNetworks):
    """x = G(z), z ~ N(0, I), against D(x) = P(x is real) (Goodfellow et al. 2014, arXiv:1406.2661).

    Both parts are fully connected with leaky rectifiers. Images live in [-1, 1] (`signed`, G ends in tanh), points in
    the reals (`real`, G ends linear).

    Args:
        shape: of one example, an image or a point.
        levels: number of values an element can take in the data, None for reals.
        latent_dim: dimensions of z.
        hidden: units of the generator's hidden layers.
        discriminator_hidden: units of the discriminator's; None is the generator's, reversed.
        norm: of the generator's hidden layers, see `Norm`. discriminator_norm: of the discriminator's but the first;
            None is the same. reference: examples and codes in the reference batches, where it is by these.
        minibatch_features: kernels of minibatch discrimination before the discriminator's last layer; 0 is none.
            minibatch_dims: of each kernel. minibatch_deviation: whether the batch's deviation is appended there.
        spectral_norm: whether the discriminator's weights have a largest singular value of 1.
        activation: of both parts. orthogonal: gain of orthogonal weights to start from; None is torch's uniform ones.
        discriminator_scale: what the discriminator multiplies x by first.
        discriminator_dropout: share of the inputs of each of the discriminator's layers that is left out in training,
            the first layer's first, the last one for all that follow; () is without.

    Raises:
        UsageError: `discriminator_norm` of a discriminator that has no hidden layer but its first, or dropout of more
            layers than it has.

    >>> gan = GAN((2,), latent_dim=4, hidden=[8])
    >>> gan.support, gan.sample(3).shape, gan.discriminate(gan.sample(3)).shape
    ('real', torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        latent_dim: PositiveInt = 64,
        hidden: Sequence[PositiveInt] = (256, 512),
        discriminator_hidden: Sequence[PositiveInt] | None = None,
        norm: DenseNormKind = "none",
        discriminator_norm: DenseNormKind | None = None,
        reference: PositiveInt = 128,
        minibatch_features: NonNegativeInt = 0,
        minibatch_dims: PositiveInt = 5,
        minibatch_deviation: bool = False,
        spectral_norm: bool = False,
        activation: Literal["leaky", "relu", "tanh"] = "leaky",
        orthogonal: PositiveFloat | None = None,
        discriminator_scale: PositiveFloat = 1.0,
        discriminator_dropout: Sequence[OpenFraction] = (),
    ):
        shape = tuple(shape)
        critic = list(reversed(hidden)) if discriminator_hidden is None else list(discriminator_hidden)
        if discriminator_norm not in (None, "none") and len(critic) < 2:
            raise UsageError(
                f"model.discriminator_norm={discriminator_norm}: the critic's first hidden layer is not normalised, and"
                f" it has {len(critic)}; give model.discriminator_hidden two layers or more"
            )
        norms = Norm(norm, reference), Norm(discriminator_norm or norm, reference)
        between = ACTIVATIONS[activation]
        minibatch = Minibatch(minibatch_features, minibatch_dims, minibatch_deviation)
        super().__init__(
            shape,
            latent_dim,
            dense_generator(latent_dim, hidden, shape, norms[0], bounded=levels is not None, activation=between),
            dense_critic(
                shape,
                critic,
                norms[1],
                minibatch,
                activation=between,
                scale=discriminator_scale,
                dropout=every_layer("model.discriminator_dropout", discriminator_dropout, len(critic) + 1),
            ),
        )
        if orthogonal is not None:
            start_orthogonal(self, orthogonal)
        self.support = "real" if levels is None else "signed"
        if spectral_norm:
            bound_spectrum(self.discriminator)


class DCGAN(TwoNetworks, Codes):
    """The deep convolutional GAN (Radford et al. 2016, arXiv:1511.06434), by that paper's guidelines.

    Strided convolutions in place of pooling, transposed ones in the generator, no fully connected hidden layers; batch
    normalisation everywhere except at G's output and D's input; ReLU in G, leaky ReLU (0.2) in D; weights start from
    N(0, 0.02²); images in [-1, 1] by tanh. The paper draws z uniformly; N(0, I) is used here, as in most later work.

    Args:
        shape: of one example: (channels, side, side) with a side of 8 to 64.
        levels: number of values an element can take in the data; an image has some.
        latent_dim: dimensions of z.
        channels: feature maps at the highest resolution; doubled at each halving.
        norm: of the generator, see `Norm`. discriminator_norm, reference, minibatch_features, minibatch_dims,
            minibatch_deviation, spectral_norm: as of `GAN`.
        discriminator_channels: the discriminator's feature maps at the highest resolution; None is as many.
        network: `radford` by these guidelines; `metz` is the smaller pair for stacked MNIST of Metz et al. 2017: a
            linear layer at G's base, three halvings with 3x3 kernels, a convolution at G's full size, D normalised
            throughout and leaky by 0.3.

    Raises:
        UsageError: the data are no square images of a fitting size.

    >>> gan = DCGAN((1, 28, 28), levels=256, latent_dim=10, channels=4)
    >>> gan.sample(2).shape, gan.codes(gan.sample(2)).shape
    (torch.Size([2, 1, 28, 28]), torch.Size([2, 192]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        latent_dim: PositiveInt = 100,
        channels: PositiveInt = 64,
        norm: NormKind = "batch",
        discriminator_norm: NormKind | None = None,
        reference: PositiveInt = 128,
        minibatch_features: NonNegativeInt = 0,
        minibatch_dims: PositiveInt = 5,
        minibatch_deviation: bool = False,
        spectral_norm: bool = False,
        discriminator_channels: PositiveInt | None = None,
        network: Literal["radford", "metz"] = "radford",
    ):
        shape = tuple(shape)
        _check_square(shape, levels)
        norms = Norm(norm, reference), Norm(discriminator_norm or norm, reference)
        maker, critic = (conv_generator, conv_critic) if network == "radford" else (metz_generator, metz_critic)
        minibatch = Minibatch(minibatch_features, minibatch_dims, minibatch_deviation)
        super().__init__(
            shape,
            latent_dim,
            maker(latent_dim, shape, channels, norms[0]),
            critic(shape, discriminator_channels or channels, norms[1], minibatch),
        )
        self.support = "signed"
        self.apply(radford)
        if spectral_norm:
            bound_spectrum(self.discriminator)

    def codes(self, x: Tensor) -> Tensor:
        """D's features of every scale, max-pooled to 4x4 and flattened (Radford et al., section 5.1)."""
        features = []
        for layer, h in zip(self.discriminator, self.discriminator.outputs(x), strict=True):
            if isinstance(layer, nn.LeakyReLU):
                features.append(adaptive_max_pool2d(h, 4).flatten(1))
        return torch.cat(features, 1)


def _check_square(shape: tuple[int, ...], levels: int | None) -> None:
    if len(shape) != 3 or levels is None:
        raise UsageError(f"model=dcgan takes images, and one example here has shape {shape}; use model=gan")
    if shape[1] != shape[2] or not SMALLEST <= shape[1] <= LARGEST:
        raise UsageError(
            f"model=dcgan takes square images with a side of {SMALLEST} to {LARGEST} pixels, "
            f"not {shape[1]}x{shape[2]}; resize the images or use model=gan"
        )
