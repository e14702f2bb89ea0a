"""Whether a model draws what a caption says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from gentrain.data.captions import stroke_width
from gentrain.evaluation.classifier import classifier
from gentrain.evaluation.codes import binomial_error
from gentrain.evaluation.estimator import Estimator, Finding, Subject
from gentrain.evaluation.judged import CHUNK, finite, unit
from gentrain.models.base import Conditional
from gentrain.types import PositiveInt


class CaptionAgreement(Estimator):
    """The shares of samples of "a thick seven" that are sevens, and that are thick; as many samples of each caption.

    Which digit a sample shows is judged by a classifier of the data's captions, whose probabilities are summed over the
    attributes. How thick it is is measured as it was for the captions, `stroke_width` against the same bounds: of real
    examples all agree. Standard errors are binomial.

    Args:
        n_fake: samples of all captions together.
    """

    needs = (Conditional,)

    def __init__(self, n_fake: PositiveInt = 3000):
        self.n_fake = n_fake

    def unfit(self, subject: Subject) -> str | None:
        model = subject.model
        if not (isinstance(model, Conditional) and model.classes):
            return "draws without labels"
        if subject.spec.captioning is None:
            return f"was trained on data={subject.spec.name}, whose labels are no captions; see data=captioned_digits"
        return None

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model, judge, captions = subject.model, classifier(subject), subject.spec.captioning
        assert isinstance(model, Conditional) and model.classes and captions is not None
        asked = torch.arange(self.n_fake, device=subject.device) % model.classes
        count, nouns, attributes = len(captions.attributes), [], []
        for y in subject.track(asked.split(CHUNK), math.ceil(self.n_fake / CHUNK), "samples of captions"):
            to: dict[str, Any] = {"y": y}
            x = unit(subject.pipeline, finite(model, model.sample(len(y), **to), "samples"))
            of_nouns = judge.network(x).view(len(x), -1, count).logsumexp(2)
            nouns.append(of_nouns.argmax(1) == y // count)
            attributes.append(captions.attribute(stroke_width(x)) == y % count)
        for metric, found, settings in (
            ("noun_agreement", torch.cat(nouns), judge.settings),
            ("attribute_agreement", torch.cat(attributes), {"measure": "stroke_width", "bounds": captions.bounds}),
        ):
            share = float(found.double().mean())
            each = [round(float(found[asked == y].double().mean()), 4) for y in range(min(model.classes, self.n_fake))]
            error = binomial_error(share, self.n_fake)
            yield Finding(metric, "labels", share, error, "share", self.n_fake, {"by_caption": each, **settings})
