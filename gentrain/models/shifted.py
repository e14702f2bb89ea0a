"""Causal convolutions by shifting, with strides, and what generation keeps of each (PixelCNN++).

A shifted convolution needs no mask: its kernel lies above, or above and to the left, of the pixel it computes. Every
module here has two ways to run. Whole maps (B, channels, H, W) in training; and, at a `Place`, only the row or pixel
that has just become known, from the last two rows of its input, which it keeps (Ramachandran et al. 2017,
arXiv:1704.06001). A row or pixel of a coarser scale exists only where the finer one is even: elsewhere it is None.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, elu, pad

from gentrain.models.layers import Dropout

Memory = dict[nn.Module, Tensor]
"""What each module keeps of its input while one batch is generated."""


@dataclass(frozen=True)
class Place:
    """The row, or one pixel of it, that is computed: its coordinates in the maps of the present scale.

    Args:
        row: its number. column: of the pixel, None for a whole row. memory: of the modules that run there.
    """

    row: int
    column: int | None
    memory: Memory

    @property
    def even(self) -> bool:
        """Whether a coarser map has a row or pixel here."""
        return self.row % 2 == 0 and (self.column or 0) % 2 == 0

    def coarser(self) -> Place:
        return Place(self.row // 2, None if self.column is None else self.column // 2, self.memory)


def patch(x: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Rows `top` to top + height and columns `left` to left + width of maps x, zero where they lie outside."""
    rows, columns = x.shape[-2:]
    inside = x[..., max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    beyond = (max(-left, 0), max(left + width - columns, 0), max(-top, 0), max(top + height - rows, 0))
    return pad(inside, beyond)


class ShiftedConv(nn.Module):
    """A convolution whose output at (i, j) sees rows from stride * i + offset[0], columns from stride * j + offset[1].

    Args:
        d_in, d_out: maps. kernel: height and width. offset: of the kernel's first row and column, at most 0.
        stride: 1 or 2, on even sides.
    """

    def __init__(
        self, d_in: int, d_out: int, kernel: tuple[int, int], offset: tuple[int, int] = (-1, -1), stride: int = 1
    ):
        super().__init__()
        self.kernel, self.offset, self.stride = kernel, offset, stride
        conv = nn.Conv2d(d_in, d_out, kernel)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        height, width = (side // self.stride for side in x.shape[-2:])
        rows, columns = (self.stride * (n - 1) + k for n, k in zip((height, width), self.kernel, strict=True))
        return self._convolve(patch(x, *self.offset, rows, columns))

    def at(self, x: Tensor, place: Place, width: int) -> Tensor | None:
        """Output at a place from the input there; `width` is that of the input's maps."""
        (rows, columns), column = self.kernel, place.column
        if self not in place.memory:
            place.memory[self] = x.new_zeros(*x.shape[:2], rows, width + columns - 1)
        kept = place.memory[self]
        if not column:  # a new row begins: rows move up
            kept[:, :, :-1] = kept[:, :, 1:].clone()
        first = (column or 0) - self.offset[1]
        kept[:, :, -1, first : first + x.shape[-1]] = x[:, :, 0]
        if self.stride == 2 and not place.even:
            return None
        return self._convolve(kept if column is None else kept[..., column : column + columns])

    def canvas_at(self, x: Tensor, place: Place) -> Tensor:
        """Output at a place from the whole input: for a first layer, whose input is at hand."""
        (rows, columns), left = self.kernel, (place.column or 0) + self.offset[1]
        width = columns if place.column is not None else x.shape[-1] + columns - 1
        return self._convolve(patch(x, place.row + self.offset[0], left, rows, width))

    def _convolve(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride)


class ShiftedDeconv(nn.Module):
    """Twice the sides: input (i, j) reaches rows 2i and 2i + 1, columns from 2j + `left` on."""

    def __init__(self, d_in: int, d_out: int, kernel: tuple[int, int], left: int):
        super().__init__()
        self.kernel, self.left = kernel, left
        conv = nn.ConvTranspose2d(d_in, d_out, kernel, stride=2)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        width = 2 * x.shape[-1]
        full = conv_transpose2d(x, self.weight, self.bias, stride=2)
        return full[..., -self.left : width - self.left]

    def at(self, x: Tensor | None, place: Place, width: int) -> Tensor:
        """Output at a place of the finer scale; `x` is the coarser input there, None where there is none anew."""
        if x is not None:
            if self not in place.memory:
                place.memory[self] = x.new_zeros(*x.shape[:3], width // 2)
            first = (place.column or 0) // 2
            place.memory[self][..., first : first + x.shape[-1]] = x
        kept, column = place.memory[self], place.column
        if column is None:
            return self(kept)[:, :, place.row % 2, None]
        pixel = conv_transpose2d(kept[..., column // 2, None], self.weight, self.bias, stride=2)
        return pixel[:, :, place.row % 2, None, column % 2, None]


def concat_elu(x: Tensor) -> Tensor:
    """elu(x) and elu(-x), twice the maps."""
    return elu(torch.cat([x, -x], 1))


class GatedBlock(nn.Module):
    """x + a σ(b), with (a, b) two shifted convolutions of x, of maps `extra` beside it, and of the label.

    Args:
        channels: of x. extra: maps that come in through a 1x1 convolution between the two. kernel: of both.
        classes: labels that shift a and b, None for none. dropout: between the two.
    """

    def __init__(self, channels: int, extra: int, kernel: tuple[int, int], classes: int | None, dropout: float):
        super().__init__()
        self.first = ShiftedConv(2 * channels, channels, kernel)
        self.beside = nn.Conv2d(2 * extra, channels, 1) if extra else None
        self.dropout = Dropout(dropout)
        self.second = ShiftedConv(2 * channels, 2 * channels, kernel)
        self.label = nn.Embedding(classes, 2 * channels) if classes else None
        with torch.no_grad():
            self.second.weight.mul_(0.1)  # a block begins as nearly the identity
            if self.label is not None:
                self.label.weight.mul_(0.05)

    def forward(
        self, x: Tensor, beside: Tensor | None, y: Tensor | None, place: Place | None = None, width: int = 0
    ) -> Tensor:
        h = self._conv(self.first, concat_elu(x), place, width)
        if self.beside is not None:
            assert beside is not None
            h = h + self.beside(concat_elu(beside))
        h = self._conv(self.second, self.dropout(concat_elu(h)), place, width)
        if self.label is not None:
            h = h + self.label(y)[:, :, None, None]
        a, b = h.chunk(2, 1)
        return x + a * torch.sigmoid(b)

    @staticmethod
    def _conv(conv: ShiftedConv, x: Tensor, place: Place | None, width: int) -> Tensor:
        if place is None:
            return conv(x)
        found = conv.at(x, place, width)
        assert found is not None
        return found


class Stream(nn.Module):
    """A U-shaped stack of gated blocks over `scales` scales; each way up, blocks meet those of the way down.

    The vertical stream sees rows above; the horizontal one, right of what it has seen, takes at every block the
    vertical stream's maps as well.

    Args:
        channels: maps everywhere. blocks: of a scale on the way down; up again one more, but for the coarsest.
        scales: 1 is without down-sampling. horizontal: which stream. classes, dropout: of `GatedBlock`.
    """

    def __init__(self, channels: int, blocks: int, scales: int, horizontal: bool, classes: int | None, dropout: float):
        super().__init__()
        kernel = (2, 2) if horizontal else (2, 3)

        def stack(count: int, extra: int) -> nn.ModuleList:
            return nn.ModuleList(GatedBlock(channels, extra, kernel, classes, dropout) for _ in range(count))

        self.horizontal = horizontal
        own = channels if horizontal else 0
        self.down = nn.ModuleList(stack(blocks, own) for _ in range(scales))
        self.up = nn.ModuleList(stack(blocks + (s < scales - 1), channels + own) for s in range(scales))
        self.halve = nn.ModuleList(ShiftedConv(channels, channels, kernel, stride=2) for _ in range(scales - 1))
        left = 0 if horizontal else -1
        self.grow = nn.ModuleList(ShiftedDeconv(channels, channels, kernel, left) for _ in range(scales - 1))

    def forward(
        self,
        x: Tensor,
        y: Tensor | None,
        vertical: dict[tuple[int, int], Tensor],
        place: Place | None = None,
        width: int = 0,
        scale: int = 0,
    ) -> Tensor:
        """Features from the first maps x, or at a place from those there.

        Args:
            y: labels. vertical: (scale, number of the block) -> the vertical stream's maps after that block, which
                the vertical stream writes and the horizontal one reads. width: of this scale's maps.
        """

        def run(block: nn.Module, number: int, x: Tensor, shortcut: Tensor | None) -> Tensor:
            if not self.horizontal:
                vertical[scale, number] = x = block(x, shortcut, y, place, width)
                return x
            above = vertical[scale, number]
            above = above if place is None else above[..., place.column, None]
            beside = above if shortcut is None else torch.cat([above, shortcut], 1)
            return block(x, beside, y, place, width)

        kept = [x]
        down, up = self.down[scale], self.up[scale]
        assert isinstance(down, nn.ModuleList) and isinstance(up, nn.ModuleList)
        for i, block in enumerate(down):
            x = run(block, i, x, None)
            kept.append(x)
        if scale < len(self.halve):
            halve, grow = self.halve[scale], self.grow[scale]
            assert isinstance(halve, ShiftedConv) and isinstance(grow, ShiftedDeconv)
            if place is None:
                x = grow(self(halve(x), y, vertical, scale=scale + 1))
            else:
                coarse = halve.at(x, place, width)
                if coarse is not None:
                    coarse = self(coarse, y, vertical, place.coarser(), width // 2, scale + 1)
                x = grow.at(coarse, place, width)
        else:
            kept.pop()
        for i, block in enumerate(up):
            x = run(block, len(down) + i, x, kept.pop())
        return x
