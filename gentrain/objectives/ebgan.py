"""Energy-based GAN."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize, relu

from gentrain.models.critics import Adversarial, AutoencodingCritic
from gentrain.objectives.adversarial import Game, Round, Terms
from gentrain.objectives.regularisers import Regularisers
from gentrain.types import NonNegativeFloat, PositiveFloat, PositiveInt


class EBGAN(Game):
    """An autoencoder's error is an energy: low at data, pushed up to a margin at samples (Zhao et al. 2017).

    With the error L (arXiv:1609.03126, eq. 2 and 3) D: E L(x) + E max(0, m - L(G(z)));  G: E L(G(z)). Beyond the margin
    D leaves samples alone. The pulling-away term (eq. 5) keeps the codes S_i of a batch of samples apart:

        PT = 1/(N (N - 1)) Σ_{i≠j} (S_iᵀS_j / ‖S_i‖‖S_j‖)²

    Metrics, beside those of `Game`: `repelling`, the term with its weight. `d_real` and `d_fake` are minus the errors.

    Args:
        margin: m, in units of the error: it must lie above what the autoencoder can reach on data.
        repelling: weight of PT in G's loss; 0 is without.
        discriminator_steps, regularise: as of `Game`.
    """

    needs = AutoencodingCritic
    excludes = ()
    boundary = None
    probability = False

    def __init__(
        self,
        margin: PositiveFloat = 0.2,
        repelling: NonNegativeFloat = 0.1,
        discriminator_steps: PositiveInt = 1,
        regularise: Regularisers | None = None,
    ):
        super().__init__(discriminator_steps, regularise)
        self.margin, self.repelling = margin, repelling

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return relu(self.margin + fake).mean() - real.mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return -fake.mean()

    def generator_terms(self, model: Adversarial, table: Round) -> Terms:
        if not self.repelling:
            return {}
        assert isinstance(model, AutoencodingCritic)
        return {"repelling": self.repelling * pulling_away(model.codes(table.fakes))}


def pulling_away(codes: Tensor) -> Tensor:
    """PT of codes (N, d): the mean squared cosine between two of them, 0 to 1; 0 of a single one.

    >>> import torch
    >>> pulling_away(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
    tensor(0.3333)
    """
    n = len(codes)
    units = normalize(codes, dim=1)
    cosines = (units @ units.T).square()
    return (cosines.sum() - cosines.diagonal().sum()) / max(n * (n - 1), 1)
