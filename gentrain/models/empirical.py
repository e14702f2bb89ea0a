"""The training examples themselves, as a distribution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gentrain.data.conversion import unit_scale
from gentrain.errors import UsageError
from gentrain.models.base import Accumulates
from gentrain.types import PositiveInt, Shape


class Empirical(Accumulates):
    """p(x) = 1/N Σ_i [x = x_i] over N stored training examples: a sample is one of them, drawn with replacement.

    The calibration of whatever judges samples. A Parzen window of it is what real data score, a distance between
    distributions should be near its floor, and a measure of memorisation must shout.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals. Levels up to 256 are kept as bytes.
        support: where samples live; `auto` is `real` for reals, else `unit`.
        capacity: examples kept, the first that come. A training split with fewer comes again in further epochs.

    Raises:
        UsageError: a support that the data can't have.

    >>> model = Empirical((2,), levels=4, capacity=3)
    >>> model.accumulate(torch.tensor([[0.0, 1 / 3], [0.0, 1 / 3]]))
    >>> model.sample(1)
    tensor([[0.0000, 0.3333]])
    """

    stored: Tensor
    filled: Tensor

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        support: Literal["auto", "binary", "unit", "signed", "levels", "real"] = "auto",
        capacity: PositiveInt = 10_000,
    ):
        super().__init__()
        if support == "auto":
            support = "real" if levels is None else "unit"
        if levels is None and support != "real":
            raise UsageError(f"model.support={support}: these data are real numbers without levels; use real or auto")
        self.shape, self.levels, self.support, self.capacity = tuple(shape), levels, support, capacity
        whole = torch.uint8 if (levels or 0) <= 256 else torch.int32
        dtype = torch.float32 if support == "real" else whole
        self.register_buffer("stored", torch.zeros(capacity, *shape, dtype=dtype))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @property
    def _scale(self) -> float:
        """The distance between two levels, exactly as the pipeline has it: what comes out is what went in."""
        return unit_scale((self.levels or 2) - 1) if self.support in ("unit", "signed") else 1.0

    def accumulate(self, x: Tensor) -> None:
        start = int(self.filled)
        x = x[: self.capacity - start]
        if self.support != "real":
            value = (x + 1) / (2 * self._scale) if self.support == "signed" else x / self._scale
            if bool(((value - value.round()).abs() > 1e-2).any()):
                raise UsageError("model=empirical keeps whole levels: set data.dequantize=false")
            x = value.round()
        self.stored[start : start + len(x)] = x.to(self.stored.dtype)
        self.filled += len(x)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n stored examples, (n, *shape).

        Raises:
            UsageError: none is stored yet.
        """
        if not self.filled:
            raise UsageError("model=empirical has no examples yet: train it for a step at least")
        x = self.stored[torch.randint(int(self.filled), (n,), device=self.device)]
        if self.support == "levels":
            return x.long()
        x = x.float()
        return x * (2 * self._scale) - 1 if self.support == "signed" else x * self._scale
