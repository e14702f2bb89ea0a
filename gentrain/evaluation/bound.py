"""The variational bound of a machine in layers, less an annealed log Z."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gentrain.evaluation.ais import MURRAY, Annealing, found_on_the_way
from gentrain.evaluation.estimator import Finding, Subject
from gentrain.evaluation.likelihood import findings, over_examples
from gentrain.models.energies import Bounded
from gentrain.types import Fraction, NonNegativeFloat, PositiveInt

BASE = 10_000
"""Training examples whose units' mean the path begins at: any beginning is right, a near one needs fewer steps."""


class Bound(Annealing):
    """The mean lower bound of log p*(x) less log Z: for DBNs `dbn-bound`, for DBMs `dbm-bound` (Salakhutdinov 2008).

    Where log Z can be summed it is exact, and the number bounds log p(x) from below. Else log Ẑ is annealed to, which
    is too low in expectation: the number may then lie above the truth, as an AIS likelihood may. Rows say which in
    `partition`, and give the interval log(Ẑ ± 3σ̂) of an annealed one.

    Args:
        draws: evaluations of the bound an example, whose mean is taken; 1 where it takes no draws.
        chains: M, independent runs. chunk: of them at a time.
        schedule: [end, steps] of each segment of β; the last ends at 1.
        smoothing: of the base rates, towards 1, as in `RBM.tempered`.
        exact: sum log Z where that is possible.
    """

    needs = (Bounded,)

    def __init__(
        self,
        draws: PositiveInt = 20,
        chains: PositiveInt = 100,
        schedule: Sequence[tuple[Fraction, PositiveInt]] = MURRAY,
        smoothing: NonNegativeFloat = 0.05,
        exact: bool = True,
        chunk: PositiveInt = 1000,
    ):
        super().__init__(chains, schedule, smoothing, chunk)
        self.draws, self.exact = draws, exact

    def unfit(self, subject: Subject) -> str | None:
        if isinstance(subject.model, Bounded) and subject.model.support != "binary":
            return (
                "takes grey levels for probabilities of bits, which have no likelihood; train it with model.grey=false"
            )
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, Bounded)
        log_z, settings = self._partition(subject, model)
        draws = self.draws if model.bound_draws else 1

        def of(batch: Any) -> torch.Tensor:
            return torch.stack([model.log_bound(batch.x).double() for _ in range(draws)]).mean(0) - log_z

        values = over_examples(subject, model.bound_kind, of)
        yield from findings(subject, "log_likelihood", model.bound_kind, values, **settings)

    def _partition(self, subject: Subject, model: Bounded) -> tuple[float, dict[str, Any]]:
        """log Z, and what to say of it."""
        summed = model.log_partition() if self.exact else None
        if summed is not None:
            return float(summed), {"partition": "exact", "log_partition": float(summed)}
        total, n = torch.zeros(()), 0
        for batch in subject.batches("train", BASE):
            units = model.tempered_units(batch.x).double().cpu()
            total, n = total + units.sum(0), n + len(units)
        z = self.forward(subject, model.tempered(total / n, self.smoothing))
        return z.value, found_on_the_way(z, self.betas, partition="ais")
