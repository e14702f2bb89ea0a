"""PixelCNN: masked convolutions over images in raster order."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gentrain.models.masked_convolution import ConvCaches, Convolve, MaskedConv2d, check_kernel, groups, whole
from gentrain.models.raster import Cache, Raster, choose_head
from gentrain.types import PositiveInt, Shape


class Residual(nn.Module):
    """h + 1x1(ReLU 3x3(ReLU 1x1(ReLU h))), all with mask B; `wide` and `narrow` are the groups of feature maps."""

    def __init__(self, wide: Tensor, narrow: Tensor):
        super().__init__()
        self.enter = MaskedConv2d(1, "B", wide, narrow)
        self.middle = MaskedConv2d(3, "B", narrow, narrow)
        self.leave = MaskedConv2d(1, "B", narrow, wide)

    def forward(self, h: Tensor, convolve: Convolve) -> Tensor:
        change = convolve(self.enter, torch.relu(h))
        change = convolve(self.middle, torch.relu(change))
        return h + convolve(self.leave, torch.relu(change))


class PixelCNN(Raster):
    """p(x) = Π p(x_cij | what comes before) from masked convolutions (van den Oord et al. 2016, arXiv:1601.06759).

    A first convolution with mask A sees neither the pixel itself nor what follows; after it come residual blocks
    (ReLU, 1x1 to h, ReLU, 3x3 with mask B, ReLU, 1x1 to 2h, added to the input) and two 1x1 layers. Colours come in
    order: masks let the feature maps of green see red, those of blue both. A pixel above and to the right is seen only
    if a way of steps of one up and one aside leads to it: beyond lies the blind spot that `gated_pixel_cnn` has not.

    Args:
        shape: of one example, (C, H, W).
        levels: number of values an element can take in the data.
        channels: h; the blocks' inputs and outputs have 2h feature maps.
        blocks: residual blocks.
        kernel: side of the first convolution's window, odd.
        head: feature maps of the layer before the last.
        likelihood: `bernoulli` (`support` binary), `categorical` (softmax over K levels, `support` levels), or `auto`:
            bernoulli for two levels or one channel (binarized), else categorical.

    Raises:
        UsageError: examples that are no images, have no levels, or are too small for the kernel.

    >>> model = PixelCNN((1, 4, 4), levels=2, channels=4, blocks=1)
    >>> model.log_prob(model.sample(3)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        channels: PositiveInt = 32,
        blocks: PositiveInt = 7,
        kernel: PositiveInt = 5,
        head: PositiveInt = 32,
        likelihood: Literal["auto", "bernoulli", "categorical"] = "auto",
    ):
        super().__init__()
        self.head = choose_head(likelihood, shape, levels)
        check_kernel(kernel, shape)
        self.shape, self.support = self.head.shape, self.head.support
        colours = self.shape[0]
        narrow, wide, last = (groups(width, colours) for width in (channels, 2 * channels, head))
        self.first = MaskedConv2d(kernel, "A", torch.arange(colours), wide)
        self.blocks = nn.ModuleList(Residual(wide, narrow) for _ in range(blocks))
        # the raw numbers of the head are ordered with the channel as the fast index
        self.hidden = MaskedConv2d(1, "B", wide, last)
        self.last = MaskedConv2d(1, "B", last, torch.arange(self.head.outputs) % colours)

    def raw(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        return self.network(h, whole)

    def network(self, h: Tensor, convolve: Convolve) -> Tensor:
        """Raw parameters from the network's input, of whole images or of one pixel."""
        h = convolve(self.first, h)
        for block in self.blocks:
            h = block(h, convolve)
        h = convolve(self.hidden, torch.relu(h))
        return convolve(self.last, torch.relu(h))

    def cache(self, x: Tensor, y: Tensor | None) -> Cache:
        return _PixelCache(self, x)


class _PixelCache(ConvCaches):
    def __init__(self, model: PixelCNN, x: Tensor):
        super().__init__(model, x, model.first)
        self.model = model

    def network(self, h: Tensor, convolve: Convolve, j: int) -> Tensor:
        return self.model.network(h, convolve)
