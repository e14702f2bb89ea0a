"""Games of a critic and a generator: the loop that all share, and those of Goodfellow et al. (2014)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.optim import Optimizer

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import given
from gentrain.models.critics import Adversarial, Extended
from gentrain.objectives.regularisers import Regularisers
from gentrain.types import OpenFraction, PositiveInt
from gentrain.update import Objective, Update

# With a logit r: -log σ(r) = softplus(-r) and -log(1 - σ(r)) = softplus(r), neither of which can overflow.

Terms = Mapping[str, Tensor]
"""Name -> scalar, to be added to a loss, and shown under that name."""


class Round(NamedTuple):
    """What is on the table while the players move.

    Args:
        x: real examples (B, *shape), and `y`, their labels (B,), if there are any.
        z: codes (B, *code) of `fakes` (B, *shape), generated examples. For the critic `fakes` are detached.
        progress: of training, in [0, 1).
    """

    x: Tensor
    y: Tensor | None
    z: Tensor
    fakes: Tensor
    progress: float


class Game(Objective):
    """Critic and generator in turn; a game is a pair of losses.

    A step moves the critic, the part `discriminator`, `discriminator_steps` times, each against fresh fakes and the
    step's batch, and then the generator once against the critic that has just moved. The last fakes serve both players,
    so G runs once for each critic's step and never more. To a conditional model both go with the batch's labels.

    Metrics: `d_loss` and `g_loss`, regularisation and further terms included, and these by name; `d_real` and `d_fake`,
    means of what the critic says, as probabilities where it has them; `accuracy_real` and `accuracy_fake`, the shares
    of real and generated examples on the right side of `boundary`.

    Attributes:
        boundary: the critic's output that says neither real nor generated; None where the game has none.
        probability: whether σ of the critic's output is the probability of being real.
        aim: the critic's output that the generator wants for its examples; None where it wants something else.
        moves_critic: whether `after_discriminator` changes the critic's weights.

    Args:
        discriminator_steps: updates of the critic for each of the generator.
        regularise: of the critic; None is none.
    """

    needs = Adversarial
    excludes = (Extended,)
    parts = ("discriminator", "generator")
    boundary: float | None = 0.0
    probability: bool = True
    aim: float | None = math.inf
    moves_critic: bool = False

    def __init__(self, discriminator_steps: PositiveInt = 1, regularise: Regularisers | None = None):
        super().__init__()
        self.discriminator_steps = discriminator_steps
        self.regularise = regularise or Regularisers()

    @abstractmethod
    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """From the critic's outputs (B,) for real and generated examples."""

    @abstractmethod
    def generator_loss(self, fake: Tensor) -> Tensor:
        """From the critic's outputs (B,) for generated examples."""

    def discriminator_terms(self, model: Adversarial, table: Round) -> Terms:
        """What a game adds to the critic's loss beside that of its outputs."""
        return {}

    def generator_terms(self, model: Adversarial, table: Round) -> Terms:
        """What a game adds to the generator's loss beside that of the critic's outputs."""
        return {}

    def discriminator_step(self, model: Adversarial, table: Round) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss and metrics, a function of its parameters and of what is on the table."""
        critic = _critic(model, table.y)
        blur = self.regularise.blur(table.progress)
        # Apart, so that batch normalisation sees batches of one kind, as in DCGAN's code.
        real, fake = critic(blur(table.x)), critic(blur(table.fakes))
        terms = {**self.regularise.penalties(critic, table.x, table.fakes), **self.discriminator_terms(model, table)}
        loss = self.discriminator_loss(real, fake) + sum(terms.values())
        return loss, {"d_loss": loss.detach(), **self._seen(real.detach(), fake.detach()), **_detached(terms)}

    def generator_step(
        self, model: Adversarial, table: Round, optimizer: Optimizer | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss and metrics; `optimizer` is the one that has just moved the critic."""
        fake = _critic(model, table.y)(self.regularise.blur(table.progress)(table.fakes))
        terms = self.generator_terms(model, table)
        loss = self.generator_loss(fake) + sum(terms.values())
        return loss, {"g_loss": loss.detach(), **_detached(terms)}

    def after_discriminator(self, model: Adversarial, metrics: Mapping[str, Tensor]) -> Iterator[Update]:
        """Updates between the critic's, which had these metrics, and what follows: in place or of other parts."""
        yield from ()

    def forward(self, model: Adversarial, batch: Batch, progress: float) -> Iterator[Update]:
        optimizer: Optimizer | None = None
        for step in range(1, self.discriminator_steps + 1):
            with torch.set_grad_enabled(step == self.discriminator_steps):  # only the last fakes teach the generator
                z = noise.sample(model.prior, len(batch.x))
                fakes = model.decode(z, **given(model, batch.y))
            table = Round(batch.x, batch.y, z, fakes, progress)
            loss, metrics = self.discriminator_step(model, table._replace(fakes=fakes.detach()))
            optimizer = yield Update(loss, "discriminator", metrics=metrics)
            yield from self.after_discriminator(model, metrics)
        loss, metrics = self.generator_step(model, table, optimizer)
        yield Update(loss, "generator", metrics=metrics)

    def _seen(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Metrics of the critic's outputs."""
        shown = torch.sigmoid if self.probability else torch.clone
        metrics = {"d_real": shown(real).mean(), "d_fake": shown(fake).mean()}
        if self.boundary is not None:
            metrics["accuracy_real"] = (real > self.boundary).float().mean()
            metrics["accuracy_fake"] = (fake < self.boundary).float().mean()
        return metrics


def _critic(model: Adversarial, y: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x -> the critic's output, (B,), for these labels."""
    labels = given(model, y)
    return lambda x: model.discriminate(x, **labels)


def _detached(terms: Terms) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in terms.items()}


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
        discriminator_steps, regularise: as of `Game`.

    Raises:
        UsageError: real examples have no higher target than generated ones.
    """

    def __init__(
        self,
        smoothing: OpenFraction = 0.1,
        beta: OpenFraction = 0.0,
        discriminator_steps: PositiveInt = 1,
        regularise: Regularisers | None = None,
    ):
        super().__init__(discriminator_steps, regularise)
        if beta >= 1 - smoothing:
            raise UsageError(
                f"objective.beta={beta:g}: generated examples must have a target below that of real ones,"
                f" 1 - objective.smoothing = {1 - smoothing:g}"
            )
        self.smoothing, self.beta = smoothing, beta
        middle = (1 - smoothing + beta) / 2  # the best D where p_data = p_G
        self.boundary = math.log(middle / (1 - middle))

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        # cross-entropy with target t: -t log σ(r) - (1 - t) log(1 - σ(r)) = softplus(r) - t r
        on_real = softplus(real) - (1 - self.smoothing) * real
        on_fake = softplus(fake) - self.beta * fake
        return on_real.mean() + on_fake.mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return softplus(-fake).mean()
