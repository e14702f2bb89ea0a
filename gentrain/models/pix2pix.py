"""pix2pix: translation learned from pairs, with a critic beside the error."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.models.image_to_image import UNetGenerator, depth_of
from gentrain.models.normalisation import Norm
from gentrain.models.patchgan import image_critic
from gentrain.models.translation import JudgedPairs, KeepsInputs
from gentrain.types import OpenFraction, PositiveInt, Shape


class Pix2Pix(KeepsInputs, JudgedPairs):
    """x = G(pair, z): a U-Net G whose dropout is the noise z, against a critic of pairs by patches (Isola et al. 2017,
    arXiv:1611.07004).

    As in the paper the dropout goes on in translating, so that a translation is a draw, if one of little variety
    (section 3.1). There batch normalisation goes by the statistics of the batch that is translated, which is one image;
    here it goes by those of training, and an example's translation does not depend on its neighbours.

    Images live in [-1, 1] (`signed`).

    Args:
        shape: of one example, an image with even sides. levels: values an element can take in the data.
        channels: feature maps of G's first layer, doubled in each of the next three.
        depth: G's halvings; None is as many as the sides bear.
        skips: G's connections across; without, it is the encoder-decoder that the paper compares with.
        dropout: probability of a unit of G to be dropped. noisy: in translating too.
        norm: of G's hidden layers, see `Norm`. discriminator_norm: of the critic's but the first; None is the same.
        patch: side of the squares that the critic judges, 1, 16, 34 or 70 pixels; None is the whole image.
        discriminator_channels: feature maps of the critic's first layer; None is as many as G's.
        inputs: examples that it keeps to draw samples from.

    Raises:
        UsageError: no images, or such as can't be halved so often or have no such patches.

    >>> model = Pix2Pix((1, 28, 28), levels=256, channels=4)
    >>> pair = torch.zeros(3, 1, 28, 28)
    >>> model.translate(pair).shape, model.judge(pair, pair).shape  # 12 x 12 patches of 16 x 16 pixels
    (torch.Size([3, 1, 28, 28]), torch.Size([432]))
    """

    pairs = ("paired",)

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        channels: PositiveInt = 32,
        depth: PositiveInt | None = None,
        skips: bool = True,
        dropout: OpenFraction = 0.5,
        noisy: bool = True,
        norm: Literal["batch", "none", "layer", "instance"] = "batch",
        discriminator_norm: Literal["batch", "none", "layer", "instance"] | None = None,
        patch: PositiveInt | None = 16,
        discriminator_channels: PositiveInt | None = None,
        inputs: PositiveInt = 64,
    ):
        super().__init__(shape, inputs)
        if len(self.shape) != 3 or levels is None:
            raise UsageError(f"model=pix2pix takes images, and one example here has shape {self.shape}")
        maps, *size = self.shape
        depth = depth_of(tuple(size), depth, 8)
        self.support = "signed"
        self.noisy = noisy and dropout > 0 and depth > 1
        norms = Norm(norm, 0), Norm(discriminator_norm or norm, 0)
        self.generator = UNetGenerator(maps, channels, depth, norms[0], dropout, noisy, skips)
        self.discriminator = image_critic(2 * maps, tuple(size), discriminator_channels or channels, norms[1], patch)

    def translate(self, pair: Tensor) -> Tensor:
        return self.generator(pair).float()

    def judge(self, x: Tensor, pair: Tensor) -> Tensor:
        return self.discriminator(torch.cat([x, pair], 1)).float().flatten()
