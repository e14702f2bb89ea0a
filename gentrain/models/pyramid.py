"""A pair of convolutional networks, one the other's mirror: an image to numbers and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from gentrain.errors import UsageError
from gentrain.models.layers import LARGEST, SMALLEST, double, halve, halvings, mlp


def pyramid(
    shape: tuple[int, ...],
    hidden: Sequence[int],
    encoded: int,
    latent: int,
    width: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    outputs: int = 1,
    further: int = 0,
    norm: bool = False,
    bias: bool = False,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Networks (B, *shape) -> (B, encoded) and (B, latent) -> (B, *shape).

    Stride-2 convolutions halve the sides down to 4 to 7 pixels, then come layers of `hidden` units; and back.

    Args:
        width: feature maps of the first convolution, doubled at each halving.
        outputs: numbers that the second gives for each element. further: inputs of both besides, maps of the first.
        norm: batch normalisation of every layer but the last. bias: of the second's last layer.

    Raises:
        UsageError: one example is no image with sides of 8 to 64.
    """
    of_units, of_maps = (nn.BatchNorm1d, nn.BatchNorm2d) if norm else (None, None)
    down, sides = descent(shape, width, activation, further, of_maps)
    maps = [shape[0], *(width << i for i in range(len(sides) - 1))]
    base = (maps[-1], *sides[-1])
    inner = mlp([math.prod(base), *hidden, encoded], activation, norm=of_units)
    encoder = nn.Sequential(*down, nn.Flatten(), *inner)
    up: list[nn.Module] = [*mlp([latent + further, *reversed(hidden), math.prod(base)], activation, norm=of_units)]
    up.append(nn.Unflatten(1, base))
    for i in reversed(range(1, len(sides) - 1)):
        up += [*([of_maps(maps[i + 1])] if of_maps else []), activation(), double(maps[i + 1], maps[i], sides[i])]
    up += [*([of_maps(maps[1])] if of_maps else []), activation()]
    up.append(double(maps[1], outputs * maps[0], sides[0], bias=bias))
    return encoder, nn.Sequential(*up)


def descent(
    shape: tuple[int, ...],
    width: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    further: int = 0,
    norm: Callable[[int], nn.Module] | None = None,
) -> tuple[list[nn.Module], list[tuple[int, int]]]:
    """The way down, each convolution with what follows it, and the sides on it: the last are its end's.

    Args:
        norm: of so many maps, after each convolution, if any. Others, and Raises: as of `pyramid`.
    """
    if len(shape) != 3:
        raise UsageError(f"model.network=conv takes images, and one example here has shape {shape}; use mlp")
    if not all(SMALLEST <= side <= LARGEST for side in shape[1:]):
        raise UsageError(
            f"model.network=conv takes sides of {SMALLEST} to {LARGEST} pixels, not {shape[1]}x{shape[2]}; "
            "resize the images or use model.network=mlp"
        )
    depth = min(len(halvings(side)) for side in shape[1:])
    sides = [(shape[1] >> i, shape[2] >> i) for i in range(depth)]
    maps = [shape[0] + further, *(width << i for i in range(depth - 1))]
    down: list[nn.Module] = []
    for d_in, d_out in pairwise(maps):
        down += [halve(d_in, d_out), *([norm(d_out)] if norm else []), activation()]
    return down, sides
