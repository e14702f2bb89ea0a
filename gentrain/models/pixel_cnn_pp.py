"""PixelCNN++: shifted convolutions over several scales, and a mixture of logistics."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentrain.errors import UsageError
from gentrain.models.base import Conditional
from gentrain.models.logistic_mixture import ChainedBits, LogisticMixture
from gentrain.models.raster import Cache, Head, Raster, choose
from gentrain.models.shifted import Memory, Place, ShiftedConv, Stream
from gentrain.types import NonNegativeInt, OpenFraction, PositiveInt, Shape

MOST = 2
"""Halvings where the number is left open, as in the paper."""


class PixelCNNPP(Raster, Conditional):
    """p(x) = Π_i p(x_i | x_1, …, x_i-1) over pixels i in raster order (Salimans et al. 2017, arXiv:1701.05517).

    Shifted convolutions in two streams: a vertical one, of the rows above, and a horizontal one, of the pixels to the
    left, which takes the vertical one's maps as well. Both are U-shaped: gated residual blocks with concat-ELU and
    dropout, `scales` - 1 halvings, and as many doublings with shortcuts from the blocks before. The network gives a
    pixel's channels jointly: a mixture of discretized logistics whose channels are conditioned linearly, or bits.
    Weights aren't normalised: the paper's data-dependent initialisation is left out.

    Args:
        shape: of one image, (C, H, W).
        levels: number of values an element can take in the data.
        channels: feature maps of each stream.
        blocks: gated blocks of a scale on the way down; on the way up one more, but for the coarsest.
        halvings: of the sides; None are as many as both sides allow, 2 at most.
        mixtures: logistics of a pixel. Only for `logistic_mixture`.
        dropout: share of a block's features that are dropped.
        likelihood: `bernoulli` (`support` binary), `logistic_mixture` (`support` levels), or `auto`: bernoulli for two
            levels or one channel (binarized), else logistic_mixture.
        conditional: model p(x | label).
        classes: number of labels in the data. The attribute of that name is None of a model that isn't conditional.

    Raises:
        UsageError: the data are no images or have no levels; sides that can't be halved; `conditional` asked of data
            without labels.

    >>> model = PixelCNNPP((3, 4, 4), levels=256, channels=4, blocks=1, mixtures=2)
    >>> x = model.sample(2)
    >>> model.support, x.shape, model.log_prob(x).shape
    ('levels', torch.Size([2, 3, 4, 4]), torch.Size([2]))
    """

    masks_channels = False

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        channels: PositiveInt = 16,
        blocks: PositiveInt = 1,
        halvings: NonNegativeInt | None = None,
        mixtures: PositiveInt = 5,
        dropout: OpenFraction = 0.0,
        likelihood: Literal["auto", "bernoulli", "logistic_mixture"] = "auto",
        conditional: bool = False,
        classes: PositiveInt | None = None,
    ):
        super().__init__()
        self.head = choose_head(likelihood, tuple(shape), levels, mixtures)
        self.shape, self.support = self.head.shape, self.head.support
        if conditional and classes is None:
            raise UsageError(
                "model.conditional=true needs labels, and these data have none; use model.conditional=false"
            )
        self.classes = classes if conditional else None
        colours, height, width = self.shape
        scales = 1 + count_halvings(halvings, height, width)
        # A map of ones comes first: so zeros beyond the margin are told from black.
        self.first_above = ShiftedConv(colours + 1, channels, (2, 3), offset=(-2, -1))
        self.first_row = ShiftedConv(colours + 1, channels, (1, 3), offset=(-1, -1))
        self.first_left = ShiftedConv(colours + 1, channels, (2, 1), offset=(-1, -1))
        self.vertical = Stream(channels, blocks, scales, False, self.classes, dropout)
        self.horizontal = Stream(channels, blocks, scales, True, self.classes, dropout)
        self.last = nn.Conv2d(channels, self.head.outputs, 1, bias=False)  # the head has the bias

    def raw(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        h = with_ones(h)
        above: dict[tuple[int, int], Tensor] = {}
        self.vertical(self.first_above(h), y, above)
        return self.last(F.elu(self.horizontal(self.first_row(h) + self.first_left(h), y, above)))

    def cache(self, x: Tensor, y: Tensor | None) -> PixelCNNPPCache:
        return PixelCNNPPCache(self, x, y)

    def _draw(self, x: Tensor, known: Tensor, y: Tensor | None, cached: bool) -> Tensor:
        """By a copy in float64: of 256 levels one ends so near to the next that in float32 most pixels would have a
        doubtful draw, to be made again from the whole image. Where a device has no float64, float32 must do, and a
        cached draw may then fall on the other side of an edge."""
        if self.device.type == "mps":
            return super()._draw(x, known, y, cached)
        return super(PixelCNNPP, copy.deepcopy(self).double())._draw(x, known, y, cached)


class PixelCNNPPCache(Cache):
    """The vertical stream a row at a time, the horizontal one a pixel at a time; of both, two rows of every layer."""

    def __init__(self, model: PixelCNNPP, x: Tensor, y: Tensor | None):
        self.model, self.x, self.y = model, x, y
        self.width = x.shape[3]
        self.memory: Memory = {}
        self.above: dict[tuple[int, int], Tensor] = {}
        self.input = with_ones(model.head.network_input(x))

    def row(self, i: int) -> None:
        if i > 0:
            self.input[:, 1:, i - 1] = self.model.head.network_input(self.x[:, :, i - 1])
        place = Place(i, None, self.memory)
        first = self.model.first_above.canvas_at(self.input, place)
        self.model.vertical(first, self.y, self.above, place, self.width)

    def pixel(self, i: int, j: int) -> Tensor:
        if j > 0:
            self.input[:, 1:, i, j - 1] = self.model.head.network_input(self.x[:, :, i, j - 1])
        place = Place(i, j, self.memory)
        first = self.model.first_row.canvas_at(self.input, place) + self.model.first_left.canvas_at(self.input, place)
        h = self.model.horizontal(first, self.y, self.above, place, self.width)
        return self.model.last(F.elu(h))[:, :, 0, 0]


def with_ones(h: Tensor) -> Tensor:
    """A map of ones before the others."""
    return torch.cat([torch.ones_like(h[:, :1]), h], 1)


def count_halvings(asked: int | None, height: int, width: int) -> int:
    """The number asked for, or as many as both sides allow, `MOST` at most.

    Raises:
        UsageError: a side can't be halved so often.
    """
    possible = next(k for k in range(max(height, width) + 1) if height % 2 ** (k + 1) or width % 2 ** (k + 1))
    if asked is None:
        return min(possible, MOST)
    if asked > possible:
        raise UsageError(
            f"model.halvings={asked}: sides of {height}x{width} pixels can be halved {possible} times; "
            f"use model.halvings={possible} or resize the images to multiples of {2**asked}"
        )
    return asked


def choose_head(name: str, shape: tuple[int, ...], levels: int | None, mixtures: int) -> Head:
    """`bernoulli`, `logistic_mixture`, or `auto`, as `raster.choose` has it."""
    name, levels = choose(name, shape, levels, "logistic_mixture")
    channels, height, width = shape
    if name == "bernoulli":
        return ChainedBits((channels, height, width))
    return LogisticMixture((channels, height, width), levels, mixtures)
