"""Generative adversarial networks with an encoder beside the generator: BiGAN and ALI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gentrain import noise
from gentrain.models.coders import Plan, leaky
from gentrain.models.critics import Bidirectional
from gentrain.models.gan import GeneratorNetwork
from gentrain.models.layers import StandardNormal, mlp
from gentrain.types import PositiveInt, Shape


class BiGAN(GeneratorNetwork, Bidirectional):
    """x = G(z), z ~ N(0, I), and an encoder E, against a critic D(x, z) of pairs.

    D tells pairs (x, E(x)) of data from pairs (G(z), z). Where it can't, the two joint distributions are one, and so
    E inverts G (Donahue et al. 2017, arXiv:1605.09782, theorem 2). With `encoder: gaussian`, q(z|x) =
    N(z; μ(x), diag σ²(x)), it is adversarially learned inference, and q(z|x) is then the posterior of the generator
    (Dumoulin et al. 2017, arXiv:1606.00704). Nothing asks of either that G(E(x)) be x: reconstructions are x's like,
    and often not x.

    Images live in [-1, 1] (`signed`, G ends in tanh), points in the reals (`real`, G ends linear). All networks have
    leaky rectifiers (0.2), G and E batch normalisation. `codes` are E(x), or μ(x).

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        network: `mlp`, or `conv` for images with sides of 8 to 64 (stride-2 convolutions, then `hidden` layers).
        latent_dim: dimensions of z.
        hidden: units of the encoder's fully connected layers; the generator mirrors them.
        discriminator_hidden: of the critic's, where x, or its feature maps, and z meet; None is `hidden`.
        channels: feature maps of the first convolution, doubled at each halving; None is 32. Only for `conv`.
        encoder: `deterministic`, BiGAN's, or `gaussian`, ALI's.

    Raises:
        UsageError: `conv` asked of something that is no image of a fitting size, or `channels` of an mlp.

    >>> bigan = BiGAN((1, 8, 8), levels=17, latent_dim=2, hidden=[8]).eval()
    >>> x = bigan.sample(3)
    >>> bigan.support, bigan.codes(x).shape, bigan.discriminate_pair(x, bigan.infer(x)).shape
    ('signed', torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 50,
        hidden: Sequence[PositiveInt] = (512, 512),
        discriminator_hidden: Sequence[PositiveInt] | None = None,
        channels: PositiveInt | None = None,
        encoder: Literal["deterministic", "gaussian"] = "deterministic",
    ):
        super().__init__()
        self.shape, self.gaussian = tuple(shape), encoder == "gaussian"
        self.support = "real" if levels is None else "signed"
        plan = Plan(self.shape, levels is not None, network, hidden, channels)
        self.encoder, generator = plan.coders(latent_dim * (2 if self.gaussian else 1), latent_dim)
        self._set_generator(generator, StandardNormal(latent_dim))
        of_x, size = plan.trunk()
        critic = hidden if discriminator_hidden is None else discriminator_hidden
        self.discriminator = PairCritic(nn.Sequential(*of_x), [size + latent_dim, *critic, 1])

    def codes(self, x: Tensor) -> Tensor:
        return self._posterior(x)[0]

    def infer(self, x: Tensor) -> Tensor:
        mean, log_variance = self._posterior(x)
        if log_variance is None:
            return mean
        return mean + torch.exp(0.5 * log_variance) * noise.normal(*mean.shape, device=mean.device)

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The centre of q(z|x) and, if it isn't a point, its log-variance, (B, latent_dim) each."""
        encoded = self.encoder(x).float()
        if not self.gaussian:
            return encoded, None
        mean, log_variance = encoded.chunk(2, -1)
        return mean, log_variance

    def discriminate_pair(self, x: Tensor, z: Tensor) -> Tensor:
        return self.discriminator(x, z).float().flatten()


class PairCritic(nn.Module):
    """D(x, z): what `of_x` (B, *shape) -> (B, d) makes of x, and z, through layers of `sizes`, from d + dim z to 1."""

    def __init__(self, of_x: nn.Module, sizes: Sequence[int]):
        super().__init__()
        self.of_x, self.of_both = of_x, mlp(sizes, leaky)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.of_both(torch.cat([self.of_x(x), z.flatten(1)], 1))
