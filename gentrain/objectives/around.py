"""A game with more in it: another one's losses and moves, and further terms in both players' losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gentrain.errors import UsageError
from gentrain.models.auxiliary import Auxiliary
from gentrain.objectives.adversarial import Game, NonSaturating, Round, Terms
from gentrain.update import Update


class OnGame(Game):
    """Another game's losses, moves and settings, for those who change some of it.

    Args:
        game: the game; one whose rounds are those of `Game`. None is the non-saturating one.

    Raises:
        UsageError: the game's rounds are its own.
    """

    def __init__(self, game: Game | None):
        game = NonSaturating() if game is None else game
        if not isinstance(game, Game) or type(game).forward is not Game.forward:
            raise UsageError(
                f"objective.game={type(game).__name__}: is no game whose rounds are of one critic and one generator;"
                " take e.g. objective@objective.game=non_saturating"
            )
        super().__init__(game.discriminator_steps, game.regularise)
        self.game, self.parts, self.leaves = game, game.parts, game.leaves
        self.boundary, self.probability, self.aim = game.boundary, game.probability, game.aim
        self.moves_critic = game.moves_critic

    def require(self, model: Any) -> None:
        if not isinstance(model, self.game.needs):
            raise UsageError(
                f"objective.game={type(self.game).__name__}: needs a model that is {self.game.needs.__name__}, and"
                f" {type(model).__name__} isn't; take e.g. objective@objective.game=non_saturating"
            )
        self.game.require(model)

    def begin(self, model: Any) -> None:
        self.game.begin(model)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.game.discriminator_loss(real, fake)

    def generator_loss(self, fake: Tensor) -> Tensor:
        return self.game.generator_loss(fake)

    def discriminator_step(self, model: Any, table: Round) -> tuple[Tensor, dict[str, Tensor]]:
        return self.game.discriminator_step(model, table)

    def generator_step(self, model: Any, table: Round, optimizer: Optimizer | None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.game.generator_step(model, table, optimizer)

    def after_discriminator(self, model: Any, metrics: Mapping[str, Tensor]) -> Iterator[Update]:
        return self.game.after_discriminator(model, metrics)


class Around(OnGame):
    """Any game with terms besides that teach what else a critic tells, and the generator by it.

    The terms are functions of the critic's outputs, which are computed once for the game and for them.

    Args:
        game: as of `OnGame`. weights: term -> its weight in the losses.
    """

    needs = Auxiliary
    excludes = ()

    def __init__(self, game: Game | None, weights: Mapping[str, float]):
        super().__init__(game)
        self.weights = dict(weights)

    @abstractmethod
    def terms(self, model: Any, table: Round, part: str) -> Terms:
        """What is added to a part's loss, times its weight; shown without it."""

    def discriminator_step(self, model: Any, table: Round) -> tuple[Tensor, dict[str, Tensor]]:
        with model.remembering():
            loss, metrics = super().discriminator_step(model, table)
            return self._with("d_loss", loss, metrics, self.terms(model, table, "discriminator"))

    def generator_step(self, model: Any, table: Round, optimizer: Optimizer | None) -> tuple[Tensor, dict[str, Tensor]]:
        with model.remembering():
            loss, metrics = super().generator_step(model, table, optimizer)
            return self._with("g_loss", loss, metrics, self.terms(model, table, "generator"))

    def _with(
        self, name: str, loss: Tensor, metrics: Mapping[str, Tensor], terms: Terms
    ) -> tuple[Tensor, dict[str, Tensor]]:
        for term, value in terms.items():
            loss = loss + self.weights[term] * value
        return loss, {**metrics, name: loss.detach(), **{term: value.detach() for term, value in terms.items()}}
