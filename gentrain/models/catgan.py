"""CatGAN: a critic that sorts examples into categories, and takes for real what it is sure of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.auxiliary import Auxiliary, Form
from gentrain.models.base import Categorises, Classifies
from gentrain.models.layers import StandardNormal
from gentrain.models.players import Network
from gentrain.types import PositiveInt, Shape


class CatGAN(Auxiliary, Categorises, Classifies):
    """x = G(z), z ~ N(0, I), against p(c|x) over K categories: real is what it is sure of (Springenberg 2016,
    arXiv:1511.06390).

        D(x) = -H[p(c|x)]    in nats, between -log K and 0

    There is no output for "generated": of such examples it is to know no category. Learned without labels the
    categories are clusters of the data (`log_category`); with `labels` they are the labels (`log_class`).

    Images live in [-1, 1] (`signed`), points in the reals.

    Args:
        classes: number of labels in the data, None where there are none.
        categories: K; None is `classes`.
        labels: whether category k is the label k, and learned from labels too.
        shape, levels, network, latent_dim, hidden, discriminator_hidden, channels, norm, discriminator_norm,
            spectral_norm: as of the `CGAN`.

    Raises:
        UsageError: no number of categories or fewer than two, labels that aren't there or are not K, or a network that
            doesn't fit the data.

    >>> gan = CatGAN((2,), categories=3, latent_dim=4, hidden=[8])
    >>> gan.sample(5).shape, gan.log_category(gan.sample(5)).shape
    (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    discriminator: CategoricalCritic

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        classes: PositiveInt | None = None,
        categories: PositiveInt | None = None,
        labels: bool = False,
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
        count = categories or classes
        if count is None or count < 2:
            said = "null" if categories is None else categories
            raise UsageError(
                f"model.categories={said}: give two or more{'' if classes else '; these data have no labels to count'}"
            )
        if labels and count != classes:
            raise UsageError(
                f"model.labels=true: categories are labels then, and there are {count} of the ones and"
                f" {classes or 'none'} of the others; leave model.categories out, or model.labels=false"
            )
        form = Form(
            tuple(shape), levels, network, hidden, discriminator_hidden, channels, norm, discriminator_norm,
            spectral_norm,
        )  # fmt: skip
        self.shape, self.support = form.shape, form.support
        self.labels, self._categories = labels, count
        self._set_generator(form.generator(latent_dim), StandardNormal(latent_dim))
        self.discriminator = CategoricalCritic(*form.trunk(), count)
        form.finish(self.discriminator)

    def opinion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(self.discriminator(x), 1)
        return -entropy(log_p), log_p

    @property
    def categories(self) -> int:
        return self._categories

    def log_category(self, x: Tensor) -> Tensor:
        return self.judge(x)[1]

    @property
    def knows_labels(self) -> bool:
        return self.labels

    def log_class(self, x: Tensor) -> Tensor:
        if not self.labels:
            raise UsageError("CatGAN was trained without labels: it knows no p(y|x); train it with model.labels=true")
        return self.log_category(x)


class CategoricalCritic(nn.Module):
    """Logits (B, K) from features, which are `width` numbers."""

    def __init__(self, trunk: Network, width: int, categories: int):
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(width, categories)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x)).float()


def entropy(log_p: Tensor) -> Tensor:
    """H[p] = -Σ p log p in nats over the last axis, of finite log-probabilities.

    >>> entropy(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log())
    tensor([0.6931, 0.3251])
    """
    return -(log_p.exp() * log_p).sum(-1)
