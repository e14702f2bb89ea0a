"""Estimators whose finding is a picture of the code space, and how far it can be believed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from gentrain import pictures
from gentrain.evaluation.codes import coded, keys_and_queries, neighbours, numpy
from gentrain.evaluation.estimator import Estimator, Finding, Picture, Subject, mean_and_error
from gentrain.models.base import Codes
from gentrain.types import PositiveFloat, PositiveInt


class Embedding(Estimator):
    """The codes in the plane, coloured by label where there are any, and how faithful that picture is.

    `explained_variance` is the share of the codes' variance that lies in the two axes of a PCA (none is reported
    where all codes are equal). `trustworthiness` is in [0, 1]: 1 if no point has neighbours in the plane that aren't
    its neighbours in code space, 1/2 or so for a random plane (Venna & Kaski 2001).

    Args:
        method: `pca`, or `tsne` (van der Maaten & Hinton 2008). examples: points, drawn at random.
        perplexity: of t-SNE. neighbours: that trustworthiness looks at.
    """

    needs = (Codes,)

    def __init__(
        self,
        method: Literal["pca", "tsne"] = "pca",
        examples: PositiveInt = 2000,
        perplexity: PositiveFloat = 30.0,
        neighbours: PositiveInt = 5,
    ):
        self.method, self.examples, self.perplexity, self.neighbours = method, examples, perplexity, neighbours

    def unfit(self, subject: Subject) -> str | None:
        n = subject.size(limit=self.examples)
        least = max(2 * self.neighbours + 2, math.ceil(self.perplexity) + 1 if self.method == "tsne" else 0)
        if math.floor(0.9 * n) < least:
            return f"has {n} examples here, too few for a picture of the code space"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding | Picture]:
        codes = coded(subject, limit=self.examples)
        z = numpy(codes.z).astype(np.float64)
        n = len(z)
        points = self.plane(z)
        name = f"embedding-{self.method}"
        yield Picture(name, pictures.classes(points, None if codes.y is None else numpy(codes.y)))
        if self.method == "pca":
            yield from _explained(z, points, name)
        value, error = self.trustworthiness(z, points)
        yield Finding("trustworthiness", name, value, error, "share", n)

    def plane(self, z: np.ndarray) -> np.ndarray:
        """Codes (N, d) as points (N, 2)."""
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

        seed = int(torch.randint(2**31 - 1, ()))
        if self.method == "tsne":
            return TSNE(perplexity=self.perplexity, init="pca", random_state=seed).fit_transform(z)
        with np.errstate(invalid="ignore"):  # equal codes have no variance to divide by
            points = PCA(min(2, z.shape[1]), random_state=seed).fit_transform(z)
        return points if points.shape[1] == 2 else np.pad(points, ((0, 0), (0, 1)))

    def trustworthiness(self, z: np.ndarray, points: np.ndarray) -> tuple[float, float]:
        """With its standard error: a jackknife that leaves out a tenth of the examples at a time."""
        from sklearn.manifold import trustworthiness

        blocks = torch.randperm(len(z)).numpy() % 10
        without = [trustworthiness(z[blocks != b], points[blocks != b], n_neighbors=self.neighbours) for b in range(10)]
        error = math.sqrt(0.9 * float(np.square(np.array(without) - np.mean(without)).sum()))
        return float(trustworthiness(z, points, n_neighbors=self.neighbours)), error


def _explained(z: np.ndarray, points: np.ndarray, kind: str) -> Iterator[Finding]:
    """R = Σ_i a_i / Σ_i t_i, example i's squared length in the plane over that in code space; the standard error is
    the ratio's, to first order and for these axes: √(Σ_i (a_i - R t_i)²) / Σ_i t_i."""
    inside, total = np.square(points).sum(1), np.square(z - z.mean(0)).sum(1)
    if total.sum() > 0:
        ratio = float(inside.sum() / total.sum())
        error = float(np.sqrt(np.square(inside - ratio * total).sum()) / total.sum())
        yield Finding("explained_variance", kind, ratio, error, "share", len(z))


class Retrieval(Estimator):
    """Examples and their nearest training examples in code space, as a picture; where there are labels, precision@k:
    the share of the k neighbours that have the query's label, the mean over all queries.

    Args:
        k: neighbours. train: training examples to look among, drawn at random; None takes all.
        shown: queries in the picture, a row each: the query and then its neighbours, nearest first.
    """

    needs = (Codes,)

    def __init__(self, k: PositiveInt = 10, train: PositiveInt | None = 10_000, shown: PositiveInt = 8):
        self.k, self.train, self.shown = k, train, shown

    def unfit(self, subject: Subject) -> str | None:
        if subject.spec.classes is None and not pictures.is_image(subject.spec.shape):
            return f"was trained on data={subject.spec.name}, which has neither labels nor images to show"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding | Picture]:
        model = subject.model
        images = pictures.is_image(model.shape)
        train, judged, same = keys_and_queries(subject, self.train, keep=images)
        found = neighbours(judged.z, train.z, self.k, same)
        if images:
            assert judged.x is not None and train.x is not None
            rows = [torch.cat([judged.x[i : i + 1], train.x[found[i]]]) for i in range(min(self.shown, len(found)))]
            yield Picture("retrieval", pictures.show(torch.cat(rows), model, subject.spec.levels, columns=self.k + 1))
        if train.y is not None and judged.y is not None:
            right = (train.y[found] == judged.y[:, None]).double().mean(1)
            mean, error = mean_and_error(right)
            yield Finding(f"precision_at_{self.k}", "retrieval", mean, error, "share", len(right))
