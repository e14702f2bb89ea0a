"""Giving back what went in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.autoencoder import Autoencoding, Restores
from gentrain.models.stack import Stack
from gentrain.update import Objective, Score, Update

Loss = Literal["auto", "squared_error", "cross_entropy"]
UNITS = {"squared_error": "squared error", "cross_entropy": "nats"}


class Reconstruction(Objective):
    """The error of x̂ = g(f(x)), summed over the elements of an example and averaged over the batch.

    squared_error is ‖x - x̂‖². cross_entropy is -Σ_d (x_d log x̂_d + (1 - x_d) log(1 - x̂_d)), for outputs between 0 and
    1: of grey levels a training loss and no likelihood, whose smallest value is not 0.

    Metrics: the loss, under its own name.

    Args:
        loss: `squared_error`, `cross_entropy`, or `auto`: cross_entropy where outputs are logistic.
    """

    needs = Autoencoding
    excludes = (Stack,)  # whose layers are trained before the whole is
    compiled = ("errors",)
    kind = "recon"

    def __init__(self, loss: Loss = "auto"):
        super().__init__()
        self.loss = loss

    def require(self, model: Restores) -> None:
        if self.loss == "cross_entropy" and not model.logistic:
            raise UsageError(
                "objective.loss=cross_entropy is for outputs between 0 and 1, and the model's are linear;"
                " use squared_error or auto"
            )

    def forward(self, model: Autoencoding, batch: Batch, progress: float) -> Iterator[Update]:
        errors, z = self.errors(model, self.seen(batch.x), batch.x)
        model.observe(z)
        loss = errors.mean()
        yield Update(loss, self.parts[0], metrics={self.name(model): loss.detach()})

    def validate(self, model: Restores, batch: Batch) -> dict[str, Score]:
        errors, _ = self.errors(model, self.seen(batch.x), batch.x)
        name = self.name(model)
        return {name: Score(errors, self.kind, UNITS[name])}

    def name(self, model: Restores) -> str:
        """Which loss it is."""
        if self.loss == "auto":
            return "cross_entropy" if model.logistic else "squared_error"
        return self.loss

    def seen(self, x: Tensor) -> Tensor:
        """What the encoder is shown of x."""
        return x

    def code(self, model: Any, seen: Tensor) -> Tensor:
        """What the encoder makes of it."""
        return model.codes(seen)

    def errors(self, model: Restores, seen: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each example x given what the encoder saw of it, (B,), and its code."""
        z = self.code(model, seen)
        if self.name(model) == "cross_entropy":
            loss = binary_cross_entropy_with_logits(model.outputs(z), x, reduction="none")
        else:
            loss = (x - model.restored(z)).square()
        return loss.flatten(1).sum(1), z
