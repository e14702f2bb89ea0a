"""Games in which the generator's codes are to be recognised."""

from __future__ import annotations

from gentrain.models.infogan import InfoGAN
from gentrain.objectives.adversarial import Game, Round, Terms
from gentrain.objectives.around import Around
from gentrain.types import NonNegativeFloat


class Information(Around):
    """A game in which both players maximise a lower bound of I(c; G(z)), c the codes in z (arXiv:1606.03657, eq. 6).

        L_I = H(c) + E_z log Q(c | G(z)) <= I(c; G(z)) <= H(c)  (for categories),   min_{G,Q} max_D  V(D, G) - λ L_I

    Q shares the critic's features, which learn for it too, as in the authors' code. The bound is of generated examples
    alone; categories and numbers, being independent, have a bound each. That of numbers is a difference of
    differential entropies: negative where Q's σ is given and large, and without a ceiling where σ is learned.

    Metrics: those of the game; `mi_categorical` and `mi_continuous`, the bounds in nats. The first of K even categories
    comes to log K where every example shows its own.

    Args:
        game: V. categorical, continuous: λ of either bound.
    """

    needs = InfoGAN

    def __init__(
        self, game: Game | None = None, categorical: NonNegativeFloat = 1.0, continuous: NonNegativeFloat = 0.1
    ):
        super().__init__(game, {"mi_categorical": -categorical, "mi_continuous": -continuous})

    def terms(self, model: InfoGAN, table: Round, part: str) -> Terms:
        found = {}
        for name, entropy, log_q in zip(
            self.weights, model.code_entropies, model.log_codes(table.fakes, table.z), strict=True
        ):
            if entropy:  # there are such codes
                found[name] = entropy + log_q.mean()
        return found
