"""An energy that is a network, and Langevin dynamics on it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalised

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.base import Completes, Law
from gentrain.models.energies import EnergyBased
from gentrain.models.layers import mlp
from gentrain.models.pyramid import pyramid
from gentrain.models.standard import Standardised
from gentrain.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Shape


class Langevin(Standardised, EnergyBased, Completes):
    """p(x) ∝ exp(-E(z)), z = (x - mean)/scale, with Langevin dynamics in z.

        z <- z - ε/2 ∂E(z) + √ε ξ,    ξ ~ N(0, I)

    keeps p(x) in the limit of small steps ε. Adjusted, the new z is taken with probability min(1, r) and refused else,
    r = exp(E(z) - E(z')) q(z | z')/q(z' | z) with q the density of the move: that keeps p(x) exactly (Roberts & Tweedie
    1996, Bernoulli 2:341). With `noise` in place of √ε the chain is that of another, colder distribution, near
    exp(-E ε/noise²): what Du & Mordatch (2019, arXiv:1903.08689) do, with ε = 20 and noise 0.005 for pixels in [0, 1].

    Args:
        shape: of one example. each: as of `Standardised`.
        step: ε, in the square of z's unit. steps: of Langevin dynamics in one step of the chain.
        adjusted: whether moves are refused. noise: in place of √ε where they are not; None is √ε.
        burn_in: steps of the chain in `sample`.

    Raises:
        UsageError: noise is given, and moves are adjusted to that of √ε.
    """

    def __init__(
        self,
        shape: Shape,
        each: bool,
        step: float,
        steps: int,
        adjusted: bool,
        noise: float | None,
        burn_in: int,
    ):
        super().__init__(shape, each)
        if adjusted and noise is not None:
            raise UsageError(f"model.noise={noise:g}: has no place in an adjusted chain; say model.adjusted=false")
        self.step, self.steps, self.burn_in = step, steps, burn_in
        self.adjusted, self.noise = adjusted, math.sqrt(step) if noise is None else noise

    @abstractmethod
    def energy(self, z: Tensor) -> Tensor:
        """E(z) in nats, (B,), of z (B, D)."""

    def free_energy(self, x: Tensor) -> Tensor:
        return self.energy(self.inward(x))

    def slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """E(z), (B,), and ∂E(z), (B, D), neither with a gradient."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            energy = self.energy(z)
            (slope,) = torch.autograd.grad(energy.sum(), z)
        return energy.detach(), slope

    def _slope_of(self, z: Tensor, free: Tensor | None) -> tuple[Tensor, Tensor]:
        energy, slope = self.slope(z)
        return energy, slope if free is None else slope * free

    @torch.no_grad()
    def gibbs(self, x: Tensor, k: int) -> Tensor:
        """k steps of the chain, each of `steps` moves."""
        return self._run(x, k) if k else x

    def completion(self, known: Tensor) -> Law:
        return "chain" if self.adjusted else "approximate"

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """By `burn_in` steps of the chain over the missing elements alone, from `start`."""
        filled = torch.where(known, x, self.start(len(x)))
        return torch.where(known, x, self._run(filled, self.burn_in, ~known.flatten(1)))

    @torch.no_grad()
    def _run(self, x: Tensor, k: int, free: Tensor | None = None) -> Tensor:
        """k steps from x, of the elements that are `free`, (B, D), if not of all: the others have no slope and get no
        kick, so that they stay and add nothing to q."""
        z = self.inward(x)
        energy, slope = self._slope_of(z, free)
        for _ in range(k * self.steps):
            kick = noise.normal(*z.shape, device=z.device, dtype=z.dtype)
            kick = kick if free is None else kick * free
            moved = z - 0.5 * self.step * slope + self.noise * kick
            there, slope_there = self._slope_of(moved, free)
            if self.adjusted:
                back = z - moved + 0.5 * self.step * slope_there
                # log q(z|z') - log q(z'|z) = (‖√ε ξ‖² - ‖back‖²)/(2ε)
                log_q = 0.5 * (kick.square().sum(1) - back.square().sum(1) / self.step)
                taken = noise.uniform(len(z), device=z.device).log() < energy - there + log_q
                moved, slope_there = (
                    torch.where(taken[:, None], new, old) for new, old in ((moved, z), (slope_there, slope))
                )
                there = torch.where(taken, there, energy)
            z, energy, slope = moved, there, slope_there
        return self.outward(z)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n independent chains after `burn_in` steps from `start`."""
        return self.gibbs(self.start(n), self.burn_in)


class EnergyNet(Langevin):
    """p(x) ∝ exp(-E(z)) with E(z) = f(z) + (‖z‖² - D)/(2 width²), f a network (Xie et al. 2016, arXiv:1602.03264; Du &
    Mordatch 2019, arXiv:1903.08689; Nijkamp et al. 2020, arXiv:1903.12370).

    The square makes it a density whatever f is, with light tails. It is one over the reals, for images too, which
    come as [0, 1]; samples may reach a little beyond. z has one scale for all elements. The chain is that of
    `Langevin`.

    Args:
        shape: of one example.
        network: `mlp`, or `conv` for images with sides of 8 to 64: stride-2 convolutions, then the layers.
        hidden: units of the hidden layers.
        channels: conv: feature maps of the first layer, doubled at each halving; None is 32.
        width: in the data's standard deviation.
        spectral_norm: whether every layer's largest singular value is held at 1 (Miyato et al. 2018, arXiv:1802.05957).
        step, steps, adjusted, noise, burn_in: of the chain, see `Langevin`.

    Raises:
        UsageError: conv for what is no such image, `channels` without conv, or `noise` in an adjusted chain.

    >>> model = EnergyNet((2,), hidden=[8], burn_in=5)
    >>> x = model.sample(3)
    >>> x.shape, model.free_energy(x).shape, model.gibbs(x, 1).shape
    (torch.Size([3, 2]), torch.Size([3]), torch.Size([3, 2]))
    """

    sampling = ("burn_in",)

    def __init__(
        self,
        shape: Shape,
        network: Literal["mlp", "conv"] = "mlp",
        hidden: Sequence[PositiveInt] = (128, 128),
        channels: PositiveInt | None = None,
        width: PositiveFloat = 1.0,
        spectral_norm: bool = False,
        step: PositiveFloat = 0.01,
        steps: PositiveInt = 10,
        adjusted: bool = True,
        noise: NonNegativeFloat | None = None,
        burn_in: NonNegativeInt = 100,
    ):
        super().__init__(shape, False, step, steps, adjusted, noise, burn_in)
        if network == "mlp" and channels is not None:
            raise UsageError(f"model.channels={channels}: is for model.network=conv; leave it null")
        self.width = width
        if network == "mlp":
            self.network: nn.Module = mlp([math.prod(shape), *hidden, 1], nn.SiLU, bias=False)
        else:
            network_, _ = pyramid(tuple(shape), hidden, 1, 1, channels or 32, nn.SiLU)
            last = list(network_.children())[-1]
            last.register_parameter("bias", None)  # a constant is no part of a density
            self.network = nn.Sequential(nn.Unflatten(1, tuple(shape)), network_)
        if spectral_norm:
            for layer in self.network.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    normalised(layer)

    def start(self, n: int) -> Tensor:
        """x of z ~ N(0, width² I), which p is where f is constant; in training from `gentrain.noise`."""
        return self.mean.view(self.shape) + self.width * (super().start(n) - self.mean.view(self.shape))

    def energy(self, z: Tensor) -> Tensor:
        own = self.network(z)[:, 0].float()
        return own + 0.5 * (z.square().sum(1) - z.shape[1]) / self.width**2
