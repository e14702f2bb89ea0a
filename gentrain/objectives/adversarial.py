"""The games of Goodfellow et al. 2014: a discriminator D(x) = σ(logit) against a generator G(z)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gentrain import noise
from gentrain.batch import Batch
from gentrain.models.base import Adversarial
from gentrain.types import OpenFraction, PositiveInt
from gentrain.update import Objective, Update

# With a logit r: -log σ(r) = softplus(-r) and -log(1 - σ(r)) = softplus(r), neither of which can overflow.


class Game(Objective):
    """Discriminator and generator in turn; a game is a pair of losses.

    A step moves the discriminator `discriminator_steps` times, each against fresh fakes and the step's batch, and then
    the generator once against the discriminator that has just moved. The last fakes serve both players, so G runs
    once for each discriminator step and never more.

    Args:
        discriminator_steps: updates of the discriminator for each of the generator.
    """

    needs = Adversarial
    parts = ("discriminator", "generator")

    def __init__(self, discriminator_steps: PositiveInt = 1):
        super().__init__()
        self.discriminator_steps = discriminator_steps

    @abstractmethod
    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """From the logits of real and generated examples."""

    @abstractmethod
    def generator_loss(self, fake: Tensor) -> Tensor:
        """From the logits of generated examples."""

    def forward(self, model: Adversarial, batch: Batch, progress: float) -> Iterator[Update]:
        x = batch.x
        for step in range(1, self.discriminator_steps + 1):
            with torch.set_grad_enabled(step == self.discriminator_steps):  # only the last fakes teach the generator
                fakes = model.decode(noise.sample(model.prior, len(x)))
            # Apart, so that batch normalisation sees batches of one kind, as in DCGAN's code.
            real, fake = model.discriminate(x), model.discriminate(fakes.detach())
            loss = self.discriminator_loss(real, fake)
            metrics = {
                "d_loss": loss.detach(),
                "d_real": torch.sigmoid(real.detach()).mean(),
                "d_fake": torch.sigmoid(fake.detach()).mean(),
            }
            yield Update(loss, "discriminator", metrics=metrics)
        loss = self.generator_loss(model.discriminate(fakes))
        yield Update(loss, "generator", metrics={"g_loss": loss.detach()})


class Minimax(Game):
    """min_G max_D E log D(x) + E log(1 - D(G(z))): the game of the theorem, whose generator saturates early on.

    At the optimal D the generator's part is 2 JS(p_data ‖ p_G) - log 4 (arXiv:1406.2661, eq. 1, theorem 1).
    """

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(-real).mean() + softplus(fake).mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return -softplus(fake).mean()


class NonSaturating(Game):
    """D as in the minimax game; G maximises E log D(G(z)) (arXiv:1406.2661, section 3; Goodfellow 2016, eq. 13)."""

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(-real).mean() + softplus(fake).mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return softplus(-fake).mean()


class LabelSmoothing(Game):
    """The non-saturating game with targets 1 - α for real and β for generated examples (Salimans et al. 2016).

    The optimal discriminator is ((1 - α) p_data + β p_G) / (p_data + p_G). With β = 0, one-sided, it is the usual one
    scaled down; β > 0 puts p_G in the numerator, which rewards the generator for staying where it errs
    (arXiv:1606.03498, section 3.4): the option is there to show that.

    Args:
        smoothing: α, taken off the target of real examples.
        beta: β, the target of generated examples.
        discriminator_steps: updates of the discriminator for each of the generator.
    """

    def __init__(self, smoothing: OpenFraction = 0.1, beta: OpenFraction = 0.0, discriminator_steps: PositiveInt = 1):
        super().__init__(discriminator_steps)
        self.smoothing, self.beta = smoothing, beta

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        # cross-entropy with target t: -t log σ(r) - (1 - t) log(1 - σ(r)) = softplus(r) - t r
        on_real = softplus(real) - (1 - self.smoothing) * real
        on_fake = softplus(fake) - self.beta * fake
        return on_real.mean() + on_fake.mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return softplus(-fake).mean()
