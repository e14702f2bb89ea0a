"""Real-valued non-volume preserving flows: affine couplings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import relu

from gentrain.errors import UsageError
from gentrain.models.flows import (
    BatchNormFlow,
    Bijection,
    Chain,
    Coupling,
    FactorOut,
    Flatten,
    Flow,
    Squeeze,
    alternating,
    channel_halves,
    start_as_identity,
)
from gentrain.models.layers import StandardNormal, mlp
from gentrain.types import PositiveFloat, PositiveInt, Shape

SMALLEST = 4
"""Sides that are still halved when `scales` is left to the model."""
MOST = 3
"""Scales when they are left to the model."""


class RealNVP(Flow):
    """A chain of affine couplings z = x exp(s) + t, s and t functions of a half that stays (arXiv:1605.08803).

    mlp: couplings over a vector, keeping its even and its odd elements in turn. conv: at each scale half of the
    couplings by a checkerboard, then 2x2 pixels made 4 channels, the other half by halves of the channels, and half of
    the channels are done; the last scale has checkerboards, one more (Dinh, Sohl-Dickstein & Bengio 2017, section 3.6).
    Batch normalisation comes before each coupling. x and `log_prob` are as in `Flow`; a sample costs as much as a
    density.

    Args:
        shape: of one example, of two elements or more.
        levels: number of values an element can take in the data, None for reals.
        network: of s and t: `mlp`, `conv` for images, `auto` by the shape.
        layers: couplings, for conv at each scale.
        hidden: units of the layers of each mlp.
        channels: feature maps of each conv network; None is 32. Only for `conv`.
        blocks: residual blocks of each conv network.
        scales: of the image, each of half the side of the one before; None is as many as leave sides of at least 2, and
            3 at most.
        batch_norm: whether there is any; None is for levels alone (see `BatchNormFlow`).
        logit: λ of y = logit(λ + (1 - 2λ) x), for levels.

    Raises:
        UsageError: a single element, conv for what is no image, or sides that can't be halved so often.

    >>> flow = RealNVP((1, 8, 8), levels=17, channels=4)
    >>> x = flow.sample(2)
    >>> flow.support, x.shape, flow.codes(x).shape
    ('unit', torch.Size([2, 1, 8, 8]), torch.Size([2, 64]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Literal["auto", "mlp", "conv"] = "auto",
        layers: PositiveInt = 6,
        hidden: Sequence[PositiveInt] = (64, 64),
        channels: PositiveInt | None = None,
        blocks: PositiveInt = 1,
        scales: PositiveInt | None = None,
        batch_norm: bool | None = None,
        logit: PositiveFloat = 0.05,
    ):
        shape = tuple(shape)
        size = math.prod(shape)
        if size < 2:
            raise UsageError(f"model=realnvp couples elements with others, and one example here has shape {shape}")
        batch_norm = levels is not None if batch_norm is None else batch_norm
        if network == "auto":
            network = "conv" if len(shape) == 3 else "mlp"
        if network == "conv":
            body = _conv(shape, layers, channels or 32, blocks, _scales(shape, scales), batch_norm)
        else:
            given = {"channels": channels, "scales": scales}
            for name, value in given.items():
                if value is not None:
                    raise UsageError(f"model.{name}={value} is for model.network=conv; an mlp has model.hidden")
            couplings = [Coupling(alternating((size,), i), _mlp(size, list(hidden))) for i in range(layers)]
            body = Chain(Flatten(shape), *_normalised(couplings, (size,), batch_norm))
        super().__init__(shape, levels, logit, body, StandardNormal(size))


def _scales(shape: tuple[int, ...], wanted: int | None) -> int:
    if len(shape) != 3:
        raise UsageError(f"model.network=conv takes images, and one example here has shape {shape}; use mlp")
    possible, sides = 1, shape[1:]
    while all(side % 2 == 0 for side in sides) and (wanted is not None or min(sides) >= SMALLEST):
        possible, sides = possible + 1, tuple(side // 2 for side in sides)
    if wanted is not None and wanted > possible:
        raise UsageError(
            f"model.scales={wanted}: {shape[1]}x{shape[2]} pixels can be halved {possible - 1} times"
            f" until a side is odd; use model.scales={possible} or less"
        )
    return wanted or min(possible, MOST)


def _normalised(couplings: list[Coupling], shape: tuple[int, ...], batch_norm: bool) -> list[Bijection]:
    """The couplings, each after a layer of batch normalisation if there is any."""
    return [layer for c in couplings for layer in ([BatchNormFlow(shape), c] if batch_norm else [c])]


def _mlp(size: int, hidden: list[int]) -> nn.Module:
    network = mlp([size, *hidden, 2 * size])
    start_as_identity(network[-1])
    return network


def _conv(shape: tuple[int, ...], layers: int, width: int, blocks: int, scales: int, batch_norm: bool) -> Chain:
    def couplings(count: int, shape: tuple[int, ...], mask=alternating) -> list[Bijection]:
        made = [Coupling(mask(shape, i), ResNet(shape[0], width, blocks)) for i in range(count)]
        return _normalised(made, shape, batch_norm)

    boards, halves = (layers + 1) // 2, layers // 2
    if scales == 1:
        return Chain(*couplings(boards + 1, shape), Flatten(shape))
    small = (4 * shape[0], shape[1] // 2, shape[2] // 2)
    inner = _conv((small[0] // 2, *small[1:]), layers, width, blocks, scales - 1, batch_norm)
    through = couplings(halves, small, channel_halves)
    return Chain(*couplings(boards, shape), Squeeze(), *through, FactorOut(small, inner))


class ResNet(nn.Module):
    """s and t of a coupling on images: 3x3 convolutions with shortcuts, (B, C, H, W) -> (B, 2 C, H, W)."""

    def __init__(self, channels: int, width: int, blocks: int):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1))
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, 2 * channels, 3, padding=1)
        start_as_identity(self.last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(relu(x))
