"""Denoising from where the model's own chain leads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.models.gdae import DenoisingChain
from gentrain.types import PositiveInt
from gentrain.update import Objective, Score, Update


class Walkback(Objective):
    """-log P(x | x̃_k) for corrupted examples x̃_1, …, x̃_K on the model's own way from x (Bengio et al. 2013,
    arXiv:1305.6663, algorithm 1).

    x̃_1 ~ C(x̃ | x); then x_k ~ P(x | x̃_k), x̃_{k+1} ~ C(x̃ | x_k): modes that the chain finds by itself and that are no
    data are so led back to data. All K losses are averaged. With one step it is plain denoising. What the chain comes
    to in the limit of a perfect P is the same (proposition 1); how good P is far from the data is not.

    Metrics: `denoising`, the mean loss in nats, and `first` and `last`, those of x̃_1 and x̃_K. P(x | x̃) is a
    distribution, but its log is no log-likelihood of x: the kind is `denoising`.

    Args:
        steps: K, of the chain.
    """

    needs = DenoisingChain
    kind = "denoising"

    def __init__(self, steps: PositiveInt = 3):
        super().__init__()
        self.steps = steps

    def forward(self, model: DenoisingChain, batch: Batch, progress: float) -> Iterator[Update]:
        losses = [loss.mean() for loss in self.losses(model, batch.x, self.steps)]
        loss = torch.stack(losses).mean()
        metrics = {"denoising": loss.detach(), "first": losses[0].detach(), "last": losses[-1].detach()}
        yield Update(loss, metrics=metrics)

    def validate(self, model: DenoisingChain, batch: Batch) -> dict[str, Score]:
        first = self.losses(model, batch.x, 1)[0]
        return {"denoising": Score(first, self.kind)}

    def losses(self, model: DenoisingChain, x: Tensor, steps: int) -> list[Tensor]:
        """-log P(x | x̃_k) in nats for k = 1, …, `steps`, (B,) each."""
        found, current = [], x
        for k in range(steps):
            p = model.denoise(model.corrupt(current))
            found.append(-p.log_prob(x))
            if k + 1 < steps:
                with torch.no_grad():
                    current = model.draw(p)
        return found
