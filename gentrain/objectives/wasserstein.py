"""Wasserstein's games: the critic's outputs differ by the earth mover's distance as far as its slope is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gentrain.models.critics import Adversarial
from gentrain.objectives.adversarial import Game
from gentrain.objectives.regularisers import Regularisers
from gentrain.types import PositiveFloat, PositiveInt
from gentrain.update import Update


class WassersteinGP(Game):
    """max_D E D(x) - E D(G(z)) over critics of slope 1 is W(p_data, p_G), and G lowers it (Gulrajani et al. 2017).

    What bounds the slope is the gradient penalty (arXiv:1704.00028, eq. 3), one of `regularise`; with none, and no
    `model.spectral_norm` in its place, the critic's outputs run away. Then -`d_loss`, less the penalty, estimates the
    distance. Batch normalisation in the critic makes the penalty something else (section 4): the paper has none there.

    Args:
        discriminator_steps, regularise: as of `Game`; the paper takes 5 steps.
    """

    boundary = None
    probability = False

    def __init__(self, discriminator_steps: PositiveInt = 5, regularise: Regularisers | None = None):
        super().__init__(discriminator_steps, regularise)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class Wasserstein(WassersteinGP):
    """The same game with the critic's weights clipped to [-clip, clip] after each of its steps (Arjovsky et al. 2017).

    That bounds the slope by some K, so that -`d_loss` estimates K W(p_data, p_G) at best (arXiv:1701.07875, algorithm
    1). The paper moves both players by RMSprop with a learning rate of 5e-5.

    Metrics, beside those of `Game`: `clipped`, the share of the critic's weights that are at a bound.

    Args:
        clip: bound of every weight and bias.
        discriminator_steps, regularise: as of `Game`; the paper takes 5 steps.
    """

    moves_critic = True

    def __init__(
        self,
        clip: PositiveFloat = 0.01,
        discriminator_steps: PositiveInt = 5,
        regularise: Regularisers | None = None,
    ):
        super().__init__(discriminator_steps, regularise)
        self.clip = clip

    @torch.no_grad()
    def begin(self, model: Adversarial) -> None:
        """Clip: a critic that comes from another game may be out of bounds."""
        for p in model.discriminator.parameters():
            p.clamp_(-self.clip, self.clip)

    def after_discriminator(self, model: Adversarial, metrics: Mapping[str, Tensor]) -> Iterator[Update]:
        self.begin(model)
        with torch.no_grad():
            weights = torch.cat([p.flatten() for p in model.discriminator.parameters()])
        yield Update(metrics={"clipped": (weights.abs() >= self.clip).float().mean()})
