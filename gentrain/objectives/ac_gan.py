"""Games with an auxiliary classifier."""

from __future__ import annotations

import torch
from torch.nn.functional import nll_loss

from gentrain.batch import Batch
from gentrain.models.conditional_gan import ACGAN
from gentrain.objectives.adversarial import Game, Round, Terms
from gentrain.objectives.around import Around
from gentrain.objectives.classify import labels_of, own_class_scores
from gentrain.types import NonNegativeFloat
from gentrain.update import Score


class AuxiliaryClassifier(Around):
    """A game in which both players also want the critic's classifier to be right (Odena et al. 2017, arXiv:1610.09585).

        L_C = E log p(Y = y | x) over real examples + E log p(Y = y | G(z, y))     (there, eq. 3)

    The critic maximises L_S + L_C, with L_S the game's, and the generator L_C - L_S. Generated examples have the labels
    of the batch.

    Metrics: those of the game; `class_real` and `class_fake`, the terms of -L_C in nats, unweighted.

    Args:
        game: L_S. weight: of L_C in both players' losses; 1 in the paper.
    """

    needs = ACGAN

    def __init__(self, game: Game | None = None, weight: NonNegativeFloat = 1.0):
        super().__init__(game, {"class_real": weight, "class_fake": weight})

    def terms(self, model: ACGAN, table: Round, part: str) -> Terms:
        y = labels_of(Batch(table.x, table.y))
        found = {"class_fake": nll_loss(model.log_class(table.fakes), y)}
        if part == "discriminator":  # the generator has no say in what the critic makes of data
            found["class_real"] = nll_loss(model.log_class(table.x), y)
        return found

    @torch.no_grad()
    def validate(self, model: ACGAN, batch: Batch) -> dict[str, Score]:
        return own_class_scores(model, batch)
