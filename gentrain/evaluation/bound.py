"""The variational bound of a machine in layers, less an annealed log Z."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gentrain import noise
from gentrain.evaluation.ais import MURRAY, Annealing, found_on_the_way
from gentrain.evaluation.estimator import Finding, Subject
from gentrain.evaluation.likelihood import findings, over_examples
from gentrain.models.energies import Bounded
from gentrain.types import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt

BASE = 10_000
"""Training examples whose units' mean the path begins at: any beginning is right, a near one needs fewer steps."""


class Bound(Annealing):
    """The mean lower bound of log p*(x) less log Z: for DBNs `dbn-bound`, for DBMs `dbm-bound` (Salakhutdinov 2008).

    Where log Z can be summed it is exact, and the number bounds log p(x) from below. Else log Ẑ is annealed to, which
    is too low in expectation: the number may then lie above the truth, as an AIS likelihood may. Rows say which in
    `partition`, and give the interval log(Ẑ ± 3σ̂) of an annealed one. With `reverse` a second row, of the kind
    `reverse-dbm-bound` for instance, has the log Ẑ of chains that go the same path backwards and begin at units drawn
    by training examples, `burn_in` Gibbs steps on: too high in expectation, if those are samples of the model. Where
    the two rows are far apart the annealing has not found log Z, and the first is no bound.

    Args:
        draws: evaluations of the bound an example, whose mean is taken; 1 where it takes no draws.
        chains: M, independent runs. chunk: of them at a time.
        schedule: [end, steps] of each segment of β; the last ends at 1.
        smoothing: of the base rates, towards 1, as in `RBM.tempered`.
        exact: sum log Z where that is possible.
        reverse: anneal backwards too. burn_in: Gibbs steps from training examples to where that begins.
    """

    needs = (Bounded,)

    def __init__(
        self,
        draws: PositiveInt = 20,
        chains: PositiveInt = 100,
        schedule: Sequence[tuple[Fraction, PositiveInt]] = MURRAY,
        smoothing: NonNegativeFloat = 0.05,
        exact: bool = True,
        reverse: bool = True,
        burn_in: NonNegativeInt = 1000,
        chunk: PositiveInt = 1000,
    ):
        super().__init__(chains, schedule, smoothing, chunk)
        self.draws, self.exact, self.reverse, self.burn_in = draws, exact, reverse, burn_in

    def unfit(self, subject: Subject) -> str | None:
        if isinstance(subject.model, Bounded) and subject.model.support != "binary":
            return (
                "takes grey levels for probabilities of bits, which have no likelihood; train it with model.grey=false"
            )
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, Bounded)
        draws = self.draws if model.bound_draws else 1
        partitions = list(self._partitions(subject, model))

        def of(batch: Any) -> torch.Tensor:
            return torch.stack([model.log_bound(batch.x).double() for _ in range(draws)]).mean(0)

        values = over_examples(subject, model.bound_kind, of)
        for kind, log_z, settings in partitions:
            yield from findings(subject, "log_likelihood", kind, values - log_z, **settings)

    def _partitions(self, subject: Subject, model: Bounded) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """The kind of number that each log Z makes, that log Z, and what to say of it."""
        kind = model.bound_kind
        summed = model.log_partition() if self.exact else None
        if summed is not None:
            yield kind, float(summed), {"partition": "exact", "log_partition": float(summed)}
            return
        units = torch.cat([model.tempered_units(batch.x).cpu() for batch in subject.batches("train", BASE)])
        path = model.tempered(units.mean(0, dtype=torch.float64), self.smoothing)
        z = self.forward(subject, path)
        yield kind, z.value, found_on_the_way(z, self.betas, partition="ais")
        if self.reverse:
            chosen = units[torch.randint(len(units), (self.chains,))]
            states = [
                path.state(noise.bernoulli(chosen[i : i + self.chunk])) for i in range(0, self.chains, self.chunk)
            ]
            for _ in subject.track(range(self.burn_in), self.burn_in, "burn-in of reverse-ais"):
                states = [path.transition(state, 1.0) for state in states]
            z = self.backward(subject, path, states)
            starts = f"training examples, {self.burn_in} Gibbs steps"
            yield f"reverse-{kind}", z.value, found_on_the_way(z, self.betas, partition="reverse-ais", starts=starts)
