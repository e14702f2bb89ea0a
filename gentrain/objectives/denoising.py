"""Giving back what was there before noise was put on it."""

from __future__ import annotations

from torch import Tensor

from gentrain.models.autoencoder import Autoencoding
from gentrain.models.corruption import Corruption, Kind
from gentrain.objectives.reconstruction import Loss, Reconstruction
from gentrain.types import NonNegativeFloat


class Denoising(Reconstruction):
    """The error of g(f(x̃)) against x, where x̃ is x with noise drawn anew at each step (Vincent et al. 2008, 2010).

    A code that may copy x can't copy x̃. Held-out numbers are of corrupted examples too, of the kind `denoising`.

    Args:
        corruption: `mask` (to 0), `salt_and_pepper` (to 0 or 1) or `gaussian`.
        level: the probability that an element is corrupted; of `gaussian` the noise's standard deviation.
        loss: as in `Reconstruction`.
    """

    kind = "denoising"

    def __init__(
        self,
        corruption: Kind = "mask",
        level: NonNegativeFloat = 0.25,
        loss: Loss = "auto",
    ):
        super().__init__(loss)
        self.corruption = Corruption(corruption, level)

    def require(self, model: Autoencoding) -> None:
        super().require(model)
        self.corruption.require(model)

    def seen(self, x: Tensor) -> Tensor:
        return self.corruption(x)
