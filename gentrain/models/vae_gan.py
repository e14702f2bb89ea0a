"""Variational autoencoders whose likelihood an adversary learns: VAE-GAN, and CVAE-GAN with labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.models.base import Conditional, Encodes, Reconstructs
from gentrain.models.coders import Critic, Plan
from gentrain.models.critics import Extended, Perceives
from gentrain.models.gan import GeneratorNetwork
from gentrain.models.labels import beside, one_hot
from gentrain.models.layers import DiagonalNormal, StandardNormal
from gentrain.types import PositiveInt, Shape


class EncodedGAN(GeneratorNetwork, Extended, Perceives, Reconstructs):
    """x = G(z), z ~ N(0, I), with a critic D and an encoder q(z|x) = N(z; μ(x), diag σ²(x)).

    Images live in [-1, 1] (`signed`, G ends in tanh), points in the reals (`real`, G ends linear).
    """

    discriminator: Critic

    def _set_encoded(self, plan: Plan, latent_dim: int, labels: int, critic: Sequence[int] | None) -> Sequence[int]:
        """Make the three networks; the units of the critic's fully connected layers."""
        self.shape, self.support, self.network = plan.shape, "signed" if plan.bounded else "real", plan.network
        self.encoder, generator = plan.coders(2 * latent_dim, latent_dim, labels)
        self._set_generator(generator, StandardNormal(latent_dim))
        critic = plan.hidden if critic is None else critic
        self.discriminator = plan.critic(critic)
        return critic

    @abstractmethod
    def encode(self, x: Tensor, **labels: Any) -> DiagonalNormal:
        """q(z|x), of a conditional model q(z|x, y)."""

    def _posterior(self, x: Tensor) -> DiagonalNormal:
        mean, log_variance = self.encoder(x).float().chunk(2, -1)
        return DiagonalNormal(mean, log_variance)

    def discriminate(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The critic's output, (B,), whatever the labels."""
        return self.discriminator(x).float().flatten()

    def features(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.discriminator.perceive(x)[0][-1]


class VAEGAN(EncodedGAN, Encodes):
    """A VAE whose decoder is a GAN's generator, and whose likelihood is of what the critic sees in x.

        p(D_l(x) | z) = N(D_l(x); D_l(G(z)), I)    D_l the critic's l-th hidden layer

    (Larsen et al. 2016, arXiv:1512.09300, eq. 7): two images are alike that the critic finds alike, not those that
    agree pixel by pixel. Of x itself there is no density. All networks have leaky rectifiers (0.2), encoder and
    generator batch normalisation, and the critic layer normalisation: the likelihood's unit is then about a deviation
    of D_l's elements, and not whatever the critic makes it.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        network: `mlp`, or `conv` for images with sides of 8 to 64 (stride-2 convolutions, then `hidden` layers).
        latent_dim: dimensions of z.
        hidden: units of the encoder's fully connected layers; the generator mirrors them.
        discriminator_hidden: of the critic's; None is `hidden`.
        channels: feature maps of the first convolution, doubled at each halving; None is 32. Only for `conv`.

    Raises:
        UsageError: `conv` asked of something that is no image of a fitting size, or `channels` of an mlp.

    >>> model = VAEGAN((1, 8, 8), levels=17, latent_dim=2, hidden=[8]).eval()
    >>> x = model.sample(3)
    >>> model.encode(x).mean.shape, model.discriminate(x).shape, model.features(x).shape
    (torch.Size([3, 2]), torch.Size([3]), torch.Size([3, 8]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 32,
        hidden: Sequence[PositiveInt] = (512, 256),
        discriminator_hidden: Sequence[PositiveInt] | None = None,
        channels: PositiveInt | None = None,
    ):
        super().__init__()
        plan = Plan(tuple(shape), levels is not None, network, hidden, channels)
        self._set_encoded(plan, latent_dim, 0, discriminator_hidden)

    def encode(self, x: Tensor) -> DiagonalNormal:
        """q(z|x)."""
        return self._posterior(x)

    def codes(self, x: Tensor) -> Tensor:
        return self.encode(x).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.codes(x))


class CVAEGAN(EncodedGAN, Conditional):
    """x = G(z, y), z ~ N(0, I), with q(z|x, y), a critic D(x) and a classifier C(y|x).

    The generator is to give examples whose features in D and in C, their last hidden layers, are those of data: each
    reconstruction's those of its example, samples' those of data in the mean, in C label by label (Bao et al. 2017,
    arXiv:1703.10155). z is style: what the label doesn't tell. As of the `CVAE`, labels enter one-hot, and codes that
    were told the label are no `Codes`.

    `encode`, `decode` and `reconstruct` need y (B,); `sample` draws the labels evenly without it.

    Args:
        classes: K, labels 0…K-1. Others: as of `VAEGAN`; the classifier is like the critic.

    Raises:
        UsageError: as of `VAEGAN`, and where the data, or a call, have no labels.

    >>> model = CVAEGAN((1, 8, 8), levels=17, classes=10, latent_dim=2, hidden=[8]).eval()
    >>> model.sample(2, y=torch.tensor([3, 7])).shape
    torch.Size([2, 1, 8, 8])
    """

    classes: int

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        classes: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 32,
        hidden: Sequence[PositiveInt] = (512, 256),
        discriminator_hidden: Sequence[PositiveInt] | None = None,
        channels: PositiveInt | None = None,
    ):
        super().__init__()
        if classes is None:
            raise UsageError(
                "model=cvae_gan is p(x|y), and these data have no labels y: use data with labels, or model=vae_gan"
            )
        self.classes = classes
        plan = Plan(tuple(shape), levels is not None, network, hidden, channels)
        critic = self._set_encoded(plan, latent_dim, classes, discriminator_hidden)
        self.classifier = plan.critic(critic, classes)

    def encode(self, x: Tensor, y: Tensor | None = None) -> DiagonalNormal:
        """q(z|x, y)."""
        return self._posterior(beside(x, one_hot(self, y, len(x)), maps=self.network == "conv"))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.generator(beside(z, one_hot(self, y, len(z)), maps=False)).float()

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        if y is None:
            y = torch.randint(self.classes, (n,), device=self.device)
        return self.decode(self.prior.sample(torch.Size([n])), y)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x, y).mean, y)
