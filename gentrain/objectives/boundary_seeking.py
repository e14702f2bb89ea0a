"""Boundary seeking."""

from __future__ import annotations

from torch import Tensor

from gentrain.objectives.adversarial import NonSaturating


class BoundarySeeking(NonSaturating):
    """G puts its examples where D can't decide, rather than where D is surest that they are real (Hjelm et al. 2018).

    D as in the game of Goodfellow et al.;  G: E (log D(G(z)) - log(1 - D(G(z))))²/2, half the squared log-odds: the
    form for continuous x (arXiv:1702.08431, section 4). At the optimal D that is E_G log²(p_data/p_G)/2, null where
    the two agree, and there alone.

    Args:
        discriminator_steps, regularise: as of `Game`.
    """

    aim = 0.0

    def generator_loss(self, fake: Tensor) -> Tensor:
        return fake.square().mean() / 2
