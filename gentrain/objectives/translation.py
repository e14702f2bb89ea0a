"""Games of translators: of pairs, and of two domains whose ways undo each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss
from torch.optim import Optimizer

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.translation import JudgedDomains, JudgedPairs
from gentrain.objectives.adversarial import Game, Round
from gentrain.objectives.judged import Judged, Plays
from gentrain.objectives.pool import Pool
from gentrain.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, Shape
from gentrain.update import Update


def given_pair(batch: Batch) -> Tensor:
    """What the batch has to be translated, (B, *shape).

    Raises:
        UsageError: it has nothing.
    """
    if batch.pair is None:
        raise UsageError("these data have no pairs to translate; take data=paired or data=unpaired")
    return batch.pair


class Pix2Pix(Plays):
    """A game of pairs and the absolute error (Isola et al. 2017, arXiv:1611.07004, eq. 4).

        min_G max_D  a V(D, G) + λ E |x - G(pair, z)|,   D a critic of (x, pair),   the mean over elements

    The least absolute error is at the median of x given `pair`, which is a blur where x could be several things; the
    critic, who judges patches, tells a blur from x. Every patch counts as an example of the game, as in the authors'
    code: a loss of each, and then the mean. The paper's text has the mean of what the critic says, by which one patch
    could make up for another. A penalty of `regularise` is on the gradient of an image's sum over its patches.

    Metrics: the game's; and `l1`, the error without λ.

    Args:
        game: the losses, of critics that give one number. adversarial: a; with 0 the critic is left alone.
        l1: λ, 100 in the paper.

    Raises:
        UsageError: both weights are 0, or a game that looks at more than what the critic says.
    """

    needs = JudgedPairs
    parts = ("discriminator", "generator")

    def __init__(self, game: Game | None = None, adversarial: NonNegativeFloat = 1.0, l1: NonNegativeFloat = 100.0):
        super().__init__(game)
        if not (adversarial or l1):
            raise UsageError("objective.l1=0: with objective.adversarial=0 there is nothing to learn; set one of them")
        self.adversarial, self.l1 = adversarial, l1
        if not adversarial:
            self.parts, self.leaves = ("generator",), ("discriminator",)

    def forward(self, model: JudgedPairs, batch: Batch, progress: float) -> Iterator[Update]:
        game, x, pair = self.game, batch.x, given_pair(batch)
        if not self.adversarial:
            error = l1_loss(model.translate(pair), x)
            yield Update(self.l1 * error, "generator", metrics={"l1": error.detach()})
            return

        def judge(both: Tensor) -> Tensor:
            x, pair = both.chunk(2, 1)
            return model.judge(x, pair)

        view = Judged(model, model.discriminator, judge)
        table = Round(torch.cat([x, pair], 1), None, pair, x, progress)
        optimizer: Optimizer | None = None
        for step in range(1, game.discriminator_steps + 1):
            with torch.set_grad_enabled(step == game.discriminator_steps):  # only the last teach the generator
                made = model.translate(pair)
                table = table._replace(fakes=torch.cat([made, pair], 1))
            loss, metrics = game.discriminator_step(view, table._replace(fakes=table.fakes.detach()))
            optimizer = yield Update(loss, "discriminator", metrics=metrics)
            yield from game.after_discriminator(view, metrics)
        loss, metrics = game.generator_step(view, table, optimizer)
        error = l1_loss(made, x)
        loss = self.adversarial * loss + self.l1 * error
        yield Update(loss, "generator", metrics={**metrics, "l1": error.detach()})


class Cycle(Plays):
    """Two games, one of each domain, and two ways that undo each other (Zhu et al. 2017, arXiv:1703.10593, eq. 3).

        a V(D_x, F) + a V(D_pair, G) + λ [d(F(G(x)), x) + d(G(F(pair)), pair)] + λ ι [d(F(x), x) + d(G(pair), pair)]

    with x = F(pair) and pair = G(x), and d the mean absolute or squared difference of elements. The last terms ask
    for examples that are in the domain already to be left alone (section 5.2). The paper's game is that of least
    squares, whose losses have a factor of ½ here and, of the generator, none there: a = 2 is what makes the sum the
    paper's. Each critic is shown what its `Pool` gives for today's translations; patches are as in `Pix2Pix`.

    DiscoGAN's objective (Kim et al. 2017, arXiv:1703.05192, eq. 7 and 8) is the non-saturating game with squared
    differences, ι = 0 and no pool.

    Metrics: those of the games, named `x/…` and `pair/…`; `cycle` and `identity`, the brackets, without their weights.

    Args:
        shape: of one example. game: the losses, of critics that give one number, twice, with whatever they keep.
        adversarial: a. cycle: λ. identity: ι, ½ where the paper uses it. distance: d.
        pool: earlier translations that are kept for each critic; 0 keeps none.

    Raises:
        UsageError: a game that looks at more than what the critic says.
    """

    needs = JudgedDomains
    parts = ("discriminator", "generator")

    def __init__(
        self,
        shape: Shape,
        game: Game | None = None,
        adversarial: PositiveFloat = 2.0,
        cycle: NonNegativeFloat = 10.0,
        identity: NonNegativeFloat = 0.5,
        distance: Literal["l1", "l2"] = "l1",
        pool: NonNegativeInt = 50,
    ):
        super().__init__(game)
        self.adversarial, self.cycle, self.identity = adversarial, cycle, identity
        self.distance = l1_loss if distance == "l1" else mse_loss
        self.other_game = copy.deepcopy(self.game)
        self.shape = tuple(shape)
        self.pools = nn.ModuleDict({"x": Pool(pool, self.shape), "pair": Pool(pool, self.shape)})

    def require(self, model: JudgedDomains) -> None:
        super().require(model)
        if self.shape != model.shape:
            raise UsageError(
                f"objective.shape={list(self.shape)}: the model's is {list(model.shape)}; leave it ${{model.shape}}"
            )

    def forward(self, model: JudgedDomains, batch: Batch, progress: float) -> Iterator[Update]:
        x, pair = batch.x, given_pair(batch)
        views = [
            ("x", self.game, Judged(model, model.discriminator, model.judge)),
            ("pair", self.other_game, Judged(model, model.discriminator, model.judge_pair)),
        ]
        made = {"x": model.translate(pair), "pair": model.translate_back(x)}
        tables = {
            "x": Round(x, None, pair, made["x"], progress),
            "pair": Round(pair, None, x, made["pair"], progress),
        }
        shown = {name: table._replace(fakes=self.pools[name](made[name].detach())) for name, table in tables.items()}
        optimizer: Optimizer | None = None
        for _ in range(self.game.discriminator_steps):
            losses, metrics = [], {}
            for name, game, view in views:
                loss, metrics[name] = game.discriminator_step(view, shown[name])
                losses.append(loss)
            optimizer = yield Update(losses[0] + losses[1], "discriminator", metrics=_named(metrics))
            for name, game, view in views:
                for update in game.after_discriminator(view, metrics[name]):
                    yield replace(update, metrics=_named({name: update.metrics}))
        losses, metrics = [], {}
        for name, game, view in views:
            loss, metrics[name] = game.generator_step(view, tables[name], optimizer)
            losses.append(self.adversarial * loss)
        d = self.distance
        cycle = d(model.translate(made["pair"]), x) + d(model.translate_back(made["x"]), pair)
        loss, terms = losses[0] + losses[1] + self.cycle * cycle, {"cycle": cycle.detach()}
        if self.cycle and self.identity:
            identity = d(model.translate(x), x) + d(model.translate_back(pair), pair)
            loss, terms["identity"] = loss + self.cycle * self.identity * identity, identity.detach()
        yield Update(loss, "generator", metrics={**_named(metrics), **terms})


def _named(metrics: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of each game, by its name."""
    return {f"{name}/{key}": value for name, found in metrics.items() for key, value in found.items()}
