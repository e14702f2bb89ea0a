"""Learning without gradients: every batch is taken in, in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gentrain.batch import Batch
from gentrain.models.base import Accumulates, Density
from gentrain.noise import of_all_processes
from gentrain.update import Objective, Score, Update


class Counting(Objective):
    """Hands every batch to the model: one epoch is the whole fit, a further one counts the same examples again.

    Metrics: `examples` taken in at a step and, of a model with a density, `log_likelihood` of each batch just before it
    is taken in (Dawid's prequential score, in nats): a held-out number from training data, as long as no example has
    come a second time.
    """

    needs = Accumulates
    parts = ()
    monitor = "log_likelihood"

    def __init__(self) -> None:  # takes nothing, and says so where `config` reads it
        super().__init__()

    @torch.no_grad()
    def forward(self, model: Accumulates, batch: Batch, progress: float) -> Iterator[Update]:
        x = of_all_processes(batch.x)
        metrics = {"log_likelihood": model.log_prob(x).mean()} if isinstance(model, Density) else {}
        model.accumulate(x)
        yield Update(metrics={**metrics, "examples": torch.full((), float(len(x)), device=x.device)})

    @torch.no_grad()
    def validate(self, model: Accumulates, batch: Batch) -> dict[str, Score]:
        return {"log_likelihood": Score(model.log_prob(batch.x), "exact")} if isinstance(model, Density) else {}
