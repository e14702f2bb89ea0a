"""Games of coupled networks: CoGAN's, and UNIT's with its autoencoders."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, l1_loss
from torch.optim import Optimizer

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models import cogan, unit
from gentrain.models.coupled import Coupled
from gentrain.objectives.adversarial import Game, Round, Terms
from gentrain.objectives.judged import Judged, Plays
from gentrain.objectives.translation import given_pair
from gentrain.types import NonNegativeFloat, PositiveFloat
from gentrain.update import Update


class Made(NamedTuple):
    """Generated examples of both domains, (B, *shape) each."""

    x: Tensor
    pair: Tensor


class CoupledGame(Plays):
    """The game of both domains is one: its examples are those of x and behind them those of `pair`, and each half is
    judged by its own critic. So its losses are means over both domains, half the sum of two games."""

    needs = Coupled
    parts = ("discriminator", "generator")

    def __init__(self, game: Game | None = None, weights: Mapping[str, float] | None = None):
        super().__init__(game)
        self.weights = dict(weights or {})

    def critic_terms(self, model: Coupled, batch: Batch, made: Made) -> Terms:
        """What is added, times its weight, to the critics' loss; the generated examples have no gradient."""
        return {}

    def rounds(
        self, model: cogan.CoGAN | unit.UNIT, batch: Batch, progress: float, make: Callable[[], Made]
    ) -> Generator[Update, Optimizer, tuple[Made, Tensor, dict[str, Tensor]]]:
        """Moves the critics; gives what they saw last, with gradient, and the generators' loss and metrics of it."""
        game, view = self.game, Judged(model, model.discriminator, model.judge_both)
        real = torch.cat([batch.x, given_pair(batch)])
        optimizer: Optimizer | None = None
        for step in range(1, game.discriminator_steps + 1):
            with torch.set_grad_enabled(step == game.discriminator_steps):  # only the last teach the generators
                made = make()
            table = Round(real, None, real, torch.cat(made), progress)
            loss, metrics = game.discriminator_step(view, table._replace(fakes=table.fakes.detach()))
            terms = self.critic_terms(model, batch, Made(*(x.detach() for x in made)))
            loss = loss + sum(self.weights[name] * term for name, term in terms.items())
            metrics |= {name: term.detach() for name, term in terms.items()}
            optimizer = yield Update(loss, "discriminator", metrics={**metrics, "d_loss": loss.detach()})
            yield from game.after_discriminator(view, metrics)
        return made, *game.generator_step(view, table, optimizer)


class CoGAN(CoupledGame):
    """A game of each domain, and nothing else (Liu & Tuzel 2016, arXiv:1606.07536, eq. 3): which examples belong
    together is left to the networks' ties.

    Metrics: the game's, of both domains together.

    Args:
        game: the losses, of critics that give one number.

    Raises:
        UsageError: a game that looks at more than what the critic says.
    """

    needs = cogan.CoGAN

    def __init__(self, game: Game | None = None):
        super().__init__(game)

    def forward(self, model: cogan.CoGAN, batch: Batch, progress: float) -> Iterator[Update]:
        def make() -> Made:
            return Made(*model.decode_both(noise.sample(model.prior, len(batch.x))))

        _, loss, metrics = yield from self.rounds(model, batch, progress, make)
        yield Update(loss, "generator", metrics=metrics)


class UNIT(CoupledGame):
    """VAEs, games and cycles of two domains (Liu et al. 2017, arXiv:1703.00848, eq. 2 to 6).

        λ_game L_game + λ_kl KL(q(z|x) ‖ p) + λ_error E |x - G_x(z)|
                      + λ_kl_cycle KL(q(z'|x') ‖ p) + λ_cycle E |x - G_x(z')|

    with z ~ q(z|x), the translation x' = G_pair(z), and z' ~ q(z'|x'); and as much for `pair`. The games are of
    translations alone: reconstructions are taught by examples. Errors and divergences are means over the elements of an
    example and of a code, as in the authors' code, which makes the weights suit any size; a Laplacian's -log p and a
    divergence in nats are these times so many elements.

    A model that adapts has the critics learn in addition the labels of x, and what they see in the layer below to be
    the same in an example and its translation (section 4.2):

        λ_classify E -log p(y|x) + λ_features E |f_x(x) - f_pair(x')|,    and the latter for `pair` too

    Metrics: the game's, of both domains together; `kl`, `error`, `kl_cycle`, `cycle`, sums over both domains; of a
    model that adapts `class_loss`, in nats, and `features`. All without their weights.

    Args:
        game: the losses, of critics that give one number. adversarial: λ_game, of the sum over both domains.
        kl, error, kl_cycle, cycle, classify, features: λ; without weight on cycles there are none.

    Raises:
        UsageError: a game that looks at more than what the critic says.
    """

    needs = unit.UNIT

    def __init__(
        self,
        game: Game | None = None,
        adversarial: PositiveFloat = 10.0,
        kl: NonNegativeFloat = 0.1,
        error: NonNegativeFloat = 100.0,
        kl_cycle: NonNegativeFloat = 0.1,
        cycle: NonNegativeFloat = 100.0,
        classify: PositiveFloat = 1.0,
        features: NonNegativeFloat = 0.1,
    ):
        super().__init__(game, {"class_loss": classify, "features": features})
        self.adversarial = adversarial
        self.autoencoding = {"kl": kl, "error": error, "kl_cycle": kl_cycle, "cycle": cycle}
        self.cycles = bool(kl_cycle or cycle)

    def critic_terms(self, model: unit.UNIT, batch: Batch, made: Made) -> Terms:
        if not model.adapt:
            return {}
        if batch.y is None:
            raise UsageError("model.adapt=true: these data have no labels of x to learn; set it false")
        body, pair = model.discriminator.body, given_pair(batch)
        of_x = body.of_x(batch.x)
        features = l1_loss(of_x, body.of_pair(made.pair)) + l1_loss(body.of_pair(pair), body.of_x(made.x))
        return {
            "class_loss": cross_entropy(model.discriminator.labels(of_x), batch.y.long()),
            "features": features,
        }

    def forward(self, model: unit.UNIT, batch: Batch, progress: float) -> Iterator[Update]:
        x, pair = batch.x, given_pair(batch)
        found: list[tuple[Tensor, Tensor]] = []

        def make() -> Made:
            found[:] = [around(model.encode(x)), around(model.encode_pair(pair))]
            (_, of_x), (_, of_pair) = found
            return Made(model.decode(of_pair), model.decode_pair(of_x))

        made, loss, metrics = yield from self.rounds(model, batch, progress, make)
        (mean_x, z_x), (mean_pair, z_pair) = found
        terms = {
            "kl": divergence(mean_x) + divergence(mean_pair),
            "error": l1_loss(model.decode(z_x), x) + l1_loss(model.decode_pair(z_pair), pair),
        }
        if self.cycles:
            back, there = around(model.encode_pair(made.pair)), around(model.encode(made.x))
            terms["kl_cycle"] = divergence(back[0]) + divergence(there[0])
            terms["cycle"] = l1_loss(model.decode(back[1]), x) + l1_loss(model.decode_pair(there[1]), pair)
        loss = 2 * self.adversarial * loss + sum(self.autoencoding[name] * term for name, term in terms.items())
        yield Update(loss, "generator", metrics={**metrics, **{name: term.detach() for name, term in terms.items()}})


def around(mean: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and a draw of N(mean, I), (B, d)."""
    return mean, mean + noise.normal(*mean.shape, device=mean.device, dtype=mean.dtype)


def divergence(mean: Tensor) -> Tensor:
    """KL(N(mean, I) ‖ N(0, I)) = ½ ‖mean‖² in nats an element of (B, d), in the mean over examples.

    >>> divergence(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    tensor(0.7500)
    """
    return 0.5 * mean.square().mean()
