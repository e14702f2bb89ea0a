"""Games as parts of other objectives, and over something else than examples: codes, pairs of example and code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain.errors import UsageError
from gentrain.models.base import Decoder
from gentrain.models.critics import Adversarial
from gentrain.models.domains import Translator
from gentrain.objectives.adversarial import Game, NonSaturating
from gentrain.update import Objective


class Judged(Adversarial):
    """A model as a game sees it whose critic judges not x but what `judge` takes, (B, …) -> (B,).

    It shares the model's networks, and stands for no model of its own: to a `Game`'s `Round`, `x` are then those of
    data and `fakes` the others. A translator has no prior; those who play with its critic draw no codes.
    """

    def __init__(self, model: Decoder | Translator, discriminator: nn.Module, judge: Callable[[Tensor], Tensor]):
        super().__init__()
        self.discriminator, self.judge = discriminator, judge
        self._model: tuple[Any] = (model,)  # no submodule: the critic would be in it twice

    @property
    def prior(self) -> Distribution:
        return self._model[0].prior

    def decode(self, z: Tensor) -> Tensor:
        return self._model[0].decode(z)

    def discriminate(self, x: Tensor) -> Tensor:
        return self.judge(x)

    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))


def of_numbers(game: Game | None) -> Game:
    """The game, or the non-saturating one, where its critic is to give one number.

    Raises:
        UsageError: it looks at more than what the critic says, or its rounds are its own.
    """
    game = game or NonSaturating()
    if game.needs is not Adversarial or type(game).forward is not Game.forward:
        raise UsageError(
            f"objective.game={type(game).__name__}: asks more of a critic than a number; take"
            " objective@objective.game=non_saturating, or another game of two losses alone"
        )
    return game


class Plays(Objective):
    """Has a game in it, for the losses of some of its parts.

    Args:
        game: as of `of_numbers`.
    """

    def __init__(self, game: Game | None = None):
        super().__init__()
        self.game = of_numbers(game)


def mirrored(game: Game, output: Tensor) -> Tensor:
    """The critic's outputs as they would be if real and generated examples changed places.

    For whoever makes what the critic takes for real, its encoder for instance, and has a generator's loss: log-odds and
    scores change their sign, targets are mirrored at the game's `boundary`. Where a game has no boundary, a constant in
    what its critic says is of no consequence.
    """
    return 2 * (game.boundary or 0.0) - output
