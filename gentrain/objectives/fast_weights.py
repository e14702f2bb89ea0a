"""Persistent contrastive divergence with fast weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gentrain.batch import Batch
from gentrain.models.energies import Harmonium
from gentrain.models.harmonium import Bilinear
from gentrain.objectives.contrastive import INSTANT, Persistent
from gentrain.objectives.refinements import Refinements
from gentrain.types import NonNegativeFloat, NonNegativeInt, OpenFraction, PositiveInt, Shape
from gentrain.update import Update


class FPCD(Persistent):
    """PCD whose chains run on θ + θ_fast (Tieleman & Hinton 2009, ICML, "Using fast weights to improve persistent
    contrastive divergence").

    After each update θ_fast <- decay θ_fast - rate g, with g the gradient of the loss by which θ is stepped. Where a
    chain lingers the fast weights raise the energy, within tens of updates and for as long, and drive it on; so chains
    mix that plain PCD's small steps leave where they are, and θ may learn slowly. With rate 0 it is PCD, bit for bit.

    Args:
        shape, hidden, classes: of the model's units, `${data.shape}` and so on.
        rate: of the fast weights; it has no schedule. decay: of them at each update; the paper's is 19/20.
        k: Gibbs steps an update. particles: chains. exact, refine: as in `ClosedForm`.

    Metrics: `fast_norm`, the norm of W_fast over that of W.
    """

    needs = Bilinear
    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor

    def __init__(
        self,
        shape: Shape,
        hidden: PositiveInt,
        classes: PositiveInt | None = None,
        rate: NonNegativeFloat = 0.02,
        decay: OpenFraction = 0.95,
        k: PositiveInt = 1,
        particles: PositiveInt = 100,
        exact: NonNegativeInt = INSTANT,
        refine: Refinements | None = None,
    ):
        super().__init__(hidden, k, particles, exact, refine)
        self.rate, self.decay = rate, decay
        visible = math.prod(shape) + (classes or 0)
        self.register_buffer("weight", torch.zeros(hidden, visible))
        self.register_buffer("visible_bias", torch.zeros(visible))
        self.register_buffer("hidden_bias", torch.zeros(hidden))

    @property
    def fast(self) -> Mapping[str, Tensor]:
        return {"weight": self.weight, "visible_bias": self.visible_bias, "hidden_bias": self.hidden_bias}

    @torch.no_grad()
    def forward(self, model: Bilinear, batch: Batch, progress: float) -> Iterator[Update]:
        x = model.units(batch.x, batch.y)
        probability = model.hidden_probability(x)
        both = {f"model.{name}": model.get_parameter(name) + fast for name, fast in self.fast.items()}
        grads = self.gradient(model, (x, probability), functional_call(_Chains(model, self), both, ()))
        for name, fast in self.fast.items():
            fast.mul_(self.decay).sub_(grads[name], alpha=self.rate)
        metrics = {"hidden_activity": probability.mean(), "fast_norm": self.weight.norm() / model.weight.norm()}
        yield from self.step(model, grads, metrics)


class _Chains(nn.Module):
    """The chains' advance as a forward pass, to which `functional_call` can give other parameters."""

    def __init__(self, model: Harmonium, objective: Persistent):
        super().__init__()
        self.model, self.advance = model, objective.advance

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.advance(self.model)
