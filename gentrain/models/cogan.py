"""CoGAN: pairs that nobody has matched, by two generators of one code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from gentrain.models.coupled import Coupled, CoupledCritic, Layout, Outwards
from gentrain.models.domains import Couples
from gentrain.models.layers import StandardNormal
from gentrain.types import PositiveInt, Shape


class CoGAN(Coupled, Couples):
    """x = G_x(z) and pair = G_pair(z) of one z ~ N(0, I), and a critic of each domain (Liu & Tuzel 2016,
    arXiv:1606.07536).

    The first layers of the generators are tied, and the last ones of the critics: what a code means is decided in
    layers that both domains share, and only the layers at the image, one of each network here, are their own. So a code
    gives two examples that belong together, although the critics see the domains apart.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        network: `mlp`, or `conv` for images with sides of 8 to 64. hidden, channels: see `Layout`.
        latent_dim: dimensions of z.
        norm: of the generators. discriminator_norm: of the critics.

    Raises:
        UsageError: as of `Layout`.

    >>> model = CoGAN((1, 8, 8), levels=17, latent_dim=4, hidden=[16]).eval()
    >>> z = model.prior.sample((3,))
    >>> model.decode(z).shape, model.decode_pair(z).shape
    (torch.Size([3, 1, 8, 8]), torch.Size([3, 1, 8, 8]))
    """

    generator: Outwards

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 64,
        hidden: Sequence[PositiveInt] = (512, 256),
        channels: PositiveInt | None = None,
        norm: Literal["none", "batch", "layer"] = "batch",
        discriminator_norm: Literal["none", "batch", "layer"] = "none",
    ):
        super().__init__()
        self.shape = tuple(shape)
        layouts = [
            Layout(self.shape, levels is not None, network, tuple(hidden), channels, kind)
            for kind in (norm, discriminator_norm)
        ]
        self.support = "real" if levels is None else "signed"
        self._prior = StandardNormal(latent_dim)
        self.generator, self.discriminator = Outwards(layouts[0], latent_dim), CoupledCritic(layouts[1])

    @property
    def prior(self) -> Distribution:
        return self._prior()

    def decode(self, z: Tensor) -> Tensor:
        return self.generator.to_x(z)

    def decode_pair(self, z: Tensor) -> Tensor:
        return self.generator.to_pair(z)

    def decode_both(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Both, of one pass through what they share."""
        return self.generator.to_both(z)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))
