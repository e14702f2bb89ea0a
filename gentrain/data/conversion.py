"""From what a data set stores to the support a model lives in, a whole batch at a time."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gentrain.batch import DataSpec
from gentrain.data.randomness import uniform
from gentrain.errors import UsageError
from gentrain.types import Support

if TYPE_CHECKING:
    from gentrain.data.stacked import Stack

__all__ = ["Conversion", "largest_below_one", "unit_scale"]

_HOLDS = {"binary": "bits", "levels": "grey levels", "real": "real numbers", "tokens": "tokens"}
_FITTING = {
    "tokens": "tokens fit data=pydoc or text",
    "real": "real models fit any data but text, e.g. data=digits or ring",
    "binary": "binary models fit data=digits, mnist, bars and other images",
    "unit": "unit models fit data=digits, mnist, cifar10 and other images",
    "signed": "signed models fit data=digits, mnist, cifar10 and other images",
    "levels": "models of levels fit data=digits, mnist, cifar10 and other images",
}
_CHUNK = 4096

largest_below_one = 1.0 - 2.0**-24
"""The largest float32 below 1: (level + u) / K may round up to 1, which is no bin of a dequantized density."""


@functools.cache
def unit_scale(top: int) -> float:
    """1 / top as the float32 that takes `top` nearest to 1 and never above.

    Multiplying by it gives the same bits on every device, while a division by a constant may be carried out as a
    multiplication by the rounded reciprocal.
    """
    down = torch.tensor(1.0) / top
    up = torch.nextafter(down, torch.tensor(1.0))
    return float(up if up * top == 1 else down)


@dataclass(frozen=True)
class Conversion:
    """Stored values -> support, with the probability of a draw where one is made.

    With levels l = 0…K-1 and u ~ U[0, 1):

        binary   dynamic and static: [u < l/(K-1)], drawn anew each time or once for ever; threshold: [l/(K-1) >= 0.5]
        unit     l/(K-1), dequantized (l + u)/K
        signed   2 unit - 1
        levels   l, int64
        real     as unit; real numbers stay as they are

    Args:
        spec: what is stored.
        support: where the model lives.
        binarization: "dynamic", "static" or "threshold".
        dequantize: add u to the levels of unit, signed and real models.

    Raises:
        UsageError: if the data can't be brought into that support, or an option has no effect there.
    """

    spec: DataSpec
    support: Support
    binarization: str = "dynamic"
    dequantize: bool = False

    def __post_init__(self) -> None:
        stored, wanted = self.spec.support, self.support
        if self.binarization not in ("dynamic", "static", "threshold"):
            raise UsageError(f"data.binarization={self.binarization} must be dynamic, static or threshold")
        if (stored in ("real", "tokens") and wanted != stored) or (wanted == "tokens" != stored):
            holds = _HOLDS[stored]
            raise UsageError(f"the model models {wanted} data, data={self.spec.name} holds {holds}; {_FITTING[wanted]}")
        if self.dequantize and not (wanted in ("unit", "signed", "real") and stored in ("binary", "levels")):
            raise UsageError(
                f"data.dequantize=true spreads levels for unit, signed and real models; here {_HOLDS[stored]} "
                f"(data={self.spec.name}) become {wanted} data: set data.dequantize=false"
            )

    @property
    def levels(self) -> int:
        """K, the number of values a stored element can take."""
        return self.spec.levels or 2

    @property
    def protocol(self) -> str:
        """The one wording of how stored values became the model's data. It travels with every number."""
        words: list[str] = [self.support]
        if self._binarizes:
            words.append("threshold 0.5" if self.binarization == "threshold" else f"{self.binarization} binarization")
        if self.support == "real" and self.spec.support != "real":
            words.append("scaled to [0,1]")
        if self.dequantize:
            words.append("uniform dequantization")
        return ", ".join(words)

    @property
    def _binarizes(self) -> bool:
        return self.support == "binary" and self.levels > 2

    @property
    def static(self) -> bool:
        """Whether examples are drawn once for ever, by `draw_once`."""
        return self._binarizes and self.binarization == "static"

    def draw_once(self, x: Tensor | Stack, keys: Tensor) -> Tensor:
        """The bits of a static binarization, uint8, in the shape of x."""
        pieces = zip(x.split(_CHUNK), keys.split(_CHUNK), strict=True)
        return torch.cat([self._draw_bits(piece, key).to(torch.uint8) for piece, key in pieces])

    def _draw_bits(self, x: Tensor, keys: Tensor) -> Tensor:
        # [u (K-1) < l] rather than [u < l/(K-1)]: (K-1)(1 - 2^-24) rounds below K-1, so the top level is always on.
        u = uniform(keys, tuple(x.shape[1:])).mul_(self.levels - 1)
        return torch.lt(u, x.to(torch.float32), out=u)

    def __call__(self, x: Tensor, keys: Tensor) -> Tensor:
        """Stored values (B, *shape), or the bits of `draw_once`, to the support: int64 for levels and tokens, else
        float32. `keys` (B,) are the examples' keys for random draws. What already is in the support comes back as is.
        """
        if self.support in ("levels", "tokens"):
            return x.to(torch.int64)
        if self.spec.support == "real":
            return x
        if self._binarizes and self.binarization == "dynamic":
            return self._draw_bits(x, keys)
        if self._binarizes and self.binarization == "threshold":
            value = x.to(torch.float32)
            return torch.ge(value, self.levels // 2, out=value)  # l >= (K-1)/2 for integer l
        value = x.to(torch.float32)
        if self.support == "binary":
            return value
        if self.dequantize:
            value.add_(uniform(keys, tuple(x.shape[1:]))).mul_(1 / self.levels).clamp_(max=largest_below_one)
            return value.mul_(2).sub_(1) if self.support == "signed" else value
        scale = unit_scale(self.levels - 1)
        return value.mul_(2 * scale).sub_(1) if self.support == "signed" else value.mul_(scale)

    def mean(self, x: Tensor | Stack) -> Tensor:
        """The expected example over x (N, *shape), stored values or the bits of `draw_once`: float32, (*shape).

        Raises:
            UsageError: for tokens, which are names and have no mean.
        """
        if self.support == "tokens":
            raise UsageError(f"data={self.spec.name} holds tokens, which have no mean")
        if x.device.type == "mps":  # which has no float64
            x = x.cpu()
        total = torch.zeros(x.shape[1:], dtype=torch.float64, device=x.device)
        threshold = self._binarizes and self.binarization == "threshold"
        for piece in x.split(_CHUNK):
            total += (piece.ge(self.levels // 2) if threshold else piece).sum(0, dtype=torch.float64)
        mean = total / len(x)
        if not (threshold or self.static or self.support == "levels" or self.spec.support == "real"):
            mean = (mean + 0.5) / self.levels if self.dequantize else mean / (self.levels - 1)
        return (2 * mean - 1 if self.support == "signed" else mean).to(torch.float32)

    def deviation(self, x: Tensor | Stack) -> Tensor:
        """The standard deviation of each element over x (N, *shape) and over the draws: float32, (*shape).

        Raises:
            UsageError: for tokens, which are names and have none.
        """
        mean = self.mean(x).double()
        if self.support == "binary":
            return (mean * (1 - mean)).sqrt().float()
        scale = 1.0
        if not (self.support == "levels" or self.spec.support == "real"):
            scale = (2 if self.support == "signed" else 1) / (self.levels if self.dequantize else self.levels - 1)
        x = x.cpu() if x.device.type == "mps" else x  # as in `mean`
        centre = sum((piece.sum(0, dtype=torch.float64) for piece in x.split(_CHUNK)), mean.new_zeros(())) / len(x)
        square = sum(((piece.double() - centre).square().sum(0) for piece in x.split(_CHUNK)), mean.new_zeros(()))
        within = 1 / 12 if self.dequantize else 0.0  # the variance of u
        return (scale * (square / len(x) + within).sqrt()).float()
