"""What may be added to any contrastive update of a bilinear machine: centering, sparsity, a bound on weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.energies import Harmonium
from gentrain.models.harmonium import Bilinear, BinaryHidden
from gentrain.types import Fraction, NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt, Shape


class Refinements(nn.Module):
    """Changes the gradient of an RBM before a step, and its weights after it. Each part is off where it is null.

    Centering is the enhanced gradient on ordinary parameters. With offsets μ of the visible and λ of the hidden units,
    running means over data, and the gradient G of the loss,

        ∇W = G_W - λ G_bᵀ - G_c μᵀ,    ∇b = G_b - ∇Wᵀ λ,    ∇c = G_c - ∇W μ,

    which is plain gradient descent on the parameters of E = -(v-μ)ᵀb' - (h-λ)ᵀc' - (h-λ)ᵀW(v-μ): flipping bits of the
    data flips what is learned (Montavon & Müller 2012; Melchior et al. 2016, JMLR 17(99)).

    Sparsity adds cost (q - target) to ∇c, and its product with the mean of v to ∇W, where q is a damped mean of the
    hidden units' activity on data: the gradient of their cross-entropy with the target (Hinton 2010, section 11; the
    form is that of Salakhutdinov & Hinton's code of 2009). It comes before centering.

    The bound: after each step a hidden unit's weights are scaled down to the norm `max_norm` where they exceed it.

    Args:
        shape, hidden, classes: of the model's units, `${data.shape}` and so on, for centering and sparsity.
        centering: share of a batch's mean in the offsets, which begin at 1/2: 0.01 is usual, 0 leaves them there.
        sparsity: the target, where q begins. sparsity_cost: as above. sparsity_damping: share of q that is kept.
        max_norm: of the weights of a hidden unit.

    Raises:
        UsageError: the model has no such units, or others than those it was made for.
    """

    visible_mean: Tensor
    hidden_mean: Tensor
    activity: Tensor

    def __init__(
        self,
        shape: Shape | None = None,
        hidden: PositiveInt | None = None,
        classes: PositiveInt | None = None,
        centering: Fraction | None = None,
        sparsity: OpenFraction | None = None,
        sparsity_cost: NonNegativeFloat = 0.001,
        sparsity_damping: OpenFraction = 0.9,
        max_norm: PositiveFloat | None = None,
    ):
        super().__init__()
        self.centering, self.max_norm = centering, max_norm
        self.sparsity, self.cost, self.damping = sparsity, sparsity_cost, sparsity_damping
        kept = [name for name, value in (("centering", centering), ("sparsity", sparsity)) if value is not None]
        if kept and (shape is None or hidden is None):
            raise UsageError(
                f"objective.refine.{kept[0]}: needs objective.refine.shape and objective.refine.hidden; leave them"
                " ${data.shape} and ${oc.select:model.hidden,null}"
            )
        if shape is not None and hidden is not None:
            if centering is not None:
                self.register_buffer("visible_mean", torch.full((math.prod(shape) + (classes or 0),), 0.5))
                self.register_buffer("hidden_mean", torch.full((hidden,), 0.5))
            if sparsity is not None:
                self.register_buffer("activity", torch.full((hidden,), float(sparsity)))

    def require(self, model: Harmonium) -> None:
        """Refuse a model that has not the units that the chosen parts are about."""
        chosen = {"centering": self.centering, "sparsity": self.sparsity, "max_norm": self.max_norm}
        for name, value in chosen.items():
            if value is None:
                continue
            option = f"objective.refine.{name}={value:g}"
            if not isinstance(model, BinaryHidden if name == "sparsity" else Bilinear):
                kind = "binary hidden units" if name == "sparsity" else "a bilinear energy -hᵀWv - bᵀv - cᵀh"
                raise UsageError(f"{option}: is for {kind}, which {type(model).__name__} has not; set it to null")
            has = {"centering": ("visible_mean", model.visible), "sparsity": ("activity", model.hidden)}.get(name)
            if has is not None and len(getattr(self, has[0])) != has[1]:
                raise UsageError(
                    f"{option}: was made for {len(getattr(self, has[0]))} units, and the model has {has[1]}; leave"
                    " objective.refine.shape, hidden and classes as they are, and set it to null for layers of a stack"
                )

    @torch.no_grad()
    def gradient(self, grads: Mapping[str, Tensor], v: Tensor, probability: Tensor) -> dict[str, Tensor]:
        """The gradient to step by, from that of the loss and the units' states on data v (B, D), E[h | v] (B, H)."""
        W, b, c = (grads[name] for name in ("weight", "visible_bias", "hidden_bias"))
        if self.sparsity is not None:
            self.activity.lerp_(batch_mean(probability), 1 - self.damping)
            pull = self.cost * (self.activity - self.sparsity)
            W, c = W + torch.outer(pull, batch_mean(v)), c + pull
        if self.centering is not None:
            mu, lam = self.visible_mean, self.hidden_mean
            mu.lerp_(batch_mean(v), self.centering)
            lam.lerp_(batch_mean(probability), self.centering)
            (W,), (b, c) = centred([W], [b, c], [mu, lam])
        return {**grads, "weight": W, "visible_bias": b, "hidden_bias": c}

    @torch.no_grad()
    def project(self, model: Bilinear) -> None:
        """After a step: bring the weights within their bound."""
        if self.max_norm is not None:
            model.weight.copy_(torch.renorm(model.weight, p=2, dim=0, maxnorm=self.max_norm))


def centred(
    weights: Sequence[Tensor], biases: Sequence[Tensor], means: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """A gradient along which a step is one of the machine of layers h_0 … h_L whose energy is written in h - λ,
    E = -Σ_l (h_l - λ_l)ᵀ W_l (h_{l-1} - λ_{l-1}) - Σ_l c'_lᵀ (h_l - λ_l).

    c_l = c'_l - W_l λ_{l-1} - W_{l+1}ᵀ λ_{l+1}, so ∂W' = ∂W - ∂c_l λ_{l-1}ᵀ - λ_l ∂c_{l-1}ᵀ and ∂c' = ∂c; and as W
    changes, c does so too.

    Args:
        weights: ∂W_1 … ∂W_L. biases: ∂c_0 … ∂c_L. means: λ_0 … λ_L. An RBM is of two layers, L = 1.
    """
    pairs = zip(weights, pairwise(biases), pairwise(means), strict=True)
    moved = [g - torch.outer(above, low) - torch.outer(high, below) for g, (below, above), (low, high) in pairs]
    shifted = list(biases)
    for i, g in enumerate(moved):
        shifted[i] = shifted[i] - means[i + 1] @ g
        shifted[i + 1] = shifted[i + 1] - g @ means[i]
    return moved, shifted


def batch_mean(x: Tensor) -> Tensor:
    """Over the whole batch, where several processes share it, (units,), float32."""
    return noise.of_all_processes(x.flatten(1).mean(0, keepdim=True, dtype=torch.float32)).mean(0)
