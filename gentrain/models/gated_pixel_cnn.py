"""Gated PixelCNN: two stacks of masked convolutions without a blind spot, with labels if wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentrain.errors import UsageError
from gentrain.models.base import Conditional
from gentrain.models.masked_convolution import ConvCaches, Convolve, MaskedConv2d, check_kernel, groups, whole
from gentrain.models.raster import Cache, Raster, choose_head
from gentrain.types import PositiveInt, Shape


class GatedPixelCNN(Raster, Conditional):
    """PixelCNN whose every layer has a vertical and a horizontal part (van den Oord et al. 2016, arXiv:1606.05328).

    The vertical stack sees all rows above, the horizontal one the pixels to the left and, through a 1x1 convolution of
    each vertical layer, the rows above: together all that comes before, without a blind spot. Units are gated,

        y = tanh(W_f * x + V_f e_k) · σ(W_g * x + V_g e_k),

    with the one-hot label e_k only where the model is conditional. Horizontal layers add to their input, from the
    second on. Two 1x1 layers with ReLUs follow. Colours are conditioned in order, by masks of the horizontal stack.

    Args:
        shape: of one example, (C, H, W).
        levels: number of values an element can take in the data.
        channels: feature maps of each stack.
        blocks: layers of both stacks, the first included.
        kernel: side of the first layer's window, odd; those of the others are 3.
        head: feature maps of the layer before the last.
        likelihood: `bernoulli` (`support` binary), `categorical` (softmax over K levels, `support` levels), or `auto`:
            bernoulli for two levels or one channel (binarized), else categorical.
        conditional: model p(x | label).
        classes: number of labels in the data. The attribute of that name is None of a model that isn't conditional.

    Raises:
        UsageError: examples that are no images, have no levels, or are too small for the kernel; `conditional` asked of
            data without labels.

    >>> model = GatedPixelCNN((1, 4, 4), levels=2, channels=4, blocks=2, kernel=3, conditional=True, classes=3)
    >>> x = model.sample(2, y=torch.tensor([0, 2]))
    >>> model.log_prob(x, y=torch.tensor([0, 2])).shape, model.log_prob(x).shape
    (torch.Size([2]), torch.Size([2]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        channels: PositiveInt = 32,
        blocks: PositiveInt = 5,
        kernel: PositiveInt = 5,
        head: PositiveInt = 32,
        likelihood: Literal["auto", "bernoulli", "categorical"] = "auto",
        conditional: bool = False,
        classes: PositiveInt | None = None,
    ):
        super().__init__()
        self.head = choose_head(likelihood, shape, levels)
        check_kernel(kernel, shape)
        if kernel == 1:
            raise UsageError("model.kernel=1: sees nothing but the pixel itself; 3 at least")
        if conditional and classes is None:
            raise UsageError(
                "model.conditional=true needs labels, and these data have none; use model.conditional=false"
            )
        self.shape, self.support = self.head.shape, self.head.support
        self.classes = classes if conditional else None
        colours = self.shape[0]
        inner, last = groups(channels, colours), groups(head, colours)
        self.layers = nn.ModuleList()
        for i in range(blocks):
            inputs = torch.arange(colours) if i == 0 else inner
            self.layers.append(GatedLayer(3 if i else kernel, inputs, inner, self.classes, first=i == 0))
        self.hidden = MaskedConv2d(1, "B", inner, last)
        # the raw numbers of the head are ordered with the channel as the fast index
        self.last = MaskedConv2d(1, "B", last, torch.arange(self.head.outputs) % colours)

    def raw(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        vertical = h
        for layer in self.gated_layers():
            above, across = layer.look_up(vertical, layer.vertical, y)
            h = layer.look_left(across, h, whole)
            vertical = gate(above)
        return self.outputs_of(h, whole)

    def gated_layers(self) -> list[GatedLayer]:
        return [layer for layer in self.layers if isinstance(layer, GatedLayer)]

    def outputs_of(self, h: Tensor, convolve: Convolve) -> Tensor:
        """Raw parameters from the horizontal stack, of whole images or of one pixel."""
        return convolve(self.last, torch.relu(convolve(self.hidden, torch.relu(h))))

    def cache(self, x: Tensor, y: Tensor | None) -> Cache:
        return _GatedCache(self, x, y)


def gate(h: Tensor) -> Tensor:
    """tanh of one half of the feature maps times σ of the other, (B, 2d, …) -> (B, d, …)."""
    value, opening = h.chunk(2, 1)
    return torch.tanh(value) * torch.sigmoid(opening)


class VerticalConv2d(nn.Conv2d):
    """A convolution that sees rows above and, unless it is the `first`, the pixel's own, all over their width."""

    def __init__(self, kernel: int, d_in: int, d_out: int, first: bool):
        self.reach = kernel // 2
        super().__init__(d_in, d_out, (self.reach if first else self.reach + 1, kernel))

    def forward(self, h: Tensor) -> Tensor:
        return F.conv2d(h, self.weight, self.bias, padding=self.reach)[:, :, : h.shape[2]]

    def newest(self, window: Tensor) -> Tensor:
        """The output's last row, from the rows of the input (B, d_in, rows, W) that it sees."""
        return F.conv2d(window, self.weight, self.bias, padding=(0, self.reach))


class GatedLayer(nn.Module):
    """One layer of both stacks. `inputs` and `inner` are the colour groups of feature maps."""

    def __init__(self, kernel: int, inputs: Tensor, inner: Tensor, classes: int | None, first: bool):
        super().__init__()
        self.first = first
        width, both = len(inner), torch.cat([inner, inner])
        self.vertical = VerticalConv2d(kernel, len(inputs), 2 * width, first)
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = MaskedConv2d(kernel, "A" if first else "B", inputs, both, above=0)
        self.leave = MaskedConv2d(1, "B", inner, inner)
        self.label = nn.Embedding(classes, 4 * width) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.1)

    def look_up(self, h: Tensor, convolve: Callable[[Tensor], Tensor], y: Tensor | None) -> tuple[Tensor, Tensor]:
        """The vertical layer before its gate, and what it gives the horizontal one, (B, 2d, H, W) each."""
        above = convolve(h)
        if self.label is None:
            return above, self.link(above)
        assert y is not None
        here, across = self.label(y)[:, :, None, None].chunk(2, 1)
        above = above + here
        return above, self.link(above) + across

    def look_left(self, across: Tensor, h: Tensor, convolve: Convolve) -> Tensor:
        """The horizontal layer's output from its input h and what the vertical one gives."""
        out = convolve(self.leave, gate(across + convolve(self.horizontal, h)))
        return out if self.first else h + out


class _GatedCache(ConvCaches):
    """The vertical stack a row at a time, from the last rows of each layer's input; of the horizontal one a row."""

    def __init__(self, model: GatedPixelCNN, x: Tensor, y: Tensor | None):
        self.layers = model.gated_layers()
        super().__init__(model, x, self.layers[0].horizontal)
        self.model, self.y = model, y
        n, width = len(x), x.shape[3]
        convs = [layer.vertical for layer in self.layers]
        self.windows = [conv.weight.new_zeros(n, conv.in_channels, conv.kernel_size[0], width) for conv in convs]
        self.across: list[Tensor] = []

    def row(self, i: int) -> None:
        super().row(i)
        # What the first layer sees ends a row above. Above row 0 are zeros, which the window still holds then.
        newest = self.head.network_input(self.x[:, :, i - 1 : i]) if i > 0 else self.windows[0][:, :, -1:]
        self.across = []
        for k, layer in enumerate(self.layers):
            self.windows[k] = torch.cat([self.windows[k][:, :, 1:], newest], 2)
            above, across = layer.look_up(self.windows[k], layer.vertical.newest, self.y)
            self.across.append(across[:, :, 0].permute(2, 0, 1).contiguous())  # (W, n, 2d)
            newest = gate(above)

    def network(self, h: Tensor, convolve: Convolve, j: int) -> Tensor:
        for layer, across in zip(self.layers, self.across, strict=True):
            h = layer.look_left(across[j], h, convolve)
        return self.model.outputs_of(h, convolve)
