"""Generative adversarial networks: fully connected, and DCGAN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from gentrain.errors import UsageError
from gentrain.models.base import Codes, Decoder, Perceives
from gentrain.models.layers import LARGEST, SMALLEST, StandardNormal, UnitNormal, double, halve, halvings, mlp
from gentrain.types import PositiveInt, Shape

_leaky = partial(nn.LeakyReLU, 0.2)


class GeneratorNetwork(Decoder):
    """x = G(z), z ~ N(0, I), with the part `generator` for G."""

    generator: nn.Module

    def _set_generator(self, generator: nn.Module, latent_dim: int) -> None:
        self.generator, self.latent_dim, self._prior = generator, latent_dim, StandardNormal(latent_dim)

    @property
    def prior(self) -> UnitNormal:
        return self._prior()

    def decode(self, z: Tensor) -> Tensor:
        return self.generator(z).float()

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n draws of the generator."""
        return self.decode(self.prior.sample(torch.Size([n])))


class TwoNetworks(GeneratorNetwork, Perceives):
    """A generator, and a critic whose last layer gives one number."""

    discriminator: nn.Sequential

    def __init__(self, shape: tuple[int, ...], latent_dim: int, generator: nn.Module, discriminator: nn.Sequential):
        super().__init__()
        self.shape = shape
        self._set_generator(generator, latent_dim)
        self.discriminator = discriminator

    def discriminate(self, x: Tensor) -> Tensor:
        return self.discriminator(x).float().flatten()

    def features(self, x: Tensor) -> Tensor:
        return self.discriminator[:-1](x).float().flatten(1)


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
    ):
        shape, size = tuple(shape), math.prod(shape)
        critic = list(reversed(hidden)) if discriminator_hidden is None else list(discriminator_hidden)
        bounded = [nn.Tanh()] if levels is not None else []
        super().__init__(
            shape,
            latent_dim,
            nn.Sequential(*mlp([latent_dim, *hidden, size], _leaky), *bounded, nn.Unflatten(1, shape)),
            nn.Sequential(nn.Flatten(), *mlp([size, *critic, 1], _leaky)),
        )
        self.support = "real" if levels is None else "signed"


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
    ):
        shape = tuple(shape)
        _check_square(shape, levels)
        super().__init__(
            shape,
            latent_dim,
            _generator(shape[0], halvings(shape[1]), latent_dim, channels),
            _discriminator(shape[0], halvings(shape[1]), channels),
        )
        self.support = "signed"
        self.apply(_radford)

    def codes(self, x: Tensor) -> Tensor:
        """D's features of every scale, max-pooled to 4x4 and flattened (Radford et al., section 5.1)."""
        features = []
        for layer in self.discriminator.children():
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                features.append(adaptive_max_pool2d(x, 4).flatten(1))
        return torch.cat(features, 1)


def _check_square(shape: tuple[int, ...], levels: int | None) -> None:
    if len(shape) != 3 or levels is None:
        raise UsageError(f"model=dcgan takes images, and one example here has shape {shape}; use model=gan")
    if shape[1] != shape[2] or not SMALLEST <= shape[1] <= LARGEST:
        raise UsageError(
            f"model=dcgan takes square images with a side of {SMALLEST} to {LARGEST} pixels, "
            f"not {shape[1]}x{shape[2]}; resize the images or use model=gan"
        )


def _generator(outputs: int, sides: list[int], latent: int, channels: int) -> nn.Sequential:
    depth = len(sides) - 1
    widths = [channels << i for i in range(depth)]
    layers: list[nn.Module] = [
        nn.Unflatten(1, (latent, 1, 1)),
        nn.ConvTranspose2d(latent, widths[-1], sides[-1], bias=False),  # 1x1 -> the base of the pyramid
    ]
    for i in reversed(range(1, depth)):
        size = (sides[i], sides[i])
        layers += [nn.BatchNorm2d(widths[i]), nn.ReLU(), double(widths[i], widths[i - 1], size, bias=False)]
    layers += [nn.BatchNorm2d(widths[0]), nn.ReLU(), double(widths[0], outputs, (sides[0], sides[0])), nn.Tanh()]
    return nn.Sequential(*layers)


def _discriminator(inputs: int, sides: list[int], channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [halve(inputs, channels), _leaky()]
    for i in range(1, len(sides) - 1):
        width = channels << i
        layers += [halve(width // 2, width, bias=False), nn.BatchNorm2d(width), _leaky()]
    return nn.Sequential(*layers, nn.Conv2d(channels << (len(sides) - 2), 1, sides[-1]))


def _radford(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)  # and eps 1e-5, momentum 0.1: torch's defaults
