"""Estimators of what two domains have in common by a model: labels carried over, examples that belong together."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gentrain import pictures
from gentrain.evaluation.classifier import Classifier, classifier
from gentrain.evaluation.codes import binomial_error
from gentrain.evaluation.estimator import Estimator, Finding, Picture, Subject, mean_and_error
from gentrain.evaluation.judged import CHUNK, finite, labelled, unit
from gentrain.evaluation.translation import of_domain
from gentrain.models.domains import Adapts, Couples
from gentrain.types import PositiveInt


class Adaptation(Estimator):
    """Whether labels that a model was told of one domain, x, serve in the other, `pair` (Liu et al. 2017, table 2).

        adaptation_accuracy    share of the split's examples of domain `pair` whose likeliest label is theirs; in the
                               row, `source_accuracy` is that of x
        source_only_accuracy   what a classifier of x that has seen nothing of the other domain finds of the same
                               examples as they are: a number of the data, and not of the model

    Labels of `pair` are read here alone. Standard errors are binomial.
    """

    needs = (Adapts,)

    def unfit(self, subject: Subject) -> str | None:
        if not isinstance(subject.model, Adapts):
            return super().unfit(subject)
        if not subject.model.knows_labels:
            return "was trained without labels (model.adapt)"
        return (
            None if _same_labels(subject) else f"was trained on data={subject.spec.name}, whose labels aren't the same"
        )

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model, judge = subject.model, classifier(subject)
        assert isinstance(model, Adapts)
        x, pair = (of_domain(subject, p) for p in (subject.pipeline, subject.pipeline.other_domain))
        source = torch.cat([model.log_class(batch.x).argmax(1) == batch.y for batch in x.batches()])
        adapted, plain, count = [], [], pair.size()
        for batch in subject.track(pair.batches(), math.ceil(count / 500), "adaptation"):
            assert batch.y is not None
            adapted.append(model.log_class_pair(batch.x).argmax(1) == batch.y)
            plain.append(judge.right(unit(pair.pipeline, batch.x), batch.y))
        of_x = {"source_accuracy": float(source.double().mean()), "domain": pair.spec.name}
        for metric, right, settings in (
            ("adaptation_accuracy", adapted, of_x),
            ("source_only_accuracy", plain, judge.settings),
        ):
            share = float(torch.cat(right).double().mean())
            yield Finding(metric, "classifier", share, binomial_error(share, count), "share", count, settings)


class Coupling(Estimator):
    """Whether the two examples that one code gives belong together.

        pair_agreement    the share of pairs of which classifiers of either domain say the same label
        pixel_agreement   where the domains are one set, changed: the share of elements of `pair` that lie on the same
                          side of 1/2 as those of x, changed in that way (Liu & Tuzel 2016, section 4)

    `by_chance` in the rows is what the same samples give where each x has the next one's partner. Standard errors are
    binomial, and of the mean over pairs.

    Args:
        n_fake: pairs. shown: in the picture.
    """

    needs = (Couples,)

    def __init__(self, n_fake: PositiveInt = 2000, shown: PositiveInt = 32):
        self.n_fake, self.shown = n_fake, shown

    def unfit(self, subject: Subject) -> str | None:
        if isinstance(subject.model, Couples) and subject.spec.pairs is None:
            return f"is held against data={subject.spec.name}, which has no pairs"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding | Picture]:
        model, pipeline, n = subject.model, subject.pipeline, self.n_fake
        assert isinstance(model, Couples)
        other = pipeline.other_domain
        made: list[tuple[Tensor, Tensor]] = []
        for start in subject.track(range(0, n, CHUNK), math.ceil(n / CHUNK), "pairs"):
            z = model.prior.sample(torch.Size([min(CHUNK, n - start)]))
            made.append((finite(model, model.decode(z), "samples"), finite(model, model.decode_pair(z), "samples")))
        x, pair = (torch.cat(column) for column in zip(*made, strict=True))
        if pictures.is_image(model.shape):
            shown = torch.stack([unit(pipeline, x[: self.shown]), unit(other, pair[: self.shown])], 1).flatten(0, 1)
            yield Picture("pairs", pictures.to_bytes(pictures.grid(shown, columns=8)))
        if _same_labels(subject):
            judges = [classifier(of_domain(subject, domain)) for domain in (pipeline, other)]
            labels = [_labels(judge, unit(pipeline, t)) for judge, t in zip(judges, (x, pair), strict=True)]
            share, chance = (float((labels[0] == t).double().mean()) for t in (labels[1], labels[1].roll(1)))
            accuracies = {"classifier_accuracy": judges[0].accuracy, "pair_classifier_accuracy": judges[1].accuracy}
            yield Finding("pair_agreement", "labels", share, binomial_error(share, n), "share", n,
                          {"by_chance": chance, **accuracies})  # fmt: skip
        changed = pipeline.counterpart(x, back=True)
        if changed is not None:
            sides = unit(other, changed) > 0.5, unit(other, pair) > 0.5
            agreed, chance = ((sides[0] == t).double().flatten(1).mean(1) for t in (sides[1], sides[1].roll(1, 0)))
            yield Finding("pixel_agreement", "pixels", *mean_and_error(agreed), "share", n,
                          {"by_chance": float(chance.mean())})  # fmt: skip


def _same_labels(subject: Subject) -> bool:
    """Whether both domains have labels, and the same."""
    return labelled(subject) and subject.pipeline.other_domain.spec.classes == subject.spec.classes


def _labels(judge: Classifier, x: Tensor) -> Tensor:
    return torch.cat([judge.network(piece).argmax(1) for piece in x.split(CHUNK)])
