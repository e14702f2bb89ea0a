"""A small residual U-Net for images with a vector beside them: the time of a diffusion, a label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention, silu

from gentrain.errors import UsageError
from gentrain.models.layers import Dropout


def group_norm(channels: int) -> nn.GroupNorm:
    """Up to 8 groups, of 4 channels at least: of a channel alone it would take off what a time or a label adds to it.

    >>> [group_norm(channels).num_groups for channels in (4, 8, 24, 32, 64)]
    [1, 2, 6, 8, 8]
    """
    return nn.GroupNorm(math.gcd(channels, min(8, max(1, channels // 4))), channels)


def zero(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """The layer with weights and biases of 0: what it leads to begins as if it weren't there."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """x + f(x, c): two 3x3 convolutions, each after group norm and SiLU, with a linear map of the vector c added
    between them (Ho et al. 2020, appendix B). It begins as the identity, or as a 1x1 convolution where `d_in` is not
    `d_out`."""

    def __init__(self, d_in: int, d_out: int, width: int, dropout: float):
        super().__init__()
        self.first_norm, self.first = group_norm(d_in), nn.Conv2d(d_in, d_out, 3, padding=1)
        self.condition = nn.Linear(width, d_out)
        self.second_norm, self.second = group_norm(d_out), zero(nn.Conv2d(d_out, d_out, 3, padding=1))
        self.dropout = Dropout(dropout)
        self.skip = nn.Identity() if d_in == d_out else nn.Conv2d(d_in, d_out, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.first(silu(self.first_norm(x))) + self.condition(silu(c))[:, :, None, None]
        return self.skip(x) + self.second(self.dropout(silu(self.second_norm(h))))


class Attention(nn.Module):
    """x + self-attention over the pixels, with one head (Vaswani et al. 2017), after group norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = group_norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in self.qkv(self.norm(x)).flatten(2).chunk(3, 1))
        return x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class UNet(nn.Module):
    """(x, c) -> an image like x: residual blocks at each scale on the way down and on the way up, where each also takes
    what its partner gave on the way down (Ronneberger et al. 2015, arXiv:1505.04597; Ho et al. 2020,
    arXiv:2006.11239). A stride-2 convolution halves the sides, repetition and a convolution double them.

    Args:
        shape: (channels, height, width) of x.
        width: of the vector c.
        channels: feature maps at the largest scale.
        multipliers: feature maps of each scale in `channels`; None is 1, 2, 2, … for as many scales as the sides can
            be halved evenly, down to 4 pixels at least.
        blocks: residual blocks at each scale, on each way.
        attention: between the blocks at the smallest scale.
        patch: side of the squares of pixels that are taken as channels of one, and given back at the end.
        dropout: in each block (see `gentrain.models.layers.Dropout`).

    Raises:
        UsageError: x is no image, or its sides can't be halved so often.

    >>> net = UNet((1, 28, 28), width=4, channels=8)
    >>> net.sides, net(torch.randn(2, 1, 28, 28), torch.randn(2, 4)).shape
    ([(28, 28), (14, 14), (7, 7)], torch.Size([2, 1, 28, 28]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        channels: int = 32,
        multipliers: Sequence[int] | None = None,
        blocks: int = 1,
        attention: bool = False,
        patch: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        if len(shape) != 3:
            raise UsageError(f"model.network=unet takes images, and one example here has shape {shape}; use mlp")
        if any(side % patch for side in shape[1:]):
            raise UsageError(
                f"model.patch={patch}: does not divide the sides of images of {shape[1]}x{shape[2]} pixels"
            )
        self.patch, d_in = patch, shape[0] * patch**2
        self.sides = scales((shape[1] // patch, shape[2] // patch), multipliers)
        multipliers = multipliers or [1, *(2 for _ in self.sides[1:])]
        maps = [channels * each for each in multipliers]

        def block(d_in: int, d_out: int) -> ResidualBlock:
            return ResidualBlock(d_in, d_out, width, dropout)

        self.start = nn.Conv2d(d_in, maps[0], 3, padding=1)
        self.blocks, self.down, self.halvings = blocks, nn.ModuleList(), nn.ModuleList()
        self.up, self.doublings = nn.ModuleList(), nn.ModuleList()
        for i, own in enumerate(maps):
            above = maps[max(i - 1, 0)]
            self.down.extend(block(above if j == 0 else own, own) for j in range(blocks))
            self.up.extend(block(2 * own, own) for _ in range(blocks))
            if i > 0:
                self.halvings.append(nn.Conv2d(above, above, 3, stride=2, padding=1))
                self.doublings.append(nn.Conv2d(own, above, 3, padding=1))
        self.middle = nn.ModuleList([block(maps[-1], maps[-1]), block(maps[-1], maps[-1])])
        self.attention = Attention(maps[-1]) if attention else nn.Identity()
        self.last_norm, self.last = group_norm(maps[0]), zero(nn.Conv2d(maps[0], d_in, 3, padding=1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, width) -> (B, C, H, W), all 0 before training."""
        h = self.start(pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        seen: list[Tensor] = []
        for i, block in enumerate(self.down):
            if i and i % self.blocks == 0:
                h = self.halvings[i // self.blocks - 1](h)
            h = block(h, c)
            seen.append(h)
        first, second = self.middle
        h = second(self.attention(first(h, c)), c)
        for i in reversed(range(len(self.up))):
            h = self.up[i](torch.cat([h, seen.pop()], 1), c)
            if i and i % self.blocks == 0:
                h = self.doublings[i // self.blocks - 1](interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.last(silu(self.last_norm(h)))
        return pixel_shuffle(h, self.patch) if self.patch > 1 else h


def scales(size: tuple[int, int], multipliers: Sequence[int] | None) -> list[tuple[int, int]]:
    """(height, width) at each scale, the largest first; of `multipliers`, or as many as there can be.

    >>> scales((28, 28), None), scales((8, 8), None), scales((9, 9), None), scales((32, 32), [1, 2])
    ([(28, 28), (14, 14), (7, 7)], [(8, 8), (4, 4)], [(9, 9)], [(32, 32), (16, 16)])

    Raises:
        UsageError: a side is odd and should be halved.
    """
    sides = [size]
    while len(sides) < len(multipliers) if multipliers else all(side >= 8 and side % 2 == 0 for side in sides[-1]):
        height, width = sides[-1]
        if height % 2 or width % 2:
            raise UsageError(
                f"model.multipliers={list(multipliers or [])}: images of {size[0]}x{size[1]} can be halved "
                f"{len(sides) - 1} times, so give {len(sides)} numbers at most"
            )
        sides.append((height // 2, width // 2))
    return sides
