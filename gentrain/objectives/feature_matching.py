"""Feature matching."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from gentrain import noise
from gentrain.models.base import given
from gentrain.models.critics import Adversarial, Perceives
from gentrain.objectives.adversarial import NonSaturating, Round


class FeatureMatching(NonSaturating):
    """G matches the mean of what D perceives of real examples, not D's verdict (Salimans et al. 2016).

    D as in the game of Goodfellow et al.;  G: ‖E f(x) - E f(G(z))‖² with D's last hidden layer f (arXiv:1606.03498,
    section 3.1), the means being those of the batch.

    Args:
        discriminator_steps, regularise: as of `Game`.
    """

    needs = Perceives
    aim = None

    def generator_step(
        self, model: Adversarial, table: Round, optimizer: Optimizer | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(model, Perceives)
        labels, blur = given(model, table.y), self.regularise.blur(table.progress)
        with torch.no_grad():
            real = noise.of_all_processes(model.features(blur(table.x), **labels))
        fake = noise.joined(model.features(blur(table.fakes), **labels))
        terms = self.generator_terms(model, table)
        loss = (real.mean(0) - fake.mean(0)).square().sum() + sum(terms.values())
        return loss, {"g_loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}
