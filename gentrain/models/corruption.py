"""Noise that an autoencoder learns to undo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.base import Generative

Kind = Literal["mask", "salt_and_pepper", "gaussian"]


@dataclass(frozen=True)
class Corruption:
    """x -> x̃ (Vincent et al. 2010, J. Mach. Learn. Res. 11, section 3.3), each element by itself.

        mask             0 with probability `level`
        salt_and_pepper  0 or 1 by a fair coin with probability `level`
        gaussian         x + `level` N(0, 1)

    Draws are those of `gentrain.noise`, so that several processes corrupt as one does.
    """

    kind: Kind
    level: float

    def __post_init__(self) -> None:
        if self.kind != "gaussian" and self.level > 1:
            raise UsageError(f"level={self.level:g} is the probability of {self.kind}: at most 1")

    def require(self, model: Generative) -> None:
        """Refuse elements that have no smallest and largest value between which a coin could choose.

        Raises:
            UsageError: it is salt and pepper for reals.
        """
        if self.kind == "salt_and_pepper" and model.support not in ("binary", "unit"):
            raise UsageError(
                f"corruption=salt_and_pepper sets elements to 0 or 1, and {model.support} x have no such ends;"
                " use gaussian or mask"
            )

    def __call__(self, x: Tensor) -> Tensor:
        if self.kind == "gaussian":
            return x + self.level * noise.normal(*x.shape, device=x.device, dtype=x.dtype)
        u = noise.uniform(*x.shape, device=x.device)
        if self.kind == "mask":
            return x * (u >= self.level)
        # one draw for both: u < level/2 is pepper, level/2 <= u < level salt
        return x.masked_fill(u < self.level, 1).masked_fill(u < self.level / 2, 0)
