"""Giving back what went in by a code that changes little when x does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.autoencoder import Autoencoder, Autoencoding
from gentrain.objectives.reconstruction import Loss, Reconstruction
from gentrain.types import NonNegativeFloat, PositiveInt
from gentrain.update import Score, Update

ROWS = 32
"""Numbers in a code up to which `auto` takes the Jacobian row by row."""


class Contractive(Reconstruction):
    """The reconstruction's error and λ ‖∂f(x)/∂x‖²_F (Rifai et al. 2011, Contractive Auto-Encoders, ICML).

    The penalty is exact for one layer, where ∂f_j/∂x = f_j (1 - f_j) W_j for a sigmoid, and, by as many backward passes
    as the code has numbers, for any encoder. Hutchinson's estimate is E‖vᵀJ‖² over signs v, one pass a probe. With
    weights that are not tied, a small code and a large decoder would evade it: the paper ties them, and so does
    `model.tied=true`.

    Metrics: the loss under its own name, and `jacobian`, the mean ‖J‖²_F.

    Args:
        weight: λ.
        penalty: `closed` (one layer), `rows` (exact), `hutchinson`, or `auto`: the first of them that can be had with
            a code of at most 32 numbers for `rows`.
        probes: of Hutchinson's estimate.
        loss: as in `Reconstruction`.
    """

    needs = Autoencoder
    compiled = ()

    def __init__(
        self,
        weight: NonNegativeFloat = 0.1,
        penalty: Literal["auto", "closed", "rows", "hutchinson"] = "auto",
        probes: PositiveInt = 1,
        loss: Loss = "auto",
    ):
        super().__init__(loss)
        self.weight, self.penalty, self.probes = weight, penalty, probes

    def require(self, model: Autoencoding) -> None:
        super().require(model)
        assert isinstance(model, Autoencoder)
        if self.penalty == "closed" and single_layer(model) is None:
            raise UsageError(
                "objective.penalty=closed is for an encoder of one layer: set model.hidden=[] and model.network=mlp,"
                " or use rows or hutchinson"
            )

    def forward(self, model: Autoencoding, batch: Batch, progress: float) -> Iterator[Update]:
        assert isinstance(model, Autoencoder)
        errors, penalty, z = self.terms(model, batch.x)
        model.observe(z)
        error, jacobian = errors.mean(), penalty.mean()
        metrics = {self.name(model): error.detach(), "jacobian": jacobian.detach()}
        yield Update(error + self.weight * jacobian, metrics=metrics)

    def validate(self, model: Autoencoding, batch: Batch) -> dict[str, Score]:
        assert isinstance(model, Autoencoder)
        errors, penalty, _ = self.terms(model, batch.x)
        scores = super().validate(model, batch)
        name = self.name(model)
        return {**scores, name: scores[name]._replace(values=errors), "jacobian": Score(penalty, "jacobian", "1")}

    def terms(self, model: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, ‖J‖²_F or its estimate, (B,) each, and the codes."""
        layer = single_layer(model) if self.penalty in ("auto", "closed") else None
        if layer is not None:
            errors, z = self.errors(model, x, x)
            return errors, closed(layer, model.code, z), z
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            errors, z = self.errors(model, x, x)
            exact = self.penalty == "rows" or (self.penalty == "auto" and model.latent_dim <= ROWS)
            penalty = rows(x, z) if exact else hutchinson(x, z, self.probes)
        return errors, penalty, z


def single_layer(model: Autoencoder) -> nn.Linear | None:
    """The encoder's layer, if it has no other."""
    if not isinstance(model.encoder, nn.Sequential):
        return None
    layers = [layer for layer in model.encoder if not isinstance(layer, nn.Flatten)]
    return layers[0] if len(layers) == 1 and isinstance(layers[0], nn.Linear) else None


def closed(layer: nn.Linear, code: nn.Module, z: Tensor) -> Tensor:
    """Σ_j f'_j² ‖W_j‖², (B,), with f' = f (1 - f) of a sigmoid and 1 of a linear code."""
    squares = layer.weight.square().sum(1)
    slope = z * (1 - z) if isinstance(code, nn.Sigmoid) else torch.ones_like(z)
    return slope.square() @ squares


def rows(x: Tensor, z: Tensor) -> Tensor:
    """‖∂z/∂x‖²_F for each example, (B,): a backward pass for each of the code's numbers."""
    total = x.new_zeros(len(x))
    for k in range(z.shape[1]):
        (gradient,) = torch.autograd.grad(z[:, k].sum(), x, create_graph=True)
        total = total + gradient.flatten(1).square().sum(1)
    return total


def hutchinson(x: Tensor, z: Tensor, probes: int) -> Tensor:
    """An unbiased estimate of ‖∂z/∂x‖²_F, (B,): the mean of ‖vᵀJ‖² over vectors v of random signs."""
    total = x.new_zeros(len(x))
    for _ in range(probes):
        v = noise.uniform(*z.shape, device=z.device).round().mul_(2).sub_(1)
        (gradient,) = torch.autograd.grad(z, x, v.to(z.dtype), create_graph=True)
        total = total + gradient.flatten(1).square().sum(1)
    return total / probes
