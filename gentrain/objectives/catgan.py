"""The game of categories."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from gentrain.batch import Batch
from gentrain.models.catgan import CatGAN, entropy
from gentrain.objectives.adversarial import Game, Round, Terms
from gentrain.objectives.around import Around
from gentrain.objectives.classify import labels_of, own_class_scores
from gentrain.objectives.regularisers import Regularisers
from gentrain.types import NonNegativeFloat, PositiveInt
from gentrain.update import Score


class Certainty(Game):
    """D maximises E D(x) - E D(G(z)) and G E D(G(z)), of a critic whose outputs are -H[p(c|x)]: at most 0."""

    boundary = None
    probability = False
    aim = None  # of the generator: to be sure of each, but of others in turn

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class Categorical(Around):
    """The critic is to be sure of real examples, unsure of generated ones and to use all categories; the generator is
    to make examples of all categories that it is sure of (Springenberg 2016, arXiv:1511.06390, eqs. 6, 7 and 9).

        D maximises  H[E_x p(c|x)] - E_x H[p(c|x)] + E_z H[p(c|G(z))] - λ E log 1/p(y|x)
        G minimises  E_z H[p(c|G(z))] - H[E_z p(c|G(z))]

    The mean over examples is that of the batch, which has to be many times as large as there are categories; of several
    processes each takes its own. The last term of D is for models with `labels`.

    Metrics: those of the game, with D(x) = -H[p(c|x)]; `marginal_entropy` over real and `generated_marginal_entropy`
    over generated examples, log K at most, and `class_cross_entropy`, in nats.

    Args:
        marginal: weight of H[E p(c|x)] for both players, 1 in the paper. weight: λ.
        discriminator_steps, regularise: as of `Game`.
    """

    needs = CatGAN

    def __init__(
        self,
        marginal: NonNegativeFloat = 1.0,
        weight: NonNegativeFloat = 1.0,
        discriminator_steps: PositiveInt = 1,
        regularise: Regularisers | None = None,
    ):
        weights = {
            "marginal_entropy": -marginal,
            "generated_marginal_entropy": -marginal,
            "class_cross_entropy": weight,
        }
        super().__init__(Certainty(discriminator_steps, regularise), weights)

    def terms(self, model: CatGAN, table: Round, part: str) -> Terms:
        if part == "generator":
            return {"generated_marginal_entropy": marginal_entropy(model.log_category(table.fakes))}
        log_p = model.log_category(table.x)
        found = {"marginal_entropy": marginal_entropy(log_p)}
        if model.labels:
            found["class_cross_entropy"] = nll_loss(log_p, labels_of(Batch(table.x, table.y)))
        return found

    @torch.no_grad()
    def validate(self, model: CatGAN, batch: Batch) -> dict[str, Score]:
        return own_class_scores(model, batch)


def marginal_entropy(log_p: Tensor) -> Tensor:
    """H[E p(c|x)] in nats, of log p(c|x), (B, K).

    >>> marginal_entropy(torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log())
    tensor(0.6931)
    """
    return entropy(torch.logsumexp(log_p, 0) - math.log(len(log_p)))
