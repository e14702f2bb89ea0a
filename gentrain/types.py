"""Annotations for constructor arguments: what a value may be, readable without importing torch.

A constructor says `latent_dim: PositiveInt`, and `gentrain.config` checks the YAML value against that annotation
before the class is even imported. Names defined here (and `Literal`, builtins, `X | None`, `list[X]`, `tuple[X, ...]`,
`dict[str, X]`) are understood, and what a module calls such a type itself; any other annotation is left to the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

__all__ = [
    "Change",
    "DenseNormKind",
    "Fraction",
    "NonNegativeFloat",
    "NonNegativeInt",
    "NormKind",
    "OpenFraction",
    "Pairs",
    "PositiveFloat",
    "PositiveInt",
    "Range",
    "Shape",
    "Support",
]


@dataclass(frozen=True)
class Range:
    """An interval of numbers; `low` / `high` belong to it unless `open_low` / `open_high`."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        if value != value or value in (float("inf"), float("-inf")):  # what arithmetic can't use lies in no interval
            return False
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return above and below

    def __str__(self) -> str:
        low = "" if self.low is None else f"{'above' if self.open_low else 'at least'} {self.low:g}"
        high = "" if self.high is None else f"{'below' if self.open_high else 'at most'} {self.high:g}"
        return " and ".join(part for part in (low, high) if part)


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, open_low=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
OpenFraction = Annotated[float, Range(0, 1, open_high=True)]
"""A number in [0, 1)."""
Shape = tuple[PositiveInt, ...]
"""The shape of one example: (channels, height, width), (dimensions,) or (length,)."""
Change = Literal["inpaint", "super_resolve", "colourise", "denoise", "edges", "sketch", "invert", "rotate"]
"""What `gentrain.data.pairs.Degradation` does to an image."""
Pairs = Literal["paired", "unpaired"]
"""Whether each example has its own partner, or examples of two domains come side by side as chance will have it."""
Support = Literal["binary", "unit", "signed", "levels", "real", "tokens"]
"""The space x lives in: {0,1}, [0,1], [-1,1], integers 0…K-1, the reals, or integers that index a vocabulary."""
NormKind = Literal["batch", "none", "layer", "instance", "virtual", "reference"]
"""How hidden layers are normalised: see `gentrain.models.normalisation.Norm`."""
DenseNormKind = Literal["batch", "none", "layer", "virtual", "reference"]
"""Of layers without a map, of which an instance's channel would be one number."""
