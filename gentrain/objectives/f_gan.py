"""Games for f-divergences."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn.functional import relu, softplus

from gentrain.objectives.adversarial import Game
from gentrain.objectives.regularisers import Regularisers
from gentrain.types import PositiveInt


class FGAN(Game):
    """The game of an f-divergence D_f(p_data ‖ p_G) = Σ p_G f(p_data/p_G) (Nowozin et al. 2016, arXiv:1606.00709).

    With f's convex conjugate f* and T(x) = g_f(v(x)), v being the critic's output and g_f a rising map onto f*'s
    domain, D_f >= E T(x) - E f*(T(G(z))), with equality at T = f'(p_data/p_G): D maximises that (eq. 4 and 6).
    G minimises the same, -E f*(T(G(z))), or, as the paper does, -E T(G(z)), whose gradient doesn't vanish where the
    critic is sure (section 3.2).

                        f(u)                                 f*(t)             g_f(v)
        kl              u log u                              exp(t - 1)        1 + log s(v)
        reverse_kl      -log u                               -1 - log(-t)      -s(-v)
        pearson         (u - 1)²                             t²/4 + t          v
        jensen_shannon  u log u - (u + 1) log((1 + u)/2)     -log(2 - exp t)   log 2 - log(1 + exp(-v))

    s(v) is exp v up to 0 and 1 + v from there. The paper leaves g_f free; its own for the two KL have exp v, or v - 1
    inside, throughout, with losses that grow exponentially and overflow at outputs beyond 88: here they grow linearly,
    and g_f(0) = f'(1), the threshold between real and generated, for all four. Pearson's f* falls below t = -2, so
    with `non_saturating` false G runs from critics that sure. The last divergence is twice Jensen and Shannon's, and
    its game that of Goodfellow et al., v being the log-odds.

    -`d_loss`, less what `regularise` adds, estimates D_f from below.

    Args:
        divergence: f.
        non_saturating: whether G maximises E T(G(z)); else it minimises the bound itself.
        discriminator_steps, regularise: as of `Game`.
    """

    def __init__(
        self,
        divergence: Literal["kl", "reverse_kl", "pearson", "jensen_shannon"] = "kl",
        non_saturating: bool = True,
        discriminator_steps: PositiveInt = 1,
        regularise: Regularisers | None = None,
    ):
        super().__init__(discriminator_steps, regularise)
        self.divergence, self.non_saturating = divergence, non_saturating
        self.probability = divergence == "jensen_shannon"

    def variational(self, v: Tensor) -> Tensor:
        """T = g_f(v)."""
        if self.divergence == "kl":
            return 1 + _log_s(v)
        if self.divergence == "reverse_kl":
            return -_s(-v)
        return v if self.divergence == "pearson" else math.log(2) - softplus(-v)

    def conjugate(self, v: Tensor) -> Tensor:
        """f*(g_f(v)), composed by hand: no exponential that could overflow is left."""
        if self.divergence == "kl":
            return _s(v)
        if self.divergence == "reverse_kl":
            return -1 - _log_s(-v)
        return v.square() / 4 + v if self.divergence == "pearson" else softplus(v) - math.log(2)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.conjugate(fake).mean() - self.variational(real).mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return -(self.variational(fake) if self.non_saturating else self.conjugate(fake)).mean()


def _s(v: Tensor) -> Tensor:
    return (v - relu(v)).exp() + relu(v)


def _log_s(v: Tensor) -> Tensor:
    return v - relu(v) + relu(v).log1p()
