"""How well a model fills in what is missing of held-out examples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.evaluation.codes import unit_scaled
from gentrain.evaluation.conditioning import Effort, complete, law, unable_to_complete
from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.evaluation.likelihood import require_support
from gentrain.evaluation.views import missing
from gentrain.models.base import Completes, Conditional, Conditions
from gentrain.types import OpenFraction, PositiveFloat, PositiveInt

CHAINS = 1000
"""Completions that are made at a time."""


class Completion(Estimator):
    """Test examples with a part hidden, the same for all models, against what the model puts in its place.

        completion_error             the squared error of a hidden element on the scale where images lie in [0, 1], mean
                                     over these: of each draw, and of the mean of all `draws`, which lies nearer
        completion_log_likelihood    log p(hidden | known) in nats, of models that know it exactly

    The kind of a row names the mask, and for errors which of the two. All families' errors are comparable within one
    support and protocol, whatever their way of completing: a model of bits is held to bits, one of grey levels to
    these, and `compare` keeps them apart. The row's `law` says what was drawn from: `exact` p(hidden | known), a
    Markov `chain` that has it as its limit, or what is `approximate`, as of an autoregressive model some of whose known
    elements come after hidden ones. Standard errors are over examples. A conditional model that can't complete without
    labels is given them, and its rows are of a kind of their own.

    Args:
        mask: the hidden part: `bottom`, `top`, `left`, `right`, `centre`, or `random` elements, the same of every one.
        share: of an example that is hidden. images: of the split, at most. draws: completions of each.
        sweeps, steps, leapfrog, sigma: as of `Effort`, for models that have no way of their own.
    """

    def __init__(
        self,
        mask: Literal["bottom", "top", "left", "right", "centre", "random"] = "bottom",
        share: OpenFraction = 0.5,
        images: PositiveInt = 100,
        draws: PositiveInt = 5,
        sweeps: PositiveInt = 100,
        steps: PositiveInt = 100,
        leapfrog: PositiveInt = 5,
        sigma: PositiveFloat = 0.1,
    ):
        self.mask, self.share, self.images, self.draws = mask, share, images, draws
        self.effort = Effort(sweeps, steps, leapfrog, sigma)

    def unfit(self, subject: Subject) -> str | None:
        return unable_to_complete(subject.model)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        known = ~missing(model.shape, self.mask, self.share).to(subject.device)
        what, size = f"{self.mask} {self.share:g}", subject.size(limit=self.images)
        single, joint, log_p = [], [], []
        exactly = law(model, known[None]) == "exact"
        rows = max(1, min(size, CHAINS // self.draws))
        batches = subject.batches(limit=size, batch_size=rows)
        for batch in subject.track(batches, math.ceil(size / rows), "completion"):
            errors = self._errors(subject, batch, known)
            single.append(errors[0])
            joint.append(errors[1])
            if isinstance(model, Conditions) and exactly:
                require_support(subject, batch.x)
                log_p.append(model.log_conditional(batch.x, known.expand_as(batch.x)))
        labelled = isinstance(model, Conditional) and bool(model.classes) and not isinstance(model, Completes)
        given = " given y" if labelled else ""
        found = {"law": law(model, known[None])}
        for name, values in ((f"mean of {self.draws}", joint), ("draw", single)):
            mean, error = mean_and_error(torch.cat(values))
            yield Finding("completion_error", f"{name}, {what}{given}", mean, error, "squared error", size, found)
        if log_p:
            mean, error = mean_and_error(torch.cat(log_p))
            yield Finding("completion_log_likelihood", f"exact, {what}", mean, error, "nats", size, found)

    def _errors(self, subject: Subject, batch: Batch, known: Tensor) -> tuple[Tensor, Tensor]:
        """Of each example, the mean over its hidden elements of the squared error of a draw, and of the mean draw."""
        model, levels = subject.model, subject.spec.levels
        x, y = (None if t is None else t.repeat_interleave(self.draws, 0) for t in (batch.x, batch.y))
        assert x is not None
        drawn = complete(model, x, known, self.effort, levels, y)
        made, real = (unit_scaled(t, model.support, levels).double()[:, ~known] for t in (drawn, batch.x))
        made = made.view(len(real), self.draws, -1)
        return (made - real[:, None]).square().mean((1, 2)), (made.mean(1) - real).square().mean(1)
