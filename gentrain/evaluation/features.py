"""Where distances between examples are measured: the features of a small classifier, or the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gentrain.evaluation.classifier import classifier
from gentrain.evaluation.estimator import Subject
from gentrain.evaluation.inception import inception
from gentrain.evaluation.judged import KEPT, examples, labelled, samples, shelf


@dataclass(frozen=True)
class Space:
    """A map from examples on [0, 1] to vectors, (B, *shape) -> (B, d).

    Args:
        name: `classifier`, `pixels` or `inception`. embed: the map.
        settings: what a row must say of it.
    """

    name: str
    embed: Callable[[Tensor], Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of_samples(self, subject: Subject, n: int) -> Tensor:
        """Features of n samples of the model, (n, d)."""
        kept, key = shelf(subject), ("samples", self.name)
        if key not in kept or len(kept[key]) < n:
            found = _home(torch.cat([self.embed(x) for x in samples(subject, n)]))
            if found.numel() * found.element_size() > KEPT:
                return found
            kept[key] = found
        return kept[key][:n]

    def of_examples(self, subject: Subject, split: str, n: int) -> Tensor:
        """Features of n examples of a split, (n, d), in its order."""
        kept, key = shelf(subject), (split, n, self.name)
        if key not in kept:
            found = _home(torch.cat([self.embed(x) for x, _ in examples(subject, split, n)]))
            if found.numel() * found.element_size() > KEPT:
                return found
            kept[key] = found
        return kept[key]


def _home(x: Tensor) -> Tensor:
    return x.cpu() if x.device.type == "mps" else x  # Apple's GPUs have no float64, which what follows needs


def space(subject: Subject, features: str) -> Space:
    """The space that `features` names: `auto` is the classifier of labelled images and the pixels of all else.

    Raises:
        UsageError: the data have no labels to train a classifier with, or Inception can't be had.
    """
    if features == "auto":
        features = "classifier" if labelled(subject) and subject.spec.is_image else "pixels"
    if features == "classifier":
        judge = classifier(subject)
        return Space(features, judge.network.features, {"feature_space": features, **judge.settings})
    if features == "inception":
        return Space(features, inception(subject), {"feature_space": features})
    return Space("pixels", lambda x: x.flatten(1), {"feature_space": "pixels"})
