"""Two stages, each a game of images and what is said of them."""

from __future__ import annotations

import copy
from typing import Annotated

from torch import Tensor
from torch.optim import Optimizer

from gentrain import noise
from gentrain.models.stackgan import StackGAN, Stage
from gentrain.objectives.adversarial import Game, Round
from gentrain.objectives.around import OnGame
from gentrain.objectives.cascade import OfStep
from gentrain.objectives.stages import Stages
from gentrain.types import NonNegativeFloat, Range


class Matching(OnGame):
    """Any game whose critic also refuses real images with another label than theirs (Reed et al. 2016,
    arXiv:1605.05396, algorithm 1; Zhang et al. 2017), and whose generator keeps its condition near N(0, I).

        ½ L_D(real, fake) + ½ L_D(real, mismatched)   and   L_G + λ KL(N(μ(e), σ²(e)) ‖ N(0, I))

    The other label is drawn evenly from all others. What the game adds to its critic's loss counts by half, too.

    Metrics: those of the game; `d_mismatched`, the mean of the critic's output there as `d_fake` is; `kl`, in nats.

    Args:
        game: as of `OnGame`. kl: λ, of the sum over dimensions. mismatched: whether the critic sees such pairs; else
            its loss is the game's.
    """

    needs = Stage
    excludes = ()

    def __init__(self, game: Game | None = None, kl: NonNegativeFloat = 0.02, mismatched: bool = True):
        super().__init__(game)
        self.kl, self.mismatched = kl, mismatched

    def discriminator_step(self, model: Stage, table: Round) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.mismatched:
            return super().discriminator_step(model, table)
        assert table.y is not None
        other, blur = another(table.y, model.classes), self.regularise.blur(table.progress)
        with model.remembering():  # the real images with their own labels, if there is no noise
            loss, metrics = super().discriminator_step(model, table)
            real, wrong = model.discriminate(blur(table.x), y=table.y), model.discriminate(blur(table.x), y=other)
        loss = (loss + self.discriminator_loss(real, wrong)) / 2
        seen = self._seen(real.detach(), wrong.detach())["d_fake"]
        return loss, {**metrics, "d_loss": loss.detach(), "d_mismatched": seen}

    def generator_step(
        self, model: Stage, table: Round, optimizer: Optimizer | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().generator_step(model, table, optimizer)
        assert table.y is not None
        kl = model.divergence(table.y).mean()
        loss = loss + self.kl * kl
        return loss, {**metrics, "g_loss": loss.detach(), "kl": kl.detach()}


def another(y: Tensor, classes: int) -> Tensor:
    """For each label (B,) one of the others, drawn evenly."""
    step = 1 + (noise.uniform(len(y), device=y.device) * (classes - 1)).long().clamp_max(classes - 2)
    return (y + step) % classes


class TwoStages(Stages):
    """Stage I plays its game, and then Stage II, on what Stage I has become, which stays so (Zhang et al. 2017).

    Args:
        first: Stage I's share of the training. game: of both stages, each with whatever it keeps. kl, mismatched: as of
            `Matching`.
    """

    needs = StackGAN

    def __init__(
        self,
        first: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.5,
        game: Game | None = None,
        kl: NonNegativeFloat = 0.02,
        mismatched: bool = True,
    ):
        shares = {"stage1": first, "stage2": 1 - first}
        super().__init__(
            {
                step: {"share": share, "objective": OfStep(step, Matching(copy.deepcopy(game), kl, mismatched))}
                for step, share in shares.items()
            }
        )
