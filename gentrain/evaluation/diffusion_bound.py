"""The variational bound of a diffusion model."""

from __future__ import annotations

from collections.abc import Iterator

from gentrain.evaluation.estimator import Estimator, Finding, Subject
from gentrain.evaluation.likelihood import findings, over_examples
from gentrain.models.base import given, kind_given
from gentrain.models.diffusion import Diffuses
from gentrain.types import PositiveInt


class DiffusionBound(Estimator):
    """-L_T - Σ_t L_{t-1}, a lower bound of log p(x) (Ho et al. 2020, eq. 5), each term by one draw of x_t.

    Of levels it bounds the log-probability of the levels themselves, so bits/dim are exact bits. Of a conditional model
    it bounds log p(x|y), without guidance, which is a kind of its own.

    Args:
        draws: terms of each example, besides the first, that the sum of all T is estimated from without bias, at random
            times evenly over the log of the signal-to-noise ratio; null takes all. The standard error covers both.
    """

    needs = (Diffuses,)

    def __init__(self, draws: PositiveInt | None = 10):
        self.draws = draws

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, Diffuses)
        kind = kind_given(model, "elbo")
        values = over_examples(
            subject, kind, lambda batch: model.bound(batch.x, given(model, batch.y).get("y"), self.draws)
        )
        terms = model.steps if self.draws is None else 1 + self.draws
        yield from findings(subject, "elbo", kind, values, of_levels=True, terms=f"{terms} of {model.steps}")
