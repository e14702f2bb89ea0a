"""Distributions that are known exactly: points in the plane and bars-and-stripes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from gentrain.batch import Modes
from gentrain.data.source import Source, Split, make_source
from gentrain.errors import UsageError
from gentrain.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = ["bars", "bars_distribution", "grid", "grid_centres", "moons", "ring", "ring_centres"]

VALIDATION, TEST = 2_000, 10_000
"""Held-out examples drawn besides the training ones (`data.validation` changes the former)."""


def _splits(n: int, validation: int | None) -> dict[str, int]:
    return {"train": n, "validation": VALIDATION if validation is None else validation, "test": TEST}


def _generators(seed: int) -> dict[str, torch.Generator]:
    """One for each split: the size of one split doesn't change another."""
    return {key: torch.Generator().manual_seed(3 * seed + i) for i, key in enumerate(("train", "validation", "test"))}


def _mixture(name: str, centres: Tensor, std: float, n: int, seed: int, validation: int | None) -> Source:
    """An equal mixture of round Gaussians; the label is the component."""
    generators, splits = _generators(seed), {}
    for key, size in _splits(n, validation).items():
        y = torch.randint(len(centres), (size,), generator=generators[key])
        noise = torch.randn(size, 2, generator=generators[key])
        splits[key] = Split(centres[y] + std * noise, y)
    source = make_source(name, "real", splits, classes=len(centres))
    modes = Modes(tuple((x, y) for x, y in centres.tolist()), std)
    return replace(source, spec=replace(source.spec, modes=modes))


def ring_centres(modes: int, radius: float) -> Tensor:
    """`modes` points evenly around a circle, (modes, 2): all distinct, the last is not the first again."""
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    return (radius * torch.stack([angle.cos(), angle.sin()], dim=1)).float()


def grid_centres(side: int, spacing: float) -> Tensor:
    """side x side points around the origin, (side^2, 2)."""
    line = spacing * (torch.arange(side) - (side - 1) / 2)
    return torch.cartesian_prod(line, line)


def ring(
    modes: PositiveInt = 8,
    radius: PositiveFloat = 2.0,
    std: NonNegativeFloat = 0.02,
    n: PositiveInt = 50_000,
    seed: NonNegativeInt = 0,
    validation: NonNegativeInt | None = None,
) -> Source:
    """An equal mixture of round Gaussians around a circle (Metz et al. 2017). Labels are the modes.

    Args:
        modes: number of Gaussians.
        radius: of the circle.
        std: of each Gaussian in each direction.
        n: training examples.
        seed: which draw of the data; the run's own seed doesn't change them.
        validation: validation examples drawn besides; 2,000 if None.
    """
    return _mixture("ring", ring_centres(modes, radius), std, n, seed, validation)


def grid(
    side: PositiveInt = 5,
    spacing: PositiveFloat = 2.0,
    std: NonNegativeFloat = 0.05,
    n: PositiveInt = 50_000,
    seed: NonNegativeInt = 0,
    validation: NonNegativeInt | None = None,
) -> Source:
    """An equal mixture of side x side round Gaussians on a square grid (25 modes: Srivastava et al. 2017).

    Args:
        side: Gaussians in a row.
        spacing: between neighbours.
        std: of each Gaussian in each direction.
        n: training examples.
        seed: which draw of the data; the run's own seed doesn't change them.
        validation: validation examples drawn besides; 2,000 if None.
    """
    return _mixture("grid", grid_centres(side, spacing), std, n, seed, validation)


def moons(
    noise: NonNegativeFloat = 0.1,
    n: PositiveInt = 50_000,
    seed: NonNegativeInt = 0,
    validation: NonNegativeInt | None = None,
) -> Source:
    """Two interleaved half circles of radius 1, as in scikit-learn's `make_moons`. Labels are the halves.

    Args:
        noise: standard deviation of the Gaussian noise in each direction.
        n: training examples.
        seed: which draw of the data; the run's own seed doesn't change them.
        validation: validation examples drawn besides; 2,000 if None.
    """
    generators, splits = _generators(seed), {}
    for key, size in _splits(n, validation).items():
        y = torch.randint(2, (size,), generator=generators[key])
        angle = math.pi * torch.rand(size, generator=generators[key])
        upper = torch.stack([angle.cos(), angle.sin()], dim=1)
        lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
        x = torch.where(y.bool().unsqueeze(1), lower, upper)
        splits[key] = Split(x + noise * torch.randn(size, 2, generator=generators[key]), y)
    return make_source("moons", "real", splits, classes=2)


def bars(
    size: PositiveInt = 3,
    n: PositiveInt = 10_000,
    seed: NonNegativeInt = 0,
    validation: NonNegativeInt | None = None,
    labels: bool = False,
) -> Source:
    """Bars and stripes (MacKay 2003): rows or columns with probability 1/2, then each line is on with probability 1/2.

    Bits, (1, size, size); `bars_distribution` knows the probability of each pattern.

    Args:
        size: pixels in a line, lines in a picture.
        n: training examples.
        seed: which draw of the data; the run's own seed doesn't change them.
        validation: validation examples drawn besides; 2,000 if None.
        labels: label each picture with how its lines run: 0 across, 1 up and down. Blank and full ones have either.
    """
    generators, splits = _generators(seed), {}
    for key, count in _splits(n, validation).items():
        columns = torch.randint(2, (count, 1, 1, 1), generator=generators[key]).bool()
        lines = torch.randint(2, (count, 1, 1, size), generator=generators[key], dtype=torch.uint8)
        picture = lines.expand(-1, -1, size, -1)
        x = torch.where(columns, picture, picture.mT).contiguous()
        splits[key] = Split(x, columns.flatten().long() if labels else None)
    return make_source("bars", "binary", splits, levels=2, classes=2 if labels else None)


def bars_distribution(size: int) -> tuple[Tensor, Tensor]:
    """The exact distribution of `bars`: patterns (M, 1, size, size) as uint8 and their probabilities (M,), float64.

    M = 2^(size+1) - 2: all off and all on have probability 2^-size, every other pattern half of that.

    >>> patterns, probabilities = bars_distribution(3)
    >>> len(patterns), float(probabilities.sum()), float(probabilities[0])
    (14, 1.0, 0.125)
    """
    if size > 16:
        raise UsageError(f"bars_distribution lists 2^(size+1) patterns: size={size} is above 16")
    lines = (torch.arange(2**size).unsqueeze(1) >> torch.arange(size)) & 1
    pictures = lines.to(torch.uint8).view(-1, 1, 1, size).expand(-1, -1, size, -1)
    # Blank and full pictures are the same either way round, so they count once with twice the probability.
    patterns = torch.cat([pictures, pictures[1:-1].mT]) if size > 1 else pictures
    probabilities = torch.full((len(patterns),), 2.0 ** -(size + 1), dtype=torch.float64)
    probabilities[[0, 2**size - 1]] = 2.0**-size
    return patterns.contiguous(), probabilities
