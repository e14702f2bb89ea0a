"""An energy network and the generator that samples it, trained against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gentrain.models.base import Codes
from gentrain.models.energies import Unnormalised
from gentrain.models.gan import GeneratorNetwork
from gentrain.models.layers import StandardNormal, mlp
from gentrain.types import PositiveFloat, PositiveInt, Shape

_leaky = partial(nn.LeakyReLU, 0.2)


class DeepEnergy(GeneratorNetwork, Unnormalised, Codes):
    """p(x) ∝ exp(-E(x)), E(x) = ‖x‖²/σ² - bᵀx - Σ_i softplus(W_iᵀf(x) + c_i), a product of experts over the features f
    of a network; and a generator x = G(z), z ~ N(0, I), that learns to sample it (Kim & Bengio 2016, arXiv:1606.03439).

    No chain is run: samples are the generator's, and follow p(x) as far as that has learned. So Z, and with it any
    likelihood, is unknown; the energy itself is what tells whether an example is strange. G's hidden layers are batch-
    normalised, by whose scales its entropy is approximated. Images live in [-1, 1] (`signed`, G ends in tanh), points
    in the reals (`real`, G ends linear). `codes` are the features.

    Args:
        shape: of one example, an image or a point.
        levels: number of values an element can take in the data, None for reals.
        latent_dim: dimensions of z.
        hidden: units of the generator's hidden layers, at least one.
        energy_hidden: units of f's layers, the last of which are the features; None is the generator's, reversed.
        experts: number of W_i.
        sigma: σ.

    >>> model = DeepEnergy((2,), latent_dim=2, hidden=[8], experts=4)
    >>> x = model.eval().sample(3)
    >>> model.support, x.shape, model.free_energy(x).shape, model.codes(x).shape
    ('real', torch.Size([3, 2]), torch.Size([3]), torch.Size([3, 8]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        latent_dim: PositiveInt = 16,
        hidden: Sequence[PositiveInt] = (128, 256),
        energy_hidden: Sequence[PositiveInt] | None = None,
        experts: PositiveInt = 128,
        sigma: PositiveFloat = 1.0,
    ):
        super().__init__()
        self.shape, size = tuple(shape), math.prod(shape)
        self.support = "real" if levels is None else "signed"
        self.energy = Energy(
            size, list(reversed(hidden)) if energy_hidden is None else list(energy_hidden), experts, sigma
        )
        layers: list[nn.Module] = []
        for d_in, d_out in pairwise([latent_dim, *hidden]):
            layers += [nn.Linear(d_in, d_out, bias=False), nn.BatchNorm1d(d_out), nn.ReLU()]
        bounded = [nn.Tanh()] if levels is not None else []
        self._set_generator(
            nn.Sequential(*layers, nn.Linear(hidden[-1], size), *bounded, nn.Unflatten(1, self.shape)),
            StandardNormal(latent_dim),
        )

    def free_energy(self, x: Tensor) -> Tensor:
        return self.energy(x.flatten(1))

    def entropy(self) -> Tensor:
        """Σ_a log(2πe γ_a²)/2 in nats over the units of G's hidden layers, γ_a the scale of a's batch normalisation:
        the entropy of as many independent Gaussians (arXiv:1606.03439, section 3.2)."""
        scales = torch.cat([layer.weight for layer in self.generator.children() if isinstance(layer, nn.BatchNorm1d)])
        return (scales.abs().clamp_min(1e-6).log() + 0.5 * math.log(2 * math.pi * math.e)).sum()

    def codes(self, x: Tensor) -> Tensor:
        return self.energy.features(x.flatten(1))


class Energy(nn.Module):
    """(B, D) -> E(x) in nats, (B,)."""

    def __init__(self, size: int, hidden: Sequence[int], experts: int, sigma: float):
        super().__init__()
        self.sigma = sigma
        self.features = nn.Sequential(*mlp([size, *hidden], _leaky), _leaky())
        self.experts = nn.Linear(hidden[-1], experts)
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        experts = softplus(self.experts(self.features(x))).sum(1, dtype=torch.float32)
        return x.square().sum(1) / self.sigma**2 - x @ self.bias - experts
