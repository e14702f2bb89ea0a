"""Whether a model repeats its training examples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gentrain import pictures
from gentrain.evaluation.codes import nearest
from gentrain.evaluation.estimator import Estimator, Finding, Picture, Subject, mean_and_error
from gentrain.evaluation.features import space
from gentrain.evaluation.judged import examples, samples
from gentrain.types import OpenFraction, PositiveInt


@dataclass(frozen=True)
class Nearest(Estimator):
    """Does the model repeat its training examples? Distances to the nearest of them, from samples and from held-out
    examples.

        nearest_distance     mean over samples
        memorisation_ratio   that, over the mean of the held-out examples: 1 if samples are as new as those, 0 if copies
        memorised_share      share of samples that are nearer than the `quantile` of held-out examples that are nearest:
                             `quantile` itself if samples are as new as those

    A ratio below 1 alone proves nothing: blurred samples, say, are near to everything (see precision and coverage
    beside it). Errors of the share are the bootstrap's, over samples and held-out examples.

    Args:
        n_fake: samples. quantile: of the held-out examples' distances. features: as of the other estimators; pixels
            show copies, a classifier's features show them less. shown: samples in the picture, each beside its nearest
            training example. resamples: of the bootstrap.
    """

    of_samples = True
    n_fake: PositiveInt = 2000
    quantile: OpenFraction = 0.01
    features: Literal["auto", "classifier", "pixels", "inception"] = "pixels"
    shown: PositiveInt = 32
    resamples: PositiveInt = 200

    def unfit(self, subject: Subject) -> str | None:
        if subject.model.support == "tokens":
            return "models tokens, between which there are no distances"
        if subject.split == "train":
            return "is to be held against examples it wasn't trained on: set split=test or validation"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding | Picture]:
        where = space(subject, self.features)
        fake = where.of_samples(subject, self.n_fake)
        held_out = where.of_examples(subject, subject.split, subject.size())
        n_train = subject.size("train")
        blocks = (where.embed(x).to(fake.device) for x, _ in examples(subject, "train", n_train))
        # candidates come from a product that rounds, which could miss the nearest of several: so four of each block
        distances, positions = nearest(torch.cat([fake, held_out]), blocks, 4)
        if pictures.is_image(subject.spec.shape):
            yield Picture("nearest", self.picture(subject, positions[: min(self.shown, self.n_fake), 0].cpu()))
        own, other = distances[:, 0].double().cpu().split([len(fake), len(held_out)])
        settings = {"n_real": n_train, "n_held_out": len(held_out), **where.settings}
        mean, error = mean_and_error(own)
        mean_other, error_other = mean_and_error(other)
        yield Finding("nearest_distance", "memorisation", mean, error, f"distance ({where.name})", self.n_fake,
                      {**settings, "held_out": mean_other})  # fmt: skip
        if mean_other > 0:  # where data are few bits, every held-out example is a training example too
            ratio = mean / mean_other
            error = math.hypot(error / mean_other, ratio * error_other / mean_other)
            yield Finding("memorisation_ratio", "memorisation", ratio, error, f"ratio ({where.name})", self.n_fake,
                          settings)  # fmt: skip
        share, error = self.memorised(own, other)
        yield Finding("memorised_share", "memorisation", share, error, f"share ({where.name})", self.n_fake, settings)

    def memorised(self, own: Tensor, other: Tensor) -> tuple[float, float]:
        """The share of `own` distances below the quantile of `other` ones, (N,) and (M,), and its standard error."""

        def share(a: Tensor, b: Tensor) -> float:
            return float((a < torch.quantile(b, self.quantile)).double().mean())

        def again(t: Tensor) -> Tensor:
            return t[torch.randint(len(t), (len(t),))]

        draws = torch.tensor([share(again(own), again(other)) for _ in range(self.resamples)], dtype=torch.float64)
        return share(own, other), float(draws.std()) if len(draws) > 1 else 0.0

    def picture(self, subject: Subject, positions: Tensor) -> Any:
        """Samples, each followed by its nearest training example; `positions` (N,) are those in the training split."""
        fake = torch.cat(list(samples(subject, len(positions)))).cpu()
        wanted: dict[int, Tensor] = {}
        start = 0
        for x, _ in examples(subject, "train", subject.size("train")):
            for i in positions[(positions >= start) & (positions < start + len(x))].tolist():
                wanted[i] = x[i - start].cpu()
            start += len(x)
        found = torch.stack([wanted[i] for i in positions.tolist()])
        pairs = torch.stack([fake, found], 1).flatten(0, 1)
        return pictures.to_bytes(pictures.grid(pictures.to_unit(pairs, "unit", None), columns=8))
