"""Masked convolutions over images in raster order: of whole images, and of one pixel after another from a cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentrain.errors import UsageError
from gentrain.models.raster import Cache, Raster


def groups(width: int, channels: int) -> Tensor:
    """The colour channel that each of `width` feature maps belongs to, (width,): it may know the channels up to it.

    >>> groups(8, 3)
    tensor([0, 0, 0, 1, 1, 1, 2, 2])
    """
    return torch.arange(width) * channels // width


class MaskedConv2d(nn.Module):
    """A convolution that sees rows above, what is to the left, and some of the pixel itself: (B, d_in, H, W) ->
    (B, d_out, H, W).

    Of the pixel itself an output of colour group g sees the inputs of groups below g (mask A), or up to g (mask B)
    (van den Oord et al. 2016, arXiv:1601.06759, section 3.4).

    Args:
        kernel: odd side of the window. mask: "A" | "B". inputs, outputs: group of each map, (d_in,) and (d_out,).
        above: rows above that it sees; None are all that the window has.
    """

    mask: Tensor

    def __init__(self, kernel: int, mask: str, inputs: Tensor, outputs: Tensor, above: int | None = None):
        super().__init__()
        self.reach = kernel // 2
        self.above = self.reach if above is None else above
        conv = nn.Conv2d(len(inputs), len(outputs), (self.above + 1, kernel))
        assert conv.bias is not None
        allowed = torch.ones_like(conv.weight)  # the rows below would be zeros
        allowed[:, :, -1, self.reach] = (
            outputs[:, None] > inputs if mask == "A" else outputs[:, None] >= inputs
        ).float()
        allowed[:, :, -1, self.reach + 1 :] = 0
        self.register_buffer("mask", allowed, persistent=False)
        self.weight, self.bias = nn.Parameter(conv.weight.detach() * allowed), conv.bias

    def forward(self, h: Tensor) -> Tensor:
        out = F.conv2d(h, self.weight * self.mask, self.bias, padding=(self.above, self.reach))
        return out[:, :, : h.shape[2]]

    def extra_repr(self) -> str:
        d_out, d_in, height, width = self.weight.shape
        return f"{d_in}, {d_out}, kernel_size=({height}, {width})"


class ConvCache:
    """A `MaskedConv2d` a pixel at a time: what the rows above add is computed once a row, for all its pixels."""

    def __init__(self, conv: MaskedConv2d, n: int, width: int):
        d_out, d_in = conv.weight.shape[:2]
        weight = conv.weight * conv.mask
        self.reach = conv.reach
        self.weight_above = weight[:, :, :-1]
        self.weight_here = (
            weight[:, :, -1, : conv.reach + 1].permute(2, 1, 0).reshape(-1, d_out)
        )  # (taps * d_in, d_out)
        self.bias = conv.bias
        self.rows = weight.new_zeros(n, conv.above, width + 2 * conv.reach, d_in)
        self.here = weight.new_zeros(n, width + 2 * conv.reach, d_in)
        self.added = self.bias.expand(width, n, d_out)

    def row(self) -> None:
        """The row is complete; the next begins."""
        if not self.rows.shape[1]:
            return
        self.rows = torch.cat([self.rows[:, 1:], self.here[:, None]], 1)
        added = F.conv2d(self.rows.permute(0, 3, 1, 2), self.weight_above, self.bias)  # (n, d_out, 1, width)
        self.added = added[:, :, 0].permute(2, 0, 1).contiguous()

    def put(self, j: int, h: Tensor) -> None:
        """h (n, d_in) is what column j holds. Columns beyond it may hold what the row above had: they aren't read."""
        self.here[:, j + self.reach] = h

    def pixel(self, j: int, h: Tensor) -> Tensor:
        """The output (n, d_out) at column j, whose input is h (n, d_in)."""
        if self.reach == 0:
            return torch.addmm(self.bias, h, self.weight_here)
        self.put(j, h)
        return torch.addmm(self.added[j], self.here[:, j : j + self.reach + 1].flatten(1), self.weight_here)


Convolve = Callable[[MaskedConv2d, Tensor], Tensor]
"""Carries out a masked convolution: of whole images (B, d, H, W) or, from a cache, of one pixel of each, (B, d)."""


class ConvCaches(Cache):
    """A row of the input of every masked convolution of a network.

    Args:
        model: whose masked convolutions these are. x: the canvas. first: the convolution that sees it.
    """

    def __init__(self, model: Raster, x: Tensor, first: MaskedConv2d):
        self.head, self.x = model.head, x
        self.convs = {m: ConvCache(m, len(x), x.shape[3]) for m in model.modules() if isinstance(m, MaskedConv2d)}
        self.first = self.convs[first]

    @abstractmethod
    def network(self, h: Tensor, convolve: Convolve, j: int) -> Tensor:
        """The raw parameters of a pixel in column j from its input h, (B, C)."""

    def input(self, i: int, j: int) -> Tensor:
        return self.head.network_input(self.x[:, :, i, j])

    def row(self, i: int) -> None:
        if i > 0:
            last = self.x.shape[3] - 1
            self.first.put(last, self.input(i - 1, last))
            for conv in self.convs.values():
                conv.row()

    def pixel(self, i: int, j: int) -> Tensor:
        if j > 0:  # which had not all its channels when it was computed
            self.first.put(j - 1, self.input(i, j - 1))
        return self.network(self.input(i, j), lambda conv, h: self.convs[conv].pixel(j, h), j)


def whole(conv: MaskedConv2d, h: Tensor) -> Tensor:
    """The `Convolve` of whole images."""
    return conv(h)


def check_kernel(kernel: int, shape: tuple[int, ...]) -> None:
    """Raises UsageError unless the kernel is odd and every one of its weights can see a pixel of the image."""
    if kernel % 2 == 0:
        raise UsageError(f"model.kernel={kernel}: must be odd, so that it has a middle")
    largest = 2 * min(shape[1:]) - 1
    if kernel > largest:
        raise UsageError(
            f"model.kernel={kernel}: too wide for images of {shape[1]}x{shape[2]} pixels; {largest} at most"
        )
