"""Given x, find z."""

from __future__ import annotations

import torch

from gentrain.evaluation.inversion import invert, unsuited
from gentrain.models.base import Decoder, Generative, LatentVariable
from gentrain.types import NonNegativeFloat, PositiveFloat, PositiveInt
from gentrain.uses.base import Data, Drawn, Use, examples

COLUMNS = 8


class Invert(Use):
    """Test examples, each followed by G(z) for the code z that comes nearest to it, found by gradient descent.

    What a model can't make shows: its picture is another one. An NPZ file has the codes `z` and `loss`, the squared
    distances that are left (with `prior` above 0, less so much of log p(z)).

    Args:
        steps, lr, restarts, prior: of the search, as of `invert`.
    """

    needs = (LatentVariable, Decoder)

    def __init__(
        self,
        steps: PositiveInt = 200,
        lr: PositiveFloat = 0.05,
        restarts: PositiveInt = 4,
        prior: NonNegativeFloat = 0.0,
    ):
        self.steps, self.lr, self.restarts, self.prior = steps, lr, restarts, prior

    def unfit(self, model: Generative) -> str | None:
        return unsuited(model)

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        assert isinstance(model, LatentVariable | Decoder)
        x = examples(data, max(COLUMNS // 2, n // COLUMNS * COLUMNS // 2)).float()
        found = invert(model, x, self.steps, self.lr, self.restarts, self.prior)
        pairs = torch.stack([x, found.x.to(x)], 1).flatten(0, 1)
        return Drawn(pairs, columns=COLUMNS, arrays={"z": found.z, "loss": found.loss})
