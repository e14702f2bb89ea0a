"""How well a model that knows labels classifies."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from gentrain.evaluation.codes import binomial_error
from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.models.base import Classifies


class Classification(Estimator):
    """The share of examples whose likeliest label by the model's own p(y|x) is not theirs, and the mean -log p(y|x).

    The share's standard error is binomial. No other classifier is fitted: that is what `probe` does.
    """

    needs = (Classifies,)

    def unfit(self, subject: Subject) -> str | None:
        if (subject.spec.classes or 0) < 2:
            return f"was trained on data={subject.spec.name}, which has no labels"
        if isinstance(subject.model, Classifies) and not subject.model.knows_labels:
            return "was trained without labels: it knows no p(y|x)"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, Classifies)
        wrong, surprise = [], []
        for batch in subject.track(subject.batches(), math.ceil(subject.size() / 500), "classification"):
            assert batch.y is not None
            log_p = model.log_class(batch.x).double().cpu()
            y = batch.y.cpu()
            wrong.append(log_p.argmax(1) != y)
            surprise.append(-log_p.gather(1, y[:, None])[:, 0])
        errors = torch.cat(wrong)
        share, n = float(errors.double().mean()), len(errors)
        yield Finding("classification_error", "classifier", share, binomial_error(share, n), "share", n)
        mean, error = mean_and_error(torch.cat(surprise))
        yield Finding("class_cross_entropy", "classifier", mean, error, "nats", n)
