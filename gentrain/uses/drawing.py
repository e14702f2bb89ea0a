"""Samples and reconstructions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.models.base import Conditional, Generative, LatentVariable, Reconstructs, given
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
        labels, columns = self._labels(model, n)
        to: dict[str, Any] = {} if labels is None else {"y": labels}
        if isinstance(model, LatentVariable):
            p = model.decode(draw_codes(model, n if labels is None else len(labels)), **to)
            return Drawn(p.sample(), columns, shown=p.mean, arrays=to)
        return Drawn(model.sample(n if labels is None else len(labels), **to), columns, arrays=to)

    def _labels(self, model: Generative, n: int) -> tuple[Tensor | None, int | None]:
        """The labels to draw, (N,), and examples in a row; none for a model that knows no labels."""
        classes = model.classes if isinstance(model, Conditional) else None
        if classes is None:
            if self.label is not None:
                raise UsageError(f"kind.label={self.label}: {type(model).__name__} draws without labels; leave it out")
            return None, None
        if self.label is not None:
            if self.label >= classes:
                raise UsageError(f"kind.label={self.label}: the model knows the labels 0 to {classes - 1}")
            return torch.full((n,), self.label, device=model.device), None
        columns = max(1, n // classes)
        return torch.arange(classes, device=model.device).repeat_interleave(columns), columns


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
