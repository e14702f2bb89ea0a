"""Maximum likelihood."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gentrain.batch import Batch
from gentrain.models.base import Accumulates, Density, given, kind_given
from gentrain.update import Objective, Score, Update


class Likelihood(Objective):
    """Minimises -log p(x) in nats, averaged over the batch: of a conditional model -log p(x|y).

    The expectation over the data is the cross-entropy H(p_data, p), which is KL(p_data ‖ p) and a constant.
    """

    needs = Density
    excludes = (Accumulates,)
    monitor = "log_likelihood"

    def __init__(self) -> None:  # takes nothing, and says so where `config` reads it
        super().__init__()

    def forward(self, model: Density, batch: Batch, progress: float) -> Iterator[Update]:
        log_likelihood = model.log_prob(batch.x, **given(model, batch.y)).mean()
        yield Update(-log_likelihood, metrics={"log_likelihood": log_likelihood.detach()})

    @torch.no_grad()
    def validate(self, model: Density, batch: Batch) -> dict[str, Score]:
        values = model.log_prob(batch.x, **given(model, batch.y))
        return {"log_likelihood": Score(values, kind_given(model, "exact"))}
