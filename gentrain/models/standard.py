"""Models of real data in their own unit."""

from __future__ import annotations

import torch
from torch import Tensor

from gentrain import noise
from gentrain.models.base import Generative, Onto, Standardises
from gentrain.types import Shape

PROJECTIONS = 200
"""What is missed shrinks by 1/16 or more at each where blocks of 4 x 4 pixels are kept."""


class Standardised(Generative, Standardises):
    """A model of z = (x - mean)/scale, (B, D), for real x (B, *shape); both stand in buffers, 0 and 1 to begin with.

    Args:
        each: whether every element has its own scale, its standard deviation over the training set; or all have one,
            the root of their mean variance, so that what hardly varies in the data is not blown up. What never varies
            keeps its unit.
    """

    support = "real"
    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Shape, each: bool):
        super().__init__()
        self.shape, self.each = tuple(shape), each
        self.register_buffer("mean", torch.zeros(shape).flatten())
        self.register_buffer("scale", torch.ones(shape).flatten())

    @torch.no_grad()
    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        scale = deviation.flatten()
        if not self.each:
            scale = scale.square().mean().sqrt().expand_as(scale)
        self.mean.copy_(mean.flatten())
        self.scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))

    @property
    def log_scale(self) -> Tensor:
        """Σ_i log scale_i: log p(x) = log p(z) less this."""
        return self.scale.log().sum()

    def inward(self, x: Tensor) -> Tensor:
        """z of x (B, *shape), (B, D)."""
        return (x.flatten(1) - self.mean) / self.scale

    def outward(self, z: Tensor) -> Tensor:
        """x of z (B, D), (B, *shape)."""
        return (self.mean + self.scale * z).view(-1, *self.shape)

    def agreeing(self, z: Tensor, other: Tensor, onto: Onto) -> Tensor:
        """z moved `onto` what is seen of `other`, all (B, D), in the unit of x."""
        own, wanted = ((self.scale * t).view(-1, *self.shape) for t in (z, other))
        return onto(own, wanted).flatten(1) / self.scale

    def settled(self, x: Tensor, other: Tensor, onto: Onto) -> Tensor:
        """x `onto` what is seen of `other`, all (B, *shape), in the range of `support`, by alternating projections."""
        if self.support == "real":
            return onto(x, other)
        before = onto(x, other).clamp(-1, 1)
        for _ in range(PROJECTIONS):
            after = onto(before, other).clamp(-1, 1)
            if torch.equal(after, before):
                break
            before = after
        return before

    def start(self, n: int) -> Tensor:
        """Where chains may begin: x of z ~ N(0, I), in training from `gentrain.noise`."""
        return self.outward(noise.normal(n, len(self.mean), device=self.mean.device))
