"""Games of models that make an image in steps: each step is a game of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.cascade import Cascade
from gentrain.models.critics import Adversarial
from gentrain.models.lapgan import LAPGAN
from gentrain.objectives.adversarial import Game
from gentrain.objectives.judged import of_numbers
from gentrain.types import PositiveInt
from gentrain.update import Objective, Update, following


class OfStep(Objective):
    """The game of one step; the others stand still. Metrics are the game's, named `<step>/…`.

    Args:
        step: its name in `Cascade.steps`.
    """

    needs = Cascade

    def __init__(self, step: str, game: Game):
        super().__init__()
        self.step, self.game = step, game
        self.parts = tuple(f"{step}.{part}" for part in game.parts)

    def require(self, model: Cascade) -> None:
        self.game.require(self._player(model))

    def begin(self, model: Cascade) -> None:
        self.game.begin(self._player(model))

    def _player(self, model: Cascade) -> Adversarial:
        return model.player(self.step, torch.zeros(1, *model.shape, device=model.device))[0]

    def forward(self, model: Cascade, batch: Batch, progress: float) -> Iterator[Update]:
        player, x = model.player(self.step, batch.x)
        updates, done = self.game(player, batch._replace(x=x), progress), None
        while (update := following(updates, done)) is not None:
            metrics = {f"{self.step}/{name}": value for name, value in update.metrics.items()}
            part = f"{self.step}.{update.part}" if update.loss is not None else update.part
            done = yield replace(update, part=part, metrics=metrics)


class Laplacian(Objective):
    """Every level of a Laplacian pyramid plays its game against data (Denton et al. 2015, arXiv:1506.05751).

    The games are independent: what a level makes is never another's input in training. So all levels take each batch,
    rather than one after the other: each then sees all of the data and has all of the training for its schedule.

    Args:
        halvings: `${model.halvings}`: the parts are those of so many levels and the coarsest.
        game: of each level, with whatever it keeps for each apart; its losses are of what the critic says alone.

    Raises:
        UsageError: a game that asks more of a critic.
    """

    needs = LAPGAN

    def __init__(self, halvings: PositiveInt, game: Game | None = None):
        super().__init__()
        game = of_numbers(game)
        games = [OfStep(f"level{k}", copy.deepcopy(game)) for k in reversed(range(halvings + 1))]
        self.games = nn.ModuleList(games)
        self.parts = tuple(part for game in games for part in game.parts)

    def require(self, model: LAPGAN) -> None:
        if len(self.games) != len(model.steps):
            raise UsageError(
                f"objective.halvings={len(self.games) - 1}: the model's are {len(model.steps) - 1}; leave it"
                " ${model.halvings}"
            )

    def forward(self, model: LAPGAN, batch: Batch, progress: float) -> Iterator[Update]:
        for game in self.games:
            yield from game(model, batch, progress)
