"""AdaGAN: a mixture of generators, each made for what those before it miss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain.models.auxiliary import Form
from gentrain.models.critics import Adversarial, Extended
from gentrain.models.infogan import FactorPrior
from gentrain.models.layers import StandardNormal
from gentrain.types import PositiveInt, Shape


class AdaGAN(Extended):
    """p(x) = 1/t Σ_k p_k(x), k = 1 … t, of generators p_1, p_2, … that come one by one (Tolstikhin et al. 2017,
    arXiv:1701.02386, with β_k = 1/k).

    A code is z = (noise, c) with a one-hot c that says which generator decodes it. While the model learns, t is the
    number of generators that have begun, and in the end it is K. `objective=boosting` trains each against a critic of
    its own, on the examples that the mixture before it makes too rarely; a further network, the `teller`, tells data
    from that mixture.

    Images live in [-1, 1] (`signed`), points in the reals.

    Args:
        components: K.
        latent_dim: dimensions of the noise.
        shape, levels, network, hidden, discriminator_hidden, channels, norm, discriminator_norm, spectral_norm: of each
            player, as of the `CGAN`; the teller is built like a critic.

    Raises:
        UsageError: a network that doesn't fit the data.

    >>> gan = AdaGAN((2,), components=3, latent_dim=4, hidden=[8])
    >>> gan.sample(5).shape, gan.begun.item(), gan.prior.event_shape
    (torch.Size([5, 2]), 1, torch.Size([7]))
    """

    generator: nn.ModuleList
    discriminator: nn.ModuleList
    begun: Tensor

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        components: PositiveInt = 4,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 64,
        hidden: Sequence[PositiveInt] = (256, 512),
        discriminator_hidden: Sequence[PositiveInt] | None = None,
        channels: PositiveInt | None = None,
        norm: Literal["batch", "none", "layer"] | None = None,
        discriminator_norm: Literal["batch", "none", "layer"] | None = None,
        spectral_norm: bool = False,
    ):
        super().__init__()
        form = Form(
            tuple(shape), levels, network, hidden, discriminator_hidden, channels, norm, discriminator_norm,
            spectral_norm,
        )  # fmt: skip
        self.shape, self.support = form.shape, form.support
        self.components, self.latent_dim = components, latent_dim
        self.noise = StandardNormal(latent_dim)
        self.generator = nn.ModuleList(form.generator(latent_dim) for _ in range(components))
        self.discriminator = nn.ModuleList(_critic(form) for _ in range(components))
        self.teller = _critic(form)
        self.register_buffer("begun", torch.ones((), dtype=torch.int64))

    @property
    def prior(self) -> Distribution:
        """p(z): N(0, I), and even chances for each generator that has begun."""
        chances = (torch.arange(self.components, device=self.begun.device) < self.begun).float()
        return FactorPrior(self.latent_dim, [chances], 0, chances)

    def decode(self, z: Tensor) -> Tensor:
        noise, one_hot = z.split([self.latent_dim, self.components], 1)
        each = torch.stack([generator(noise) for generator in self.generator], 1)
        return each[torch.arange(len(z), device=z.device), one_hot.argmax(1)].float()

    def discriminate(self, x: Tensor) -> Tensor:
        """What the critic of the newest generator says."""
        return self.player(int(self.begun) - 1).discriminate(x)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n draws of the mixture."""
        return self.decode(self.prior.sample(torch.Size([n])))

    def player(self, k: int) -> Player:
        """The k-th generator and its critic as a model of their own, from 0 on."""
        return Player(self, k)


class Player(Adversarial):
    """One generator of an `AdaGAN` and its critic: the networks are that model's."""

    def __init__(self, model: AdaGAN, k: int):
        super().__init__()
        self.shape, self.support = model.shape, model.support
        self.noise, self.generator, self.discriminator = model.noise, model.generator[k], model.discriminator[k]

    @property
    def prior(self) -> Distribution:
        return self.noise()

    def decode(self, z: Tensor) -> Tensor:
        return self.generator(z).float()

    def discriminate(self, x: Tensor) -> Tensor:
        return self.discriminator(x).float().flatten()

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))


def _critic(form: Form) -> nn.Sequential:
    """(B, *shape) -> (B, 1)."""
    trunk, width = form.trunk()
    critic = nn.Sequential(trunk, nn.Linear(width, 1))
    form.finish(critic)
    return critic
