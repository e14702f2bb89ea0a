"""The hinge game: geometric GAN."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import relu

from gentrain.objectives.adversarial import Game


class Hinge(Game):
    """The critic wants a margin of 1 on either side, as a support vector machine does, and G none (Lim & Ye 2017).

    D: E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)));  G: -E D(G(z)) (arXiv:1705.02894, eq. 19 and 20). The optimal critic
    is sign(p_data - p_G), and its loss 2 (1 - TV) with the total variation TV between the two.

    Args:
        discriminator_steps, regularise: as of `Game`.
    """

    probability = False

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return relu(1 - real).mean() + relu(1 + fake).mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return -fake.mean()
