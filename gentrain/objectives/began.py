"""Boundary equilibrium."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gentrain import noise
from gentrain.models.critics import Adversarial, AutoencodingCritic
from gentrain.objectives.adversarial import Game
from gentrain.objectives.regularisers import Regularisers
from gentrain.types import Fraction, OpenFraction, PositiveInt
from gentrain.update import Update


class BEGAN(Game):
    """An autoencoder learns to restore data and, as much as keeps a balance, not samples (Berthelot et al. 2017).

    With the autoencoder's error L (arXiv:1703.10717, section 3.4)

        D: E L(x) - k E L(G(z));  G: E L(G(z));  k <- clip(k + λ (γ E L(x) - E L(G(z))), 0, 1)

    so that E L(G(z)) comes to γ E L(x). k starts from 0, and moves by the errors that D's step has met, beside the same
    samples: the paper draws others for G. Its authors halve the learning rate when `convergence` stalls; here
    `optim.schedule` lowers it.

    Metrics, beside those of `Game`: `k`, and `convergence`, E L(x) + |γ E L(x) - E L(G(z))|, which falls with both
    errors and with the imbalance. `d_real` and `d_fake` are minus the errors.

    Args:
        gamma: γ, lower for sharper samples, higher for more various ones; 0.3 to 0.7 in the paper.
        rate: λ, of the balance. The paper's 0.001 is for hundreds of thousands of steps: in a few thousand k would stay
            near 0, where D is an autoencoder that never learns to fail, and G one picture that it restores well.
        discriminator_steps, regularise: as of `Game`.
    """

    needs = AutoencodingCritic
    excludes = ()
    boundary = None
    probability = False
    k: Tensor

    def __init__(
        self,
        gamma: Fraction = 0.9,
        rate: OpenFraction = 0.1,
        discriminator_steps: PositiveInt = 1,
        regularise: Regularisers | None = None,
    ):
        super().__init__(discriminator_steps, regularise)
        self.gamma, self.rate = gamma, rate
        self.register_buffer("k", torch.zeros(()))

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.k * fake.mean() - real.mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return -fake.mean()

    def after_discriminator(self, model: Adversarial, metrics: Mapping[str, Tensor]) -> Iterator[Update]:
        # of all processes, so that each has the same k
        real, fake = (-noise.of_all_processes(metrics[name].view(1)).mean() for name in ("d_real", "d_fake"))
        balance = self.gamma * real - fake
        k = (self.k + self.rate * balance).clamp(0, 1)
        self.k.copy_(k)
        yield Update(metrics={"k": k, "convergence": real + balance.abs()})
