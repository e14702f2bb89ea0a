"""Networks that make an image of an image: a U-Net, the same without its skips, and a residual network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.layers import Dropout, double, halve
from gentrain.models.normalisation import Norm
from gentrain.models.players import leaky, radford

NOISY = 3
"""Layers of the way up that drop units."""


def depths(size: tuple[int, ...]) -> int:
    """How often an image's height and width can be halved evenly.

    >>> depths((28, 28)), depths((64, 64)), depths((8, 12)), depths((9, 8))
    (2, 6, 2, 0)
    """
    found = 0
    while all(side % 2 ** (found + 1) == 0 for side in size):
        found += 1
    return found


def depth_of(size: tuple[int, ...], depth: int | None, usual: int) -> int:
    """The number of halvings: `depth`, if the image bears it, and else `usual`, or as many as it bears.

    Raises:
        UsageError: the image can't be halved so often.
    """
    most = depths(size)
    name = f"{size[0]}x{size[1]} pixels"
    if not most:
        even = " and ".join(f"data.size={side + side % 2}" for side in sorted(set(size)))
        raise UsageError(
            f"model.depth={'null' if depth is None else depth}: images of {name} can't be halved; take even sides, e.g."
            f" {even} of data=paired or unpaired"
        )
    if depth is not None and depth > most:
        fitting = "1" if most == 1 else f"1 to {most}"
        raise UsageError(
            f"model.depth={depth}: images of {name} can be halved evenly {most} time{'s' * (most > 1)}; take {fitting}"
        )
    return depth or min(usual, most)


class UNetGenerator(nn.Module):
    """An encoder and a decoder of convolutions, each layer of the one also seen by its mirror image in the other (Isola
    et al. 2017, arXiv:1611.07004, section 6.1.1; Ronneberger et al. 2015, arXiv:1505.04597).

    On the way down 4x4 convolutions with a stride of 2, on the way up transposed ones; leaky rectifiers (0.2) down,
    plain ones up, tanh at the end. Neither the outermost nor the innermost layer of the encoder is normalised, nor the
    decoder's last. Weights start from N(0, 0.02²).

    Args:
        maps: channels of the image, before and after. channels: of the first layer, doubled in each of the next three.
        depth: halvings. norm: of the other layers.
        dropout: probability of a unit to be dropped, in the first three layers of the decoder but not in its last.
        noisy: whether that goes on outside of training: the generator's noise (section 2.1).
        skips: without, all goes through the middle.

    >>> UNetGenerator(1, 4, depth=2, norm=Norm("batch", 0))(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 1, 28, 28])
    """

    def __init__(
        self,
        maps: int,
        channels: int,
        depth: int,
        norm: Norm,
        dropout: float = 0.0,
        noisy: bool = True,
        skips: bool = True,
    ):
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(depth)]
        self.down, self.up, self.skips = nn.ModuleList([halve(maps, channels)]), nn.ModuleList(), skips
        for i in range(1, depth):
            inner = i == depth - 1
            layers = [leaky(), halve(widths[i - 1], widths[i], bias=inner or norm.bias)]
            self.down.append(nn.Sequential(*layers, *([] if inner else norm.layers(widths[i], 2))))
        for i in reversed(range(depth)):
            d_in = widths[i] * (2 if skips and i < depth - 1 else 1)
            d_out, last = widths[i - 1] if i else maps, i == 0
            layers = [nn.ReLU(), double(d_in, d_out, (2, 2), bias=last or norm.bias)]
            layers += [nn.Tanh()] if last else norm.layers(d_out, 2)
            if dropout and not last and len(self.up) < NOISY:
                layers.append(Dropout(dropout, always=noisy))
            self.up.append(nn.Sequential(*layers))
        self.apply(radford)

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for layer in self.down:
            x = layer(x)
            found.append(x)
        for i, layer in enumerate(self.up):
            x = layer(torch.cat([x, found[-1 - i]], 1) if i and self.skips else x)
        return x


class Residual(nn.Module):
    """x + f(x), f two normalised 3x3 convolutions with a rectifier between them; edges are mirrored."""

    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        self.layers = nn.Sequential(
            *mirrored(channels, channels, 3, norm), nn.ReLU(), *mirrored(channels, channels, 3, norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def mirrored(d_in: int, d_out: int, kernel: int, norm: Norm) -> list[nn.Module]:
    """A convolution that keeps the size by mirroring the edges, and its normalisation."""
    padding = kernel // 2
    convolution = nn.Conv2d(d_in, d_out, kernel, padding=padding, padding_mode="reflect", bias=norm.bias)
    return [convolution, *norm.layers(d_out, 2)]


class ResidualGenerator(nn.Sequential):
    """Halvings, residual blocks at the smallest size, and doublings (Johnson et al. 2016, arXiv:1603.08155; Zhu et al.
    2017, arXiv:1703.10593, section 7.2), with 7x7 convolutions at both ends and tanh at the last.

    Args:
        maps: channels of the image, before and after. channels: of the first layer, doubled at each halving.
        depth: halvings. blocks: residual blocks. norm: of all layers but the last.

    >>> ResidualGenerator(1, 4, depth=1, blocks=2, norm=Norm("instance", 0))(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(self, maps: int, channels: int, depth: int, blocks: int, norm: Norm):
        layers = [*mirrored(maps, channels, 7, norm), nn.ReLU()]
        for i in range(depth):
            d_in, d_out = channels << i, channels << (i + 1)
            layers += [nn.Conv2d(d_in, d_out, 3, 2, 1, bias=norm.bias), *norm.layers(d_out, 2), nn.ReLU()]
        layers += [Residual(channels << depth, norm) for _ in range(blocks)]
        for i in reversed(range(depth)):
            d_in, d_out = channels << (i + 1), channels << i
            up = nn.ConvTranspose2d(d_in, d_out, 3, 2, padding=1, output_padding=1, bias=norm.bias)
            layers += [up, *norm.layers(d_out, 2), nn.ReLU()]
        last = nn.Conv2d(channels, maps, 7, padding=3, padding_mode="reflect")
        super().__init__(*layers, last, nn.Tanh())
        self.apply(radford)
