"""An encoder and a generator, one the other's mirror, and critics, for adversarial models that have both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.layers import mlp
from gentrain.models.pyramid import descent, pyramid

leaky = partial(nn.LeakyReLU, 0.2)


class Plan(NamedTuple):
    """What the networks are built from: all have leaky rectifiers (0.2), encoder and generator batch normalisation.

    Args:
        shape: of one example. bounded: whether it lives in [-1, 1] (G ends in tanh), or in the reals.
        network: `mlp` or `conv`. hidden: units of the encoder's fully connected layers. channels: of conv's first
            layer; None is 32.
    """

    shape: tuple[int, ...]
    bounded: bool
    network: str
    hidden: Sequence[int]
    channels: int | None

    @property
    def width(self) -> int:
        return self.channels or 32

    def coders(self, encoded: int, latent: int, labels: int = 0) -> tuple[nn.Sequential, nn.Sequential]:
        """The encoder (B, *shape) -> (B, encoded) and the generator (B, latent) -> (B, *shape).

        Args:
            labels: further inputs of both, feature maps of the encoder if it convolves; else its input is flat.

        Raises:
            UsageError: `conv` asked of something that is no image of a fitting size, or `channels` of an mlp.
        """
        if self.network == "conv":
            encoder, generator = pyramid(
                self.shape, self.hidden, encoded, latent, self.width, leaky, further=labels, norm=True, bias=True
            )
        elif self.channels is not None:
            raise UsageError(f"model.channels={self.channels} is for model.network=conv; an mlp has model.hidden")
        else:
            size = math.prod(self.shape)
            inwards = mlp([size + labels, *self.hidden, encoded], leaky, norm=nn.BatchNorm1d)
            encoder = nn.Sequential(nn.Flatten(), *inwards)
            generator = mlp([latent + labels, *reversed(self.hidden), size], leaky, norm=nn.BatchNorm1d)
            generator.append(nn.Unflatten(1, self.shape))
        return encoder, generator.append(nn.Tanh()) if self.bounded else generator

    def trunk(self, norm: Callable[[int], nn.Module] | None = None) -> tuple[list[nn.Module], int]:
        """The layers of a critic up to where fully connected ones begin, with `norm` of so many maps after each
        convolution, if any, and how many numbers it has there."""
        if self.network != "conv":
            return [nn.Flatten()], math.prod(self.shape)
        down, sides = descent(self.shape, self.width, leaky, norm=norm)
        maps = self.width << (len(sides) - 2)
        return [*down, nn.Flatten()], maps * math.prod(sides[-1])

    def critic(self, hidden: Sequence[int], outputs: int = 1) -> Critic:
        """(B, *shape) -> (B, outputs), with `hidden` units in its fully connected layers.

        Its hidden layers are normalised, each example by itself (Ba et al. 2016, arXiv:1607.06450): they stay of one
        size throughout training, so that what is measured in them has a unit.

        Raises:
            UsageError: it would have no hidden layer.
        """
        layers, size = self.trunk(partial(nn.GroupNorm, 1))
        if self.network != "conv" and not hidden:
            raise UsageError("model.discriminator_hidden=[]: others learn by the critic's hidden layers; give it one")
        return Critic(*layers, *mlp([size, *hidden, outputs], leaky, norm=nn.LayerNorm))


class Critic(nn.Sequential):
    """A network whose hidden layers can be seen."""

    @property
    def depth(self) -> int:
        """How many there are."""
        return sum(isinstance(layer, nn.LeakyReLU) for layer in self)

    def perceive(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The hidden layers of x, flat, (B, d_l), the first one first, and the outputs."""
        hidden = []
        for layer in self:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                hidden.append(x.flatten(1).float())
        return hidden, x.float()
