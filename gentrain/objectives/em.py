"""Expectation maximisation, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch

from gentrain.batch import Batch
from gentrain.models.base import ExpectationMaximisation
from gentrain.noise import of_all_processes
from gentrain.types import PositiveInt, Range
from gentrain.update import Objective, Score, Update


class EM(Objective):
    """Every `batches` batches, s̄_t their statistics: S̄_t = (1 - η_t) S̄_{t-1} + η_t s̄_t, then the M-step from S̄_t.

    Stepwise EM (Cappé & Moulines 2009; Liang & Klein 2009) has η_t = (t + 1)^-decay for t = 0, 1, …; a decay of 1
    weighs all alike that was ever seen, a smaller one forgets what poorer parameters made of early examples. Plain EM
    (Dempster et al. 1977) is η_t = 1 (`decay=null`): where the `batches` are an epoch, or one batch the whole training
    split, its likelihood never falls, but for a prior or a floor that the M-step adds.

    The model's statistics are sums, so S = B S̄/η: what `expect` keeps of them is (1 - η_t) η_{t-1}/η_t.

    Metrics: `log_likelihood` of each batch before it moves anything, in nats.

    Args:
        batches: of one E-step.
        decay: of the rate, above 1/2 up to 1, or None for plain EM.
    """

    needs = ExpectationMaximisation
    parts = ()
    monitor = "log_likelihood"

    def __init__(self, batches: PositiveInt = 1, decay: Annotated[float, Range(0.5, 1, open_low=True)] | None = 0.7):
        super().__init__()
        self.batches, self.decay = batches, decay
        self.seen = 0

    def keep(self, t: int) -> float:
        """What step t keeps of the sums before it."""
        if t == 0 or self.decay is None:
            return 0.0
        before, rate = (float(i) ** -self.decay for i in (t, t + 1))
        return (1 - rate) * before / rate

    @torch.no_grad()
    def forward(self, model: ExpectationMaximisation, batch: Batch, progress: float) -> Iterator[Update]:
        x = of_all_processes(batch.x)
        if self.seen == 0:
            model.start(x)
        step, within = divmod(self.seen, self.batches)
        log_likelihood = model.expect(x, 1.0 if within else self.keep(step))
        if within == self.batches - 1:
            model.maximise()
        self.seen += 1
        yield Update(metrics={"log_likelihood": log_likelihood.mean()})

    @torch.no_grad()
    def validate(self, model: ExpectationMaximisation, batch: Batch) -> dict[str, Score]:
        return {"log_likelihood": Score(model.log_prob(batch.x), "exact")}

    def get_extra_state(self) -> int:
        """Batches seen. Not a buffer: a step would have to ask the device for it."""
        return self.seen

    def set_extra_state(self, state: int) -> None:
        self.seen = state
