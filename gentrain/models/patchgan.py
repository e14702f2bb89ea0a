"""Critics of images: of each patch by itself, or of the whole."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.layers import LARGEST, SMALLEST, halve
from gentrain.models.minibatch import Minibatch
from gentrain.models.normalisation import Norm
from gentrain.models.players import conv_critic, leaky, radford

PATCHES = {1: 0, 16: 1, 34: 2, 70: 3}
"""Sides of patches, and how often the critic of each halves the image."""


class PatchGAN(nn.Sequential):
    """(B, channels, height, width) -> (B, h, w): a number for every patch (Isola et al. 2017, arXiv:1611.07004, 6.1.2).

    Each number is a function of a square of `patch` x `patch` pixels, as far as it lies in the image, and neighbouring
    squares overlap: convolutions of 4x4 with a stride of 2, as many as PATCHES says, and two with a stride of 1; with a
    patch of 1 all are of 1x1. The first layer is not normalised. Weights start from N(0, 0.02²).

    Args:
        maps: channels of the image. size: its height and width. channels: of the first layer, doubled in each of the
            next three. norm: of the hidden layers. patch: 1, 16, 34 or 70.

    Raises:
        UsageError: the patch is none of these, or the image is too small for it.

    >>> import torch
    >>> PatchGAN(1, (28, 28), 4, Norm("none", 0), patch=16)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 12, 12])
    """

    def __init__(self, maps: int, size: tuple[int, ...], channels: int, norm: Norm, patch: int):
        fitting = [side for side in PATCHES if min(patches(size, side)) > 0]
        if patch not in fitting:
            raise UsageError(
                f"model.patch={patch}: images of {size[0]}x{size[1]} pixels are judged by patches of"
                f" {', '.join(map(str, fitting))}; take one of them"
            )
        widths = [channels * min(2**i, 8) for i in range(PATCHES[patch] + 1)]
        if patch == 1:
            layers: list[nn.Module] = [nn.Conv2d(maps, channels, 1), leaky(), nn.Conv2d(channels, 2 * channels, 1)]
            layers += [leaky(), nn.Conv2d(2 * channels, 1, 1)]
        else:
            layers = [halve(maps, channels), leaky()]
            for d_in, d_out in pairwise(widths[:-1]):
                layers += [halve(d_in, d_out, bias=norm.bias), *norm.layers(d_out, 2), leaky()]
            layers += [nn.Conv2d(widths[-2], widths[-1], 4, padding=1, bias=norm.bias)]
            layers += [*norm.layers(widths[-1], 2), leaky(), nn.Conv2d(widths[-1], 1, 4, padding=1)]
        super().__init__(*layers)
        self.apply(radford)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(1)


def patches(size: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """How many patches there are down and across; none of an image that is too small for them.

    >>> patches((28, 28), 16), patches((28, 28), 70), patches((8, 8), 34)
    ((12, 12), (1, 1), (0, 0))
    """
    if patch == 1:
        return size
    return tuple(max((side >> PATCHES[patch]) - 2, 0) for side in size)


def image_critic(maps: int, size: tuple[int, ...], channels: int, norm: Norm, patch: int | None) -> nn.Module:
    """A critic of images (B, maps, *size): of patches, or, where `patch` is None, DCGAN's of the whole.

    Raises:
        UsageError: the image doesn't fit it.
    """
    if patch is not None:
        return PatchGAN(maps, size, channels, norm, patch)
    if size[0] != size[1] or not SMALLEST <= size[0] <= LARGEST:
        raise UsageError(
            f"model.patch=null: a critic of whole images takes square ones with a side of {SMALLEST} to {LARGEST}"
            f" pixels, not {size[0]}x{size[1]}; take model.patch=1 or 16"
        )
    return conv_critic((maps, *size), channels, norm, Minibatch()).apply(radford)
