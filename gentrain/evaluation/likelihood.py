"""Estimators of log p(x) on held-out examples, in nats per example and, for stored levels, in bits per dimension.

Exact values, lower bounds and estimates are different kinds and never stand in one column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.models.base import Density, LatentVariable, given, kind_given
from gentrain.models.energies import Enumerable, PseudoLikelihood
from gentrain.models.latent import divergence, draw, log_likelihood
from gentrain.types import PositiveInt


def require_support(subject: Subject, x: Tensor) -> None:
    """Refuse data that the model's likelihood can't have: a Bernoulli cross-entropy with grey targets is no likelihood.

    Raises:
        UsageError: examples of a binary model are not all 0 or 1.
    """
    if subject.model.support == "binary":
        require_bits(subject, x)


def require_bits(subject: Subject, x: Tensor) -> None:
    """Raises UsageError unless x is 0 or 1 everywhere."""
    if not bool(((x == 0) | (x == 1)).all()):
        raise UsageError(
            f"split={subject.split}: {type(subject.model).__name__} models bits and the examples are grey: a Bernoulli"
            " likelihood of grey pixels is not a probability; binarize them with data.binarization"
        )


def findings(
    subject: Subject,
    metric: str,
    kind: str,
    values: Tensor,
    *,
    unit_interval: bool = False,
    of_levels: bool = False,
    **settings: object,
) -> Iterator[Finding]:
    """Per-example log-likelihoods (N,) in nats as findings: their mean and, where x is one of K levels, bits/dim.

    For dequantized levels on [0, 1], y = (l + u)/K, p(y) is a density and -(log p(y) - D log K)/(D log 2) bounds the
    bits of l from above (Theis et al. 2016, arXiv:1511.01844, section 3.1); on [-1, 1] log(K/2) stands for log K.

    Args:
        unit_interval: the densities are those of x brought to [0, 1], whatever the model's support.
        of_levels: they are no densities but the probabilities of the levels, whatever the model's support.
    """
    mean, error = mean_and_error(values)
    yield Finding(metric, kind, mean, error, "nats", len(values), settings)
    scale = bits_offset(subject, unit_interval, of_levels)
    if scale is not None:
        size = math.prod(subject.spec.shape) * math.log(2)
        offset = math.prod(subject.spec.shape) * scale
        yield Finding(metric, kind, -(mean - offset) / size, error / size, "bits/dim", len(values), settings)


def bits_offset(subject: Subject, unit_interval: bool = False, of_levels: bool = False) -> float | None:
    """log of the density's bins per unit, which bits/dim must account for; None where bits/dim means nothing.

    0 for levels themselves, log K for K dequantized levels on [0, 1]. Binary and real data have no bits/dim.
    """
    support, levels = subject.model.support, subject.spec.levels
    if levels is None or levels <= 2:
        return None
    if of_levels or (support == "levels" and not unit_interval):
        return 0.0
    if "dequantization" in subject.pipeline.protocol:
        return math.log(levels / 2) if support == "signed" and not unit_interval else math.log(levels)
    return None


def over_examples(subject: Subject, label: str, of: Callable[[Batch], Tensor], batch_size: int = 500) -> Tensor:
    """`of` each batch, (B,) in nats, put together: (N,).

    Raises:
        UsageError: the examples are none that the model's likelihood can have.
    """
    n = subject.size()
    # Filled in place: small results that are kept between large ones that are freed would leave the heap full of holes.
    values, done = torch.empty(n, dtype=torch.float64), 0
    for batch in subject.track(subject.batches(batch_size=batch_size), math.ceil(n / batch_size), label):
        require_support(subject, batch.x)
        values[done : done + len(batch.x)] = of(batch)
        done += len(batch.x)
    return values


class Exact(Estimator):
    """log p(x) itself: of a normalised model, or of an energy model whose partition function can be enumerated.

    Of a conditional model log p(x|y) too, as a kind of its own.
    """

    needs = (Density, Enumerable)

    def unfit(self, subject: Subject) -> str | None:
        model = subject.model
        if isinstance(model, Enumerable) and not model.enumerable:
            return f"has 2^{model.enumeration_bits} states to sum over, which is too many (2^{model.limit} at most)"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, Density | Enumerable)
        values = over_examples(subject, "exact", lambda batch: model.log_prob(batch.x))
        yield from findings(subject, "log_likelihood", "exact", values)
        if (kind := kind_given(model, "exact")) != "exact":
            values = over_examples(subject, kind, lambda batch: model.log_prob(batch.x, **given(model, batch.y)))
            yield from findings(subject, "log_likelihood", kind, values)


class ELBO(Estimator):
    """E_q[log p(x|z)] - KL(q(z|x) ‖ p(z)), the mean over draws of z: a lower bound of log p(x).

    A KL without a closed form is log q - log p at the same draws. Of a conditional model it bounds log p(x|y), which is
    a kind of its own.

    Args:
        samples: draws of z an example.
    """

    needs = (LatentVariable,)

    def __init__(self, samples: PositiveInt = 1):
        self.samples = samples

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, LatentVariable)

        values = over_examples(subject, "elbo", lambda batch: self.bound(model, batch.x, batch.y))
        yield from findings(subject, "elbo", kind_given(model, "elbo"), values)

    def bound(self, model: LatentVariable, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The bound for each of x (B, *shape), in nats, (B,); y (B,) are the labels that a conditional model needs."""
        q = model.encode(x, **given(model, y))
        terms = []
        for _ in range(self.samples):
            z, log_q = draw(q, 1)
            terms.append(log_likelihood(model, x, y, z).squeeze(0) - divergence(q, model.prior, z, log_q))
        return torch.stack(terms).mean(0)


class IWAE(Estimator):
    """log 1/K Σ_k p(x, z_k)/q(z_k|x), z_k ~ q: a bound that rises to log p(x) with K (Burda et al. 2016, eq. 8).

    Of a conditional model it bounds log p(x|y), which is a kind of its own.

    Args:
        samples: K. chunk: importance samples held in memory at a time, over all examples of a step.
    """

    needs = (LatentVariable,)

    def __init__(self, samples: PositiveInt = 5000, chunk: PositiveInt = 5_000):
        self.samples, self.chunk = samples, chunk

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, LatentVariable)
        kind, rows = f"iwae-{self.samples}", max(1, self.chunk // self.samples)
        values = over_examples(subject, kind, lambda batch: self.bound(model, batch.x, batch.y), rows)
        yield from findings(subject, "log_likelihood", kind_given(model, kind), values)

    @torch.no_grad()
    def bound(self, model: LatentVariable, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The bound for each of x (B, *shape), in nats, (B,); y (B,) are the labels that a conditional model needs."""
        q, prior = model.encode(x, **given(model, y)), model.prior
        weights = []
        each = max(1, self.chunk // len(x))
        for start in range(0, self.samples, each):
            z, log_q = draw(q, min(each, self.samples - start))
            weights.append((log_likelihood(model, x, y, z) + prior.log_prob(z) - log_q).double())
        return torch.logsumexp(torch.cat(weights), 0) - math.log(self.samples)


class Pseudo(Estimator):
    """Σ_i log p(x_i | the rest) (Besag 1975): consistent for training, but no likelihood and no bound of one.

    Args:
        bits: random bits an example that the sum is estimated from; null takes all of them.
    """

    needs = (PseudoLikelihood,)

    def __init__(self, bits: PositiveInt | None = None):
        self.bits = bits

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, PseudoLikelihood)
        values = over_examples(subject, "pseudo", lambda batch: model.pseudo_log_likelihood(batch.x, self.bits))
        mean, error = mean_and_error(values)
        yield Finding("pseudo_log_likelihood", "pseudo", mean, error, "nats", subject.size())
