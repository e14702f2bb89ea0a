"""The least-squares game."""

from __future__ import annotations

from torch import Tensor

from gentrain.errors import UsageError
from gentrain.objectives.adversarial import Game
from gentrain.objectives.regularisers import Regularisers
from gentrain.types import PositiveInt


class LeastSquares(Game):
    """The critic regresses on targets, b for real and a for generated examples, and G wants c (Mao et al. 2017).

    D: E(D(x) - b)²/2 + E(D(G(z)) - a)²/2;  G: E(D(G(z)) - c)²/2 (arXiv:1611.04076, eq. 2). The optimal critic is
    (b p_data + a p_G)/(p_data + p_G). With b - c = 1 and b - a = 2, as a = -1, b = 1, c = 0, the generator's part is
    Pearson's χ² between p_data + p_G and 2 p_G (theorem 1); the default, c = b, is the paper's eq. 9.

    Args:
        a, b, c: the targets.
        discriminator_steps, regularise: as of `Game`.

    Raises:
        UsageError: a is not below b and c.
    """

    probability = False

    def __init__(
        self,
        a: float = 0.0,
        b: float = 1.0,
        c: float = 1.0,
        discriminator_steps: PositiveInt = 1,
        regularise: Regularisers | None = None,
    ):
        super().__init__(discriminator_steps, regularise)
        if not a < min(b, c):
            raise UsageError(
                f"objective.a={a:g}: the critic's target for generated examples must lie below those for real ones,"
                f" objective.b={b:g}, and of the generator, objective.c={c:g}"
            )
        self.a, self.b, self.c = a, b, c
        self.boundary, self.aim = (a + b) / 2, c

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return ((real - self.b).square().mean() + (fake - self.a).square().mean()) / 2

    def generator_loss(self, fake: Tensor) -> Tensor:
        return (fake - self.c).square().mean() / 2
