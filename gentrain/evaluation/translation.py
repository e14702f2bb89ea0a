"""How well examples of one domain are translated to the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.data.pipeline import Pipeline
from gentrain.errors import UsageError
from gentrain.evaluation.classifier import classifier
from gentrain.evaluation.codes import binomial_error
from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.evaluation.features import space
from gentrain.evaluation.frechet import frechet_estimate
from gentrain.evaluation.judged import finite, labelled, unit
from gentrain.models.domains import TranslatesBack, Translator
from gentrain.types import PositiveInt

ROWS = 500  # examples that are translated together


class Translation(Estimator):
    """Translations of the split's examples of the one domain, `pair`, held against the other domain, x.

        translation_accuracy   the share that a classifier of domain x puts under the label of what was translated; the
                               row's `classifier_accuracy` is what it finds of real examples of that domain
        translation_error      squared error, in the mean over elements of an example on [0, 1], against the true
                               answer where that is known: x itself in paired data; in two domains that are one set,
                               changed by what can be undone, the original. `mae` in the row: the absolute error
        translation_fid        Frechet distance of translations to the split's examples of domain x, in the features of
                               that classifier, of data without labels in pixels. 0 is reached by the true answers

    A model that goes both ways gets the same for the way from x to `pair`, in rows `translation_back_…`. Standard
    errors are binomial, of the mean, and the jackknife's.

    Args:
        blocks: of the jackknife.
    """

    needs = (Translator,)

    def __init__(self, blocks: PositiveInt = 10):
        self.blocks = blocks

    def unfit(self, subject: Subject) -> str | None:
        if subject.spec.pairs is None:
            return f"is held against data={subject.spec.name}, which has no pairs"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        for way in ways(subject):
            yield from self.judge(subject, way)

    def judge(self, subject: Subject, way: Way) -> Iterator[Finding]:
        made, right, squared, absolute = [], [], [], []
        target, judge = way.target, None
        where = space(target, "auto")
        if labelled(target) and way.source.spec.classes == target.spec.classes:
            judge = classifier(target)
        count = way.size(subject)
        batches = way.batches(subject.split, count)
        for batch in subject.track(batches, math.ceil(count / ROWS), f"{way.name}s"):
            found = unit(target.pipeline, finite(subject.model, way.translate(batch.x), "translations"))
            made.append(where.embed(found))
            if judge is not None and batch.y is not None:
                right.append(judge.right(found, batch.y))
            if batch.pair is not None:
                apart = (found - unit(target.pipeline, batch.pair)).double().flatten(1)
                squared.append(apart.square().mean(1))
                absolute.append(apart.abs().mean(1))
        if judge is not None and right:
            share = float(torch.cat(right).double().mean())
            yield Finding(f"{way.name}_accuracy", "classifier", share, binomial_error(share, count), "share", count,
                          judge.settings)  # fmt: skip
        if squared:
            mae, error = mean_and_error(torch.cat(absolute))
            yield Finding(f"{way.name}_error", "mse", *mean_and_error(torch.cat(squared)), "squared error", count,
                          {"mae": mae, "mae_stderr": error})  # fmt: skip
        n_real = target.size()
        real, fake = where.of_examples(target, subject.split, n_real).double(), torch.cat(made).to("cpu").double()
        value, error, bias = frechet_estimate(fake.to(real.device), real, self.blocks, subject.track)
        settings = {"n_fake": count, "n_real": n_real, "reference": subject.split, "bias": bias, **where.settings}
        yield Finding(f"{way.name}_fid", "fid", value, error, f"squared distance ({where.name})", count, settings)


@dataclass(frozen=True)
class Way:
    """One of the ways between two domains.

    Args:
        name: of its numbers. translate: the model's translation. source: the domain whose examples are translated.
        target: the model held against the other domain alone. batches: batches(split, n) gives n examples x of the
            source with their labels, and the true answers as `pair` where they are known.
    """

    name: str
    translate: Callable[[Tensor], Tensor]
    source: Pipeline
    target: Subject
    batches: Callable[[str, int], Iterator[Batch]]

    def size(self, subject: Subject) -> int:
        """How many examples are translated: those of the split, or the subject's n of them."""
        have = self.source.spec.sizes.get(subject.split, 0)
        count = have if subject.n is None else min(subject.n, have)
        least = 4  # for a covariance of each of two blocks
        if count < least:
            raise UsageError(
                f"n={count}: translations are judged by {least} examples or more; the {subject.split} split of"
                f" data={self.source.spec.name} has {have}"
            )
        return count


def ways(subject: Subject) -> Iterator[Way]:
    """From `pair` to x and, if the model goes there, from x to `pair`."""
    model, x, pair = subject.model, subject.pipeline, subject.pipeline.other_domain
    assert isinstance(model, Translator)
    paired = subject.spec.pairs == "paired"

    def forward(split: str, n: int) -> Iterator[Batch]:
        if paired:
            for batch in x.evaluation(split, ROWS, n):
                assert batch.pair is not None
                yield Batch(batch.pair, batch.y, batch.x)
        else:
            for batch in pair.evaluation(split, ROWS, n):
                yield batch._replace(pair=x.counterpart(batch.x))

    def back(split: str, n: int) -> Iterator[Batch]:
        for batch in x.evaluation(split, ROWS, n):
            yield batch if paired else batch._replace(pair=x.counterpart(batch.x, back=True))

    yield Way("translation", model.translate, pair, of_domain(subject, x), forward)
    if isinstance(model, TranslatesBack):
        yield Way("translation_back", model.translate_back, x, of_domain(subject, pair), back)


def of_domain(subject: Subject, pipeline: Pipeline) -> Subject:
    """The subject held against one of its domains alone, whose classifier is kept under that domain's own name."""
    n, have = subject.n, pipeline.spec.sizes.get(subject.split, 0)
    data = subject.data if pipeline is subject.pipeline else f"{subject.data} pair"
    return replace(subject, pipeline=pipeline, data=data, n=None if n is None else min(n, have))
