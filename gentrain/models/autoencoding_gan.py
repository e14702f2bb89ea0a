"""A generator against an autoencoder, as BEGAN and energy-based GANs have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.critics import AutoencodingCritic
from gentrain.models.gan import GeneratorNetwork
from gentrain.models.layers import StandardNormal, mlp
from gentrain.models.pyramid import pyramid
from gentrain.types import PositiveInt, Shape


class AutoencodingGAN(GeneratorNetwork, AutoencodingCritic):
    """x = G(z), z ~ N(0, I), against an autoencoder whose error is low on data (Zhao et al., Berthelot et al. 2017).

    D(x) = -mean_d |x_d - x̂_d|^p over the elements of x, x̂ = decoder(encoder(x)), p = 1 or 2. So the error is per
    element, in units of x as G makes it: images live in [-1, 1] (`signed`, both networks end in tanh) and have errors
    up to 2 or 4, points in the reals (`real`). Encoder, decoder and generator have exponential linear units, and G has
    the decoder's form, as in BEGAN (arXiv:1703.10717, section 3.5), and weights of its own; down- and up-sampling is
    by stride-2 convolutions.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        network: of all three: `mlp`, or `conv` for images with sides of 8 to 64.
        latent_dim: dimensions of z, and of the autoencoder's code.
        hidden: units of the encoder's fully connected layers, after its convolutions if it has any; the decoder and G
            mirror them.
        channels: feature maps of the first convolution, doubled at each halving; None is 32. Only for `conv`.
        error: `l1` (p = 1, BEGAN's) or `l2` (p = 2, EBGAN's).

    Raises:
        UsageError: `conv` asked of something that is no image of a fitting size, or `channels` of an mlp.

    >>> gan = AutoencodingGAN((2,), latent_dim=1, hidden=[8])
    >>> x = gan.sample(3)
    >>> gan.reconstruct(x).shape, gan.codes(x).shape, bool((gan.discriminate(x) <= 0).all())
    (torch.Size([3, 2]), torch.Size([3, 1]), True)
    """

    discriminator: nn.ModuleDict

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Literal["mlp", "conv"] = "mlp",
        latent_dim: PositiveInt = 32,
        hidden: Sequence[PositiveInt] = (512, 256),
        channels: PositiveInt | None = None,
        error: Literal["l1", "l2"] = "l1",
    ):
        super().__init__()
        self.shape, self.error = tuple(shape), error
        self.support = "real" if levels is None else "signed"
        if network == "mlp" and channels is not None:
            raise UsageError(f"model.channels={channels} is for model.network=conv; an mlp has model.hidden")

        def pair() -> tuple[nn.Module, nn.Module]:
            if network == "conv":
                down, up = pyramid(self.shape, list(hidden), latent_dim, latent_dim, channels or 32, nn.ELU, bias=True)
            else:
                size = math.prod(self.shape)
                down = nn.Sequential(nn.Flatten(), *mlp([size, *hidden, latent_dim], nn.ELU))
                up = nn.Sequential(*mlp([latent_dim, *reversed(hidden), size], nn.ELU), nn.Unflatten(1, self.shape))
            return down, up if levels is None else nn.Sequential(*up, nn.Tanh())

        self._set_generator(pair()[1], StandardNormal(latent_dim))
        self.discriminator = nn.ModuleDict(dict(zip(("encoder", "decoder"), pair(), strict=True)))

    def codes(self, x: Tensor) -> Tensor:
        return self.discriminator["encoder"](x).float()

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.discriminator["decoder"](self.codes(x)).float()

    def discriminate(self, x: Tensor) -> Tensor:
        off = (x - self.reconstruct(x)).flatten(1)
        return -(off.abs() if self.error == "l1" else off.square()).mean(1)
