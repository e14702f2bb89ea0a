"""LAPGAN: a generator for each level of a Laplacian pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain.models.base import Conditional
from gentrain.models.cascade import Cascade, down, sides, up
from gentrain.models.critics import Adversarial
from gentrain.models.labels import beside, one_hot
from gentrain.models.layers import StandardNormal
from gentrain.models.minibatch import Minibatch
from gentrain.models.normalisation import Norm
from gentrain.models.players import conv_critic, dense_critic, dense_generator, leaky
from gentrain.types import PositiveInt, Shape


class LAPGAN(Cascade):
    """A Laplacian pyramid of conditional GANs (Denton et al. 2015, arXiv:1506.05751).

    With d the mean of each 2x2 pixels and u bilinear interpolation, an image I_0 is its pyramid's residuals and the
    coarsest image, exactly:

        I_{k+1} = d(I_k),   h_k = I_k - u(I_{k+1}),   I_k = u(I_{k+1}) + h_k,   k = 0 … K - 1

    The coarsest image comes of a GAN, Ĩ_K = G_K(z_K), and each finer one of a residual that is drawn given the image
    below: Ĩ_k = u(Ĩ_{k+1}) + G_k(z_k, u(Ĩ_{k+1})), brought back into [-1, 1] where it reaches beyond. z_k is a plane of
    noise, one number a pixel, as in the paper. Each level learns by itself, from u(I_{k+1}) of data: `player` is its
    pair of networks for a batch.

    z is all of the noise, z_K first. Labels, if the model knows any, enter every network as planes that are on or off.
    Images live in [-1, 1] (`signed`).

    Args:
        shape: of one example, a square image. levels: number of values an element can take in the data.
        classes: labels 0…classes - 1 that the model is conditional on; None knows none.
        halvings: K, how often the image is halved.
        judges: what the critic of a level k < K sees: `sum`, u(I_{k+1}) + h_k, as in the paper, or `residual`, h_k with
            u(I_{k+1}) beside it as further maps.
        latent_dim: dimensions of z_K. hidden: units of the coarsest generator's layers, which are fully connected as in
            the paper; its critic's are these, reversed.
        channels: maps of each of the two hidden layers of a level's generator, and of its critic's first halving,
            which comes after a convolution with half as many; doubled at each further one.
        norm, discriminator_norm: of the hidden layers of all generators, and of all critics' but for their first.

    Raises:
        UsageError: images that can't be halved so often to 4 pixels or more; labels missing or out of range.

    >>> gan = LAPGAN((1, 8, 8), levels=17, halvings=1, latent_dim=5, hidden=[8], channels=4)
    >>> gan.prior.event_shape, gan.sample(3).shape  # 5 + 8 * 8 numbers
    (torch.Size([69]), torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        classes: PositiveInt | None = None,
        halvings: PositiveInt = 1,
        judges: Literal["sum", "residual"] = "sum",
        latent_dim: PositiveInt = 64,
        hidden: Sequence[PositiveInt] = (256, 512),
        channels: PositiveInt = 32,
        norm: Literal["batch", "none", "layer"] = "batch",
        discriminator_norm: Literal["batch", "none", "layer"] = "none",
    ):
        super().__init__()
        self.shape, self.support, self.classes, self.judges = tuple(shape), "signed", classes, judges
        self.sides = sides("lapgan", self.shape, levels, halvings, f"model.halvings={halvings}")
        norms = Norm(norm, 0), Norm(discriminator_norm, 0)
        maps, labels = self.shape[0], classes or 0
        for k, side in enumerate(self.sides[:-1]):
            seen = maps * (1 if judges == "sum" else 2) + labels
            generator = residual_generator(maps + 1 + labels, maps, channels, norms[0])
            critic = residual_critic(seen, side, channels, norms[1])
            self.add_module(f"level{k}", Level(side**2, generator, critic))
        base = (maps, self.sides[-1], self.sides[-1])
        flat = (math.prod(base) + labels,)
        self.add_module(
            f"level{halvings}",
            Level(
                latent_dim,
                dense_generator(latent_dim + labels, hidden, base, norms[0], bounded=True),
                dense_critic(flat, list(reversed(hidden)), norms[1], Minibatch()),
            ),
        )
        self.steps = tuple(f"level{k}" for k in reversed(range(halvings + 1)))
        self._lengths = [latent_dim, *(side**2 for side in reversed(self.sides[:-1]))]
        self._prior = StandardNormal(sum(self._lengths))

    @property
    def prior(self) -> Distribution:
        return self._prior()

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z), (B, *shape); y (B,) where the model knows labels."""
        image, label = None, self.label(y, len(z))
        for step, own in zip(self.steps, z.split(self._lengths, 1), strict=True):
            below = None if image is None else up(image)
            image = self.generate(step, own, below, label).clamp(-1, 1)
        assert image is not None
        return image

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """n draws, (n, *shape), of the labels y (n,) or of even ones where the model knows labels."""
        if y is None and self.classes:
            y = torch.randint(self.classes, (n,), device=self.device)
        return self.decode(self.prior.sample(torch.Size([n])), y)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """I_0 … I_K of images x (B, *shape)."""
        images = [x]
        for _ in self.sides[1:]:
            images.append(down(images[-1]))
        return images

    def label(self, y: Tensor | None, rows: int) -> Tensor | None:
        """One-hot, (rows, classes), where the model knows labels."""
        return one_hot(self, y, rows) if self.classes else None

    def generate(self, step: str, z: Tensor, below: Tensor | None, label: Tensor | None) -> Tensor:
        """A level's image: u(I_{k+1}), which is `below`, and its residual, or the coarsest one."""
        generator = self.level(step).generator
        if below is None:
            return generator(_with(z, label, maps=False)).float()
        plane = z.view(-1, 1, *below.shape[2:]).to(below.dtype)
        return below + generator(_with(torch.cat([below, plane], 1), label, maps=True)).float()

    def judge(self, step: str, x: Tensor, below: Tensor | None, label: Tensor | None) -> Tensor:
        """The output of a level's critic, (B,), for images x at its size."""
        if below is not None and self.judges == "residual":
            x = torch.cat([x - below, below], 1)
        return self.level(step).discriminator(_with(x, label, maps=below is not None)).float().flatten()

    def player(self, step: str, x: Tensor) -> tuple[Adversarial, Tensor]:
        images = self.pyramid(x)
        k = len(images) - 1 - self.steps.index(step)
        below = up(images[k + 1]) if k + 1 < len(images) else None
        return LevelPlayer(self, step, below), images[k]

    def level(self, step: str) -> Level:
        level = self.get_submodule(step)
        assert isinstance(level, Level)
        return level


class Level(nn.Module):
    """The two networks of a level, and p(z_k) of so many numbers."""

    def __init__(self, latent: int, generator: nn.Module, discriminator: nn.Module):
        super().__init__()
        self.generator, self.discriminator, self.prior = generator, discriminator, StandardNormal(latent)


class LevelPlayer(Adversarial, Conditional):
    """A level as a game sees it: it makes images at its own size from u(I_{k+1}) of a batch, row by row."""

    def __init__(self, model: LAPGAN, step: str, below: Tensor | None):
        super().__init__()
        level = model.level(step)
        self.generator, self.discriminator = level.generator, level.discriminator
        self.classes, self.support, self.step, self.below = model.classes, model.support, step, below
        self._model = (model,)  # no submodule: the networks would be in it twice

    @property
    def prior(self) -> Distribution:
        return self._model[0].level(self.step).prior()

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        model = self._model[0]
        return model.generate(self.step, z, self.below, model.label(y, len(z)))

    def discriminate(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        model = self._model[0]
        return model.judge(self.step, x, self.below, model.label(y, len(x)))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])), y)


def _with(x: Tensor, label: Tensor | None, *, maps: bool) -> Tensor:
    return (x if maps else x.flatten(1)) if label is None else beside(x, label, maps)


def residual_generator(inputs: int, outputs: int, channels: int, norm: Norm) -> nn.Sequential:
    """(B, inputs, H, W) -> (B, outputs, H, W): three convolutions with kernels of 3x3, rectified between."""
    layers: list[nn.Module] = []
    for d_in in (inputs, channels):
        layers += [nn.Conv2d(d_in, channels, 3, padding=1, bias=norm.bias), *norm.layers(channels, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, outputs, 3, padding=1))


def residual_critic(inputs: int, side: int, channels: int, norm: Norm) -> nn.Sequential:
    """(B, inputs, side, side) -> one number an example: a convolution at full size, and then halvings as in DCGAN."""
    few = max(1, channels // 2)
    first = nn.Conv2d(inputs, few, 3, padding=1)
    return nn.Sequential(first, leaky(), *conv_critic((few, side, side), channels, norm, Minibatch()))
