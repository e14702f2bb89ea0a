"""Adversarial models of p(x|y): the conditional GAN, with a concatenating or a projecting critic, and AC-GAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.auxiliary import Auxiliary, Form, TwoHeads
from gentrain.models.base import Classifies, Conditional
from gentrain.models.critics import Perceives
from gentrain.models.gan import GeneratorNetwork
from gentrain.models.labels import beside, one_hot
from gentrain.models.layers import StandardNormal
from gentrain.types import PositiveInt, Shape


class LabelledGenerator(GeneratorNetwork, Conditional):
    """x = G(z, y), z ~ N(0, I): the label enters one-hot beside z, which doesn't depend on it.

    `decode` needs y (B,); `sample` draws the labels evenly without it.
    """

    classes: int

    def _set_labelled(self, form: Form, latent_dim: int, classes: int | None) -> int:
        """The generator, and K."""
        if classes is None:
            name = type(self).__name__
            raise UsageError(f"{name} is p(x|y), and these data have no labels y: use data with labels, or model=gan")
        self.shape, self.classes, self.support = form.shape, classes, form.support
        self._set_generator(form.generator(latent_dim + classes), StandardNormal(latent_dim))
        return classes

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.generator(beside(z, one_hot(self, y, len(z)), maps=False)).float()

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """n draws of the generator, (n, *shape), of the labels y (n,) or of even ones."""
        if y is None:
            y = torch.randint(self.classes, (n,), device=self.device)
        return self.decode(self.prior.sample(torch.Size([n])), y)


class CGAN(LabelledGenerator, Perceives):
    """x = G(z, y) against a critic D(x, y) that judges the example and its label together.

    With `condition="concat"` the label enters the critic's first layer beside x (Mirza & Osindero 2014,
    arXiv:1411.1784), one-hot or as feature maps that are on or off. With "projection" the features φ know only x:

        D(x, y) = ψ(φ(x)) + <v_y, φ(x)>,   ψ linear    (Miyato & Koyama 2018, arXiv:1802.05637, eq. 3)

    the form that log p_data(y|x)/p_G(y|x) + log p_data(x)/p_G(x) has where p(y|x) is a softmax of linear functions of
    φ. The paper has a hinge game and spectral normalisation with it: `objective=hinge model.spectral_norm=true`.

    Images live in [-1, 1] (`signed`), points in the reals. Every method but `sample` needs y (B,).

    Args:
        shape: of one example. levels: number of values an element can take in the data, None for reals.
        classes: K, labels 0…K-1.
        network: `mlp`, or `conv`, DCGAN's, for square images with a side of 8 to 64.
        condition: how the critic takes the label.
        latent_dim: dimensions of z.
        hidden: units of the mlp's hidden layers in the generator. discriminator_hidden: in the critic; None is the
            generator's, reversed. channels: of conv at the highest resolution, doubled at each halving; None is 64.
        norm: of the generator's hidden layers; None is batch for conv and none for an mlp. discriminator_norm: of the
            critic's but the first; None is the same.
        spectral_norm: whether the critic's weights have a largest singular value of 1.

    Raises:
        UsageError: no labels in the data or a call, one out of range, or a network that doesn't fit the data.

    >>> gan = CGAN((2,), classes=3, latent_dim=4, hidden=[8], condition="projection")
    >>> y = torch.tensor([2, 0])
    >>> gan.sample(2, y=y).shape, gan.discriminate(torch.zeros(2, 2), y=y).shape
    (torch.Size([2, 2]), torch.Size([2]))
    """

    discriminator: Concatenation | Projection

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        classes: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        condition: Literal["concat", "projection"] = "concat",
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
        classes = self._set_labelled(form, latent_dim, classes)
        critic = Projection if condition == "projection" else Concatenation
        self.discriminator = critic(form, classes)
        form.finish(self.discriminator)

    def discriminate(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.discriminator(x, one_hot(self, y, len(x))).float()

    def features(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The critic's last hidden layer, (B, d); of a projecting critic without the label."""
        return self.discriminator.features(x, one_hot(self, y, len(x))).float()


class Concatenation(nn.Module):
    """The critic of x and a one-hot label (B, K) beside it: -> (B,)."""

    def __init__(self, form: Form, classes: int):
        super().__init__()
        self.maps = form.convolves
        self.trunk, width = form.trunk(further=classes)
        self.verdict = nn.Linear(width, 1)

    def features(self, x: Tensor, label: Tensor) -> Tensor:
        return self.trunk(beside(x, label, self.maps))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.verdict(self.features(x, label)).flatten()


class Projection(nn.Module):
    """The critic ψ(φ(x)) + <v_y, φ(x)> of x and a one-hot label (B, K): -> (B,)."""

    def __init__(self, form: Form, classes: int):
        super().__init__()
        self.trunk, width = form.trunk()
        self.verdict = nn.Linear(width, 1)
        self.directions = nn.Linear(classes, width, bias=False)  # its column y is v_y

    def features(self, x: Tensor, label: Tensor) -> Tensor:
        return self.trunk(x)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        features = self.features(x, label)
        return self.verdict(features).flatten() + (self.directions(label) * features).sum(1)


class ACGAN(Auxiliary, LabelledGenerator, Classifies):
    """x = G(z, y) against a critic with two outputs on the same features: is x real, and p(y|x).

    The auxiliary classifier GAN (Odena et al. 2017, arXiv:1610.09585). The critic isn't told the label: it has to find
    it, and the generator to show it. So `discriminate` does without y, and `log_class` is a classifier of its own.

    Args:
        as of the `CGAN`.

    Raises:
        UsageError: as of the `CGAN`.

    >>> gan = ACGAN((2,), classes=3, latent_dim=4, hidden=[8])
    >>> gan.sample(5).shape, gan.log_class(torch.zeros(5, 2)).shape
    (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    discriminator: TwoHeads

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        classes: PositiveInt | None = None,
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
        classes = self._set_labelled(form, latent_dim, classes)
        trunk, width = form.trunk()
        self.discriminator = TwoHeads(trunk, width, nn.Linear(width, classes))
        form.finish(self.discriminator)

    def opinion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.discriminator(x)

    def discriminate(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The critic's output, (B,), whatever the label."""
        return super().discriminate(x)

    def features(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The critic's last hidden layer, (B, d), whatever the label."""
        return super().features(x)

    def log_class(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.judge(x)[1], 1)
