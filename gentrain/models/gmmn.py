"""Generative moment matching networks: in the space of the data, and in the code space of an autoencoder."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gentrain.models.base import Codes, Reconstructs, StartsFromMean
from gentrain.models.deep_autoencoder import StackedAutoencoder
from gentrain.models.gan import GeneratorNetwork
from gentrain.models.layers import StandardUniform, mlp
from gentrain.types import PositiveInt, Shape


class MomentMatching(GeneratorNetwork):
    """A generator that is trained to give what data look like in some space of vectors, the part `generator`."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Examples in that space, (B, d)."""

    @abstractmethod
    def generate(self, z: Tensor) -> Tensor:
        """What codes z become in that space, (B, d)."""


class GMMN(MomentMatching, StartsFromMean):
    """x = G(z), z ~ U[-1, 1]^m, trained by the maximum mean discrepancy alone (Li et al. 2015, arXiv:1502.02761).

    A fully connected network with rectifiers. Images live in [0, 1] (`unit`, G ends in a sigmoid), points in the reals
    (`real`, G ends linear). There is no critic and no likelihood.

    Args:
        shape: of one example, an image or a point.
        levels: number of values an element can take in the data, None for reals.
        latent_dim: m.
        hidden: units of the generator's hidden layers.

    >>> model = GMMN((1, 8, 8), levels=17, latent_dim=3, hidden=[16])
    >>> x = model.sample(5)
    >>> model.support, x.shape, bool(((0 <= x) & (x <= 1)).all()), model.embed(x).shape
    ('unit', torch.Size([5, 1, 8, 8]), True, torch.Size([5, 64]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        latent_dim: PositiveInt = 10,
        hidden: Sequence[PositiveInt] = (64, 256, 256, 1024),
    ):
        super().__init__()
        self.shape, size = tuple(shape), math.prod(shape)
        self.support = "real" if levels is None else "unit"
        bounded = [nn.Sigmoid()] if levels is not None else []
        network = mlp([latent_dim, *hidden, size])
        self._set_generator(nn.Sequential(*network, *bounded, nn.Unflatten(1, self.shape)), StandardUniform(latent_dim))

    def embed(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def generate(self, z: Tensor) -> Tensor:
        return self.decode(z).flatten(1)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        *_, last = (m for m in self.generator.modules() if isinstance(m, nn.Linear))
        last.bias.copy_(torch.logit(mean.clamp(0.01, 0.99)).flatten() if self.support == "unit" else mean.flatten())


class GMMNAutoencoder(MomentMatching, Codes, Reconstructs, StartsFromMean):
    """x = g(G(z)), z ~ U[-1, 1]^m: moments are matched between the codes f(x) of a trained autoencoder and G's, which
    its decoder g makes examples (Li et al. 2015, arXiv:1502.02761, section 4: GMMN+AE).

    The autoencoder, the part `autoencoder`, is a stack with logistic layers that is pretrained layer by layer. Its
    codes have few dimensions and lie in [0, 1], where a kernel tells more than among pixels. `codes` and `reconstruct`
    are the autoencoder's; z is another code, before G.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        encoder: units of the autoencoder's layers, the last of them the code's.
        latent_dim: m.
        hidden: units of G's hidden layers.
        tied: in pretraining a layer's weights downwards are those upwards, transposed.

    >>> model = GMMNAutoencoder((1, 8, 8), levels=17, encoder=[16, 4], latent_dim=3, hidden=[8])
    >>> x = model.sample(5)
    >>> model.support, x.shape, model.embed(x).shape
    ('unit', torch.Size([5, 1, 8, 8]), torch.Size([5, 4]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        encoder: Sequence[PositiveInt] = (1024, 32),
        latent_dim: PositiveInt = 10,
        hidden: Sequence[PositiveInt] = (64, 256, 256, 1024),
        tied: bool = True,
    ):
        super().__init__()
        self.autoencoder = StackedAutoencoder(shape, levels, encoder, code="sigmoid", tied=tied)
        self.shape, self.support = self.autoencoder.shape, self.autoencoder.support
        generator = nn.Sequential(*mlp([latent_dim, *hidden, encoder[-1]]), nn.Sigmoid())
        self._set_generator(generator, StandardUniform(latent_dim))

    def embed(self, x: Tensor) -> Tensor:
        return self.codes(x)

    def generate(self, z: Tensor) -> Tensor:
        return self.generator(z).float()

    def decode(self, z: Tensor) -> Tensor:
        return self.autoencoder.decode(self.generate(z))

    def codes(self, x: Tensor) -> Tensor:
        return self.autoencoder.codes(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.autoencoder.reconstruct(x)

    def start_from_mean(self, mean: Tensor) -> None:
        self.autoencoder.start_from_mean(mean)
