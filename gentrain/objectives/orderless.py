"""Maximum likelihood over all orders at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.models.base import OrderAgnostic
from gentrain.update import Objective, Score, Update


class Orderless(Objective):
    """Minimises -log p_o(x) in nats averaged over all D! orders o (Uria, Murray & Larochelle 2014, arXiv:1310.1757).

    Of one random order and place an example: with the first d elements known, d uniform in 0…D-1, all others are
    predicted, and

        D/(D - d) Σ_{i not known} log p(x_i | known)

    has the mean over orders of log p_o(x) as its expectation. It is no value of any example's likelihood: `evaluate`
    takes log p(x) along the model's own orders.
    """

    needs = OrderAgnostic
    monitor = "orderless"

    def __init__(self) -> None:  # takes nothing, and says so where `config` reads it
        super().__init__()

    def forward(self, model: OrderAgnostic, batch: Batch, progress: float) -> Iterator[Update]:
        value = self.estimate(model, batch.x).mean()
        yield Update(-value, metrics={"orderless": value.detach()})

    @torch.no_grad()
    def validate(self, model: OrderAgnostic, batch: Batch) -> dict[str, Score]:
        return {"orderless": Score(self.estimate(model, batch.x), "orderless")}

    def estimate(self, model: OrderAgnostic, x: Tensor) -> Tensor:
        """An unbiased estimate of the mean over orders of log p_o(x), (B,)."""
        size = x[0].numel()
        draws = noise.uniform(len(x), size + 1, device=x.device)
        count = (draws[:, :1] * size).floor()
        known = draws[:, 1:].argsort(1).argsort(1) < count
        found = model.log_conditionals(x, known.view_as(x)).flatten(1)
        return torch.where(known, 0, found).sum(1) * (size / (size - count[:, 0]))
