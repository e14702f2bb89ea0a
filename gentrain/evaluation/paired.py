"""Two sets of features to be compared: a model's samples and the data's examples.

The feature space (`gentrain.evaluation.features`) is part of a number's unit: a distance between classifier features
and one between pixels are never in one column. Numbers of different `n_fake` or `n_real` are not comparable where an
estimator is biased, as the Frechet distance and the manifold measures are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Estimator, Subject
from gentrain.evaluation.features import Space, space
from gentrain.evaluation.judged import how_many
from gentrain.types import PositiveInt

ROWS = 1000  # of a block of distances


@dataclass(frozen=True)
class Pair:
    """Two sets of features, `fake` (n_fake, d) and `real` (n_real, d), in float64, and what a row says of them."""

    fake: Tensor
    real: Tensor
    space: Space
    settings: dict[str, Any]

    def unit(self, of: str) -> str:
        return f"{of} ({self.space.name})"


@dataclass(frozen=True)
class Comparison(Estimator):
    """Compares samples with examples.

    Args:
        n_fake: samples of the model.
        reference: split of the examples; published numbers mostly compare with the training set.
        n_reference: examples of it; None takes n_fake, or all where there are fewer. The row's `n_real` says which.
        features: `classifier`, `pixels` (of a point: its coordinates), `inception`; `auto` is the classifier for
            labelled images and pixels for all else.
    """

    of_samples = True
    n_fake: PositiveInt = 10_000
    reference: Literal["train", "validation", "test"] = "train"
    n_reference: PositiveInt | None = None
    features: Literal["auto", "classifier", "pixels", "inception"] = "auto"

    def unfit(self, subject: Subject) -> str | None:
        if subject.model.support == "tokens":
            return "models tokens, between which there are no distances"
        return super().unfit(subject)

    def pair(self, subject: Subject, least: int = 2) -> Pair:
        """Both sets of features.

        Raises:
            UsageError: one has fewer than `least` elements, or the reference split fewer than asked for.
        """
        n_real = how_many(subject, self.reference, self.n_reference, self.n_fake)
        for name, n in (("n_fake", self.n_fake), ("n_reference", n_real)):
            if n < least:
                raise UsageError(f"{name}={n}: this estimator needs at least {least}")
        where = space(subject, self.features)
        real = where.of_examples(subject, self.reference, n_real).double()
        fake = where.of_samples(subject, self.n_fake).double()
        settings = {"n_real": n_real, "dimensions": real.shape[1], **where.settings}
        return Pair(fake, real, where, settings)


def blocks_of(wanted: int, fake: Tensor, real: Tensor) -> int:
    """How many blocks both sets can be cut into such that each has two elements."""
    return max(2, min(wanted, len(fake) // 2, len(real) // 2))


def jackknife(value: float, without: list[float]) -> tuple[float, float]:
    """Standard error and bias from the values without one block each (Efron & Stein 1981).

    With B blocks and mean m of the values v_b: √((B-1)/B Σ_b (v_b - m)²) and (B-1)(m - value).

    >>> error, bias = jackknife(2.0, [2.5, 2.0, 1.5])  # the mean of 1, 2, 3
    >>> round(error, 6), bias
    (0.57735, 0.0)
    """
    t, blocks = torch.tensor(without, dtype=torch.float64), len(without)
    error = ((blocks - 1) / blocks * (t - t.mean()).square().sum()).sqrt()
    return float(error), float((blocks - 1) * (t.mean() - value))
