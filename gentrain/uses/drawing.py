"""Samples and reconstructions."""

from __future__ import annotations

from typing import Any

import torch

from gentrain.errors import UsageError
from gentrain.models.base import Conditional, Generative, LatentVariable, Reconstructs, each_label, given
from gentrain.types import NonNegativeInt
from gentrain.uses.base import Data, Drawn, Use, batch, draw_codes


class Prior(Use):
    """Examples drawn from the model.

    Of a latent-variable model the picture shows the means of p(x|z), as is the custom for images, and the NPZ file
    holds draws from it. Of a conditional model every label gets a row.

    Args:
        label: of a conditional model, the one label to draw; None draws all, as many of each.
    """

    conditional = True

    def __init__(self, label: NonNegativeInt | None = None):
        self.label = label

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        to, columns = each_label(model, n) if self.label is None else (self._one(model, self.label, n), None)
        n = len(to["y"]) if to else n
        if isinstance(model, LatentVariable):
            p = model.decode(draw_codes(model, n), **to)
            return Drawn(p.sample(), columns, shown=p.mean, arrays=to)
        return Drawn(model.sample(n, **to), columns, arrays=to)

    @staticmethod
    def _one(model: Generative, label: int, n: int) -> dict[str, Any]:
        classes = model.classes if isinstance(model, Conditional) else None
        if not classes:
            raise UsageError(f"kind.label={label}: {type(model).__name__} draws without labels; leave it out")
        if label >= classes:
            raise UsageError(f"kind.label={label}: the model knows the labels 0 to {classes - 1}")
        return {"y": torch.full((n,), label, device=model.device)}


class Reconstruct(Use):
    """Test examples, each followed by its reconstruction."""

    needs = (Reconstructs,)
    conditional = True

    def __init__(self) -> None:  # takes nothing, and says so where `config` reads it
        super().__init__()

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        assert isinstance(model, Reconstructs)
        shown = batch(data, n)
        x = shown.x
        pairs = torch.stack([x.float(), model.reconstruct(x, **given(model, shown.y)).float()], dim=1).flatten(0, 1)
        return Drawn(pairs, columns=8)
