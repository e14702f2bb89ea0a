"""PixelRNN: images by LSTMs that run over rows or diagonals."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentrain.errors import UsageError
from gentrain.models.image_lstm import DiagonalBiLSTM, ImageLSTM, RowLSTM
from gentrain.models.masked_convolution import ConvCache, MaskedConv2d, check_kernel, groups
from gentrain.models.raster import Cache, Raster, choose_head
from gentrain.types import PositiveInt, Shape


class PixelRNN(Raster):
    """p(x) = Π_i p(x_i | x_1, …, x_i-1), i in raster order, channels within a pixel (van den Oord et al. 2016,
    arXiv:1601.06759).

    A convolution with mask A, then residual layers x + W h, with h the states of a Row LSTM or of a Diagonal BiLSTM,
    then two 1x1 convolutions. The Row LSTM sees the pixels of a triangle above and, in its own row, as many as its
    convolutions reach to the left. The Diagonal BiLSTM sees all pixels before, with a column of maps beyond the right
    margin that the paper doesn't mention: because of mask A the last pixel of a row is in none of that row's maps, and
    without the column the next row would not see it until it is near.

    Args:
        shape: of one image, (C, H, W).
        levels: number of values an element can take in the data.
        cell: `row` | `diagonal`.
        layers: LSTM layers.
        hidden: h, units of an LSTM layer; there are 2h feature maps between layers. At least C.
        head: maps between the two last convolutions. At least C.
        kernel: odd side of the first convolution's window.
        likelihood: `bernoulli` (`support` binary), `categorical` (`support` levels, a softmax over them), or `auto`:
            bernoulli for two levels or one channel (binarized), else categorical.

    Raises:
        UsageError: the data are no images or have no levels; the kernel is even or too wide; fewer maps than channels.

    >>> model = PixelRNN((1, 4, 4), levels=2, layers=1, hidden=4, head=4, kernel=3)
    >>> model.sample(2).shape, model.log_prob(model.sample(3)).shape
    (torch.Size([2, 1, 4, 4]), torch.Size([3]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        cell: Literal["row", "diagonal"] = "diagonal",
        layers: PositiveInt = 2,
        hidden: PositiveInt = 16,
        head: PositiveInt = 32,
        kernel: PositiveInt = 5,
        likelihood: Literal["auto", "bernoulli", "categorical"] = "auto",
    ):
        super().__init__()
        self.head = choose_head(likelihood, tuple(shape), levels)
        self.shape, self.support = self.head.shape, self.head.support
        check_kernel(kernel, self.shape)
        if kernel == 1:
            raise UsageError("model.kernel=1: the first convolution would see nothing of the pixels before; 3 at least")
        channels = self.shape[0]
        for name, maps in (("hidden", hidden), ("head", head)):
            if maps < channels:
                raise UsageError(f"model.{name}={maps}: every colour channel needs a map, {channels} at least")
        of_maps, of_hidden, of_head = (groups(n, channels) for n in (2 * hidden, hidden, head))
        lstm = RowLSTM if cell == "row" else DiagonalBiLSTM
        self.beyond = int(cell == "diagonal")  # columns of maps beyond the right margin
        self.first = MaskedConv2d(kernel, "A", groups(channels, channels), of_maps)
        self.layers = nn.ModuleList(lstm(of_maps, hidden, channels) for _ in range(layers))
        self.outward = nn.ModuleList(MaskedConv2d(1, "B", of_hidden, of_maps) for _ in range(layers))
        self.penultimate = MaskedConv2d(1, "B", of_maps, of_head)
        of_outputs = groups(channels, channels).repeat(self.head.outputs // channels)
        self.last = MaskedConv2d(1, "B", of_head, of_outputs)

    def raw(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        width = h.shape[3]
        h = self.first(F.pad(h, (0, self.beyond)))
        for layer, outward in zip(self.layers, self.outward, strict=True):
            h = h + outward(layer(h))
        h = h[..., :width]
        return self.last(F.relu(self.penultimate(F.relu(h))))

    def cache(self, x: Tensor, y: Tensor | None) -> PixelRNNCache:
        return PixelRNNCache(self, x)


class PixelRNNCache(Cache):
    """The states of every layer, in the present row and the one above; the first convolution's rows."""

    def __init__(self, model: PixelRNN, x: Tensor):
        self.head, self.x, self.beyond = model.head, x, model.beyond
        n, width = len(x), x.shape[3] + model.beyond
        self.first = ConvCache(model.first, n, width)
        layers = [layer for layer in model.layers if isinstance(layer, ImageLSTM)]
        self.walks = [layer.walk(n, width) for layer in layers]
        self.outward = [ConvCache(conv, n, width) for conv in model.outward if isinstance(conv, MaskedConv2d)]
        self.penultimate, self.last = (ConvCache(conv, n, width) for conv in (model.penultimate, model.last))

    def row(self, i: int) -> None:
        if i > 0:
            width = self.x.shape[3]
            self._complete(i - 1, width - 1)
            if self.beyond:
                self._maps(width, torch.zeros_like(self._input(i - 1, width - 1)))
            self.first.row()
            for walk in self.walks:
                walk.row()

    def pixel(self, i: int, j: int) -> Tensor:
        if j > 0:
            self._complete(i, j - 1)
        h = self._maps(j, self._input(i, j))
        return self.last.pixel(j, F.relu(self.penultimate.pixel(j, F.relu(h))))

    def _input(self, i: int, j: int) -> Tensor:
        return self.head.network_input(self.x[:, :, i, j])

    def _complete(self, i: int, j: int) -> None:
        """Put in the pixel with all its channels, which were not there when it was computed."""
        self.first.put(j, self._input(i, j))

    def _maps(self, j: int, h: Tensor) -> Tensor:
        """The last layer's maps at column j, whose input is h (n, C)."""
        h = self.first.pixel(j, h)
        for walk, outward in zip(self.walks, self.outward, strict=True):
            h = h + outward.pixel(j, walk.pixel(j, h))
        return h
