"""Log-likelihoods in the coordinates of papers on normalizing flows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.evaluation.likelihood import over_examples
from gentrain.models.base import Density
from gentrain.models.flows import Logit
from gentrain.types import PositiveFloat


class LogitLikelihood(Estimator):
    """log p(y) with y = logit(λ + (1 - 2λ) x), of a density p(x) over dequantized levels x in [0, 1).

    log p(y) = log p(x) - Σ log dy/dx, whatever λ the model itself may use. Papamakarios et al. 2017 (arXiv:1705.07057)
    report it in nats with λ = 1e-6 for MNIST and 0.05 for CIFAR-10. It is no measure of how well levels are told: with
    another λ it is another number.

    Args:
        margin: λ.
    """

    needs = (Density,)

    def __init__(self, margin: PositiveFloat = 1e-6):
        if margin >= 0.5:
            raise UsageError(f"metric.logit.margin={margin:g}: must be below 0.5")
        self.logit = Logit(margin)

    def unfit(self, subject: Subject) -> str | None:
        if subject.pipeline.protocol != "unit, uniform dequantization":
            return (
                f"is judged on data of the protocol {subject.pipeline.protocol!r}, not on dequantized levels in [0, 1)"
            )
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, Density)

        def value(batch: Batch) -> Tensor:
            return model.log_prob(batch.x) - self.logit(batch.x)[1]

        mean, error = mean_and_error(over_examples(subject, "logit", value))
        yield Finding("log_likelihood", "exact", mean, error, f"nats (logit {self.logit.margin:g})", subject.size())
