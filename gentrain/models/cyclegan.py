"""CycleGAN and DiscoGAN: translation learned from two domains that nobody has matched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.image_to_image import ResidualGenerator, UNetGenerator, depth_of, depths
from gentrain.models.minibatch import Minibatch
from gentrain.models.normalisation import Norm
from gentrain.models.patchgan import image_critic
from gentrain.models.players import dense_critic, dense_generator
from gentrain.models.translation import JudgedDomains, KeepsInputs
from gentrain.types import PositiveInt, Shape

USUAL = 2
"""Halvings of a residual generator, where the sides bear them."""


class CycleGAN(KeepsInputs, JudgedDomains):
    """x = F(pair) and pair = G(x), each against a critic of its own domain (Zhu et al. 2017, arXiv:1703.10593).

    Nothing says which example of the one domain goes with which of the other. What the critics see is whether the
    translations are distributed as the other domain is; that both ways undo each other makes them invertible. Any
    invertible map that keeps a domain's distribution, put before or behind, gives another pair of networks that no loss
    can tell from the first: what these maps are is for the networks' bias to settle, and for the identity term.

    With the encoder and decoder, a critic of whole images and the terms of `objective=discogan` it is DiscoGAN (Kim et
    al. 2017, arXiv:1703.05192). Images live in [-1, 1] (`signed`), points in the reals (`real`).

    Args:
        shape: of one example, an image or a point. levels: values an element can take in the data, None for reals.
        network: of both generators: `resnet` as in the paper; `encoder_decoder`, DiscoGAN's; `unet`, the same with
            connections across; or `mlp`, with which the critics are fully connected too. `auto` is resnet for images
            with even sides of 8 pixels and more, else mlp.
        channels: resnet, unet, encoder_decoder: feature maps of the first layer, doubled at each halving.
        depth: their halvings; None is two (resnet), or as many as the sides bear. blocks: resnet's residual blocks; the
            paper has 6 at 128 pixels.
        hidden: mlp: units of the hidden layers, of the critics' in reversed order.
        norm: of the generators' hidden layers, see `Norm`; mlp has none. discriminator_norm: of the critics' but the
            first; None is the same.
        patch: side of the squares that a critic of images judges, 1, 16, 34 or 70 pixels; None is the whole image.
        discriminator_channels: feature maps of a critic's first layer; None is as many as the generators'.
        inputs: examples that it keeps to draw samples from.

    Raises:
        UsageError: images that can't be halved so often or have no such patches, or a network of images for points.

    >>> import torch
    >>> model = CycleGAN((1, 28, 28), levels=256, channels=4)
    >>> x = torch.zeros(3, 1, 28, 28)
    >>> model.translate(model.translate_back(x)).shape, model.judge(x).shape
    (torch.Size([3, 1, 28, 28]), torch.Size([432]))
    """

    generator: nn.ModuleDict
    discriminator: nn.ModuleDict

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Literal["auto", "resnet", "encoder_decoder", "unet", "mlp"] = "auto",
        channels: PositiveInt = 16,
        depth: PositiveInt | None = None,
        blocks: PositiveInt = 2,
        hidden: Sequence[PositiveInt] = (128, 128),
        norm: Literal["batch", "none", "layer", "instance"] = "instance",
        discriminator_norm: Literal["batch", "none", "layer", "instance"] | None = None,
        patch: PositiveInt | None = 16,
        discriminator_channels: PositiveInt | None = None,
        inputs: PositiveInt = 64,
    ):
        super().__init__(shape, inputs)
        self.support = "real" if levels is None else "signed"
        image = len(self.shape) == 3 and levels is not None
        if network == "auto":
            network = "resnet" if image and depths(self.shape[1:]) and min(self.shape[1:]) >= 8 else "mlp"
        if network != "mlp" and not image:
            raise UsageError(
                f"model.network={network} takes images, and one example here has shape {self.shape}; use mlp"
            )

        def generator() -> nn.Module:
            if network == "mlp":
                size = math.prod(self.shape)
                return nn.Sequential(nn.Flatten(), dense_generator(size, hidden, self.shape, none, bounded=image))
            maps, size = self.shape[0], self.shape[1:]
            if network == "resnet":
                if min(size) < 8:
                    raise UsageError(f"model.network=resnet takes sides of 8 pixels or more, not {min(size)}; use mlp")
                return ResidualGenerator(maps, channels, depth_of(size, depth, USUAL), blocks, norms[0])
            return UNetGenerator(maps, channels, depth_of(size, depth, 8), norms[0], skips=network == "unet")

        def critic() -> nn.Module:
            if network == "mlp":
                return dense_critic(self.shape, list(reversed(hidden)), none, Minibatch())
            return image_critic(self.shape[0], self.shape[1:], discriminator_channels or channels, norms[1], patch)

        none, norms = Norm("none", 0), (Norm(norm, 0), Norm(discriminator_norm or norm, 0))
        self.generator = nn.ModuleDict({"forth": generator(), "back": generator()})
        self.discriminator = nn.ModuleDict({"x": critic(), "pair": critic()})

    def translate(self, pair: Tensor) -> Tensor:
        return self.generator["forth"](pair).float()

    def translate_back(self, x: Tensor) -> Tensor:
        return self.generator["back"](x).float()

    def judge(self, x: Tensor) -> Tensor:
        return self.discriminator["x"](x).float().flatten()

    def judge_pair(self, pair: Tensor) -> Tensor:
        return self.discriminator["pair"](pair).float().flatten()
