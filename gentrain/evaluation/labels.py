"""Estimators of what a model makes of labels: whether it draws the one that is asked for, whether it finds them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gentrain.evaluation.classifier import classifier
from gentrain.evaluation.codes import binomial_error
from gentrain.evaluation.estimator import Estimator, Finding, Subject
from gentrain.evaluation.judged import CHUNK, finite, labelled, unit
from gentrain.models.base import Categorises, Conditional
from gentrain.types import PositiveInt

ROWS = 500  # examples that are looked at together


class LabelAgreement(Estimator):
    """The share of samples of a label that are of that label, as a classifier of the data's own labels judges them.

    As many samples of each label; `by_label` in the row are the shares apart. The standard error is binomial; the
    classifier's own errors come on top: of real examples it would find its accuracy, which stands in the row.

    Args:
        n_fake: samples of all labels together.
    """

    needs = (Conditional,)

    def __init__(self, n_fake: PositiveInt = 2000):
        self.n_fake = n_fake

    def unfit(self, subject: Subject) -> str | None:
        model = subject.model
        if not (isinstance(model, Conditional) and model.classes):
            return "draws without labels"
        if model.support == "tokens":
            return "models tokens, which this classifier doesn't take"
        return None if labelled(subject) else f"was trained on data={subject.spec.name}, which has no labels"

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model, judge = subject.model, classifier(subject)
        assert isinstance(model, Conditional) and model.classes
        asked = torch.arange(self.n_fake, device=subject.device) % model.classes
        right = []
        for y in subject.track(asked.split(CHUNK), math.ceil(self.n_fake / CHUNK), "samples of labels"):
            to: dict[str, Any] = {"y": y}
            x = finite(model, model.sample(len(y), **to), "samples")
            right.append(judge.right(unit(subject.pipeline, x), y))
        found = torch.cat(right).double()
        share = float(found.mean())
        each = [round(float(found[asked == label].mean()), 4) for label in range(min(model.classes, self.n_fake))]
        yield Finding("label_agreement", "labels", share, binomial_error(share, self.n_fake), "share", self.n_fake,
                      {"by_label": each, **judge.settings})  # fmt: skip


class Clusters(Estimator):
    """The share of examples whose category goes with another label than theirs: what a model that was told no labels
    knows of them (as Chen et al. 2016 report of InfoGAN, Springenberg 2016 of CatGAN).

    Which label a category goes with is learned on training examples: by the assignment that is right most often, of
    one category to one label (Kuhn 1955) or each for itself. Nothing else is fitted. The standard error is binomial.

    Args:
        matching: `one_to_one`, by which categories beyond the number of labels are always wrong, or `many_to_one`.
        train: training examples that it is learned on; None takes all.
    """

    needs = (Categorises,)

    def __init__(
        self,
        matching: Literal["one_to_one", "many_to_one"] = "one_to_one",
        train: PositiveInt | None = 10_000,
    ):
        self.matching, self.train = matching, train

    def unfit(self, subject: Subject) -> str | None:
        if not isinstance(subject.model, Categorises):
            return super().unfit(subject)
        if not subject.model.categories:
            return "was built without categories"
        return None if labelled(subject) else f"was trained on data={subject.spec.name}, which has no labels"

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model, classes = subject.model, subject.spec.classes
        assert isinstance(model, Categorises) and classes
        category, label = _sorted(subject, "train", self.train)
        counts = torch.bincount(category * classes + label, minlength=model.categories * classes)
        goes_with = match(counts.view(model.categories, classes), self.matching == "one_to_one")
        category, label = _sorted(subject, subject.split, None)
        share, n = float((goes_with[category] != label).double().mean()), len(label)
        settings = {"matching": self.matching, "labels": goes_with.tolist(), "train": int(counts.sum())}
        yield Finding("cluster_error", "clusters", share, binomial_error(share, n), "share", n, settings)


def match(counts: Tensor, one_to_one: bool) -> Tensor:
    """The label of each category, (K,), by the `counts` (K, labels) of examples; -1 is none.

    >>> match(torch.tensor([[5, 4], [9, 0]]), one_to_one=True), match(torch.tensor([[5, 4], [9, 0]]), one_to_one=False)
    (tensor([1, 0]), tensor([0, 0]))
    """
    from scipy.optimize import linear_sum_assignment

    if not one_to_one:
        return counts.argmax(1)
    rows, columns = linear_sum_assignment(np.asarray(counts), maximize=True)
    found = torch.full((len(counts),), -1)
    found[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return found


def _sorted(subject: Subject, split: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """The likeliest category and the label of the examples of a split, (N,), or of `limit` of them drawn at random."""
    model, size = subject.model, subject.size(split)
    assert isinstance(model, Categorises)
    chosen = torch.zeros(size, dtype=torch.bool)  # a data set may be sorted by its labels
    chosen[torch.randperm(size)[:limit]] = True
    categories, labels = [], []
    for batch, rows in zip(subject.batches(split, batch_size=ROWS), chosen.split(ROWS), strict=True):
        if rows.any():
            assert batch.y is not None
            categories.append(model.log_category(batch.x[rows.to(batch.x.device)]).argmax(1).cpu())
            labels.append(batch.y.cpu()[rows])
    return torch.cat(categories), torch.cat(labels)
