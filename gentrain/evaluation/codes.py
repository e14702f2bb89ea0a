"""Estimators of what a model's codes keep of an example: its class, its neighbours, the example itself.

Probes learn from the codes of the training split and are judged on the split that is evaluated.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.errors import GentrainError, UsageError
from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.models.base import Codes, LatentVariable, Reconstructs, given, kind_given
from gentrain.models.latent import centre
from gentrain.types import NonNegativeFloat, PositiveFloat, PositiveInt, Support

QUERIES, KEYS = 1000, 8192  # rows of a block of distances
ACTIVE = 0.01
"""A latent unit is active if Var_x(E_q[z]) is above this (Burda et al. 2016, section 5.2)."""


# --- codes and their neighbours -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coded:
    """Examples of a split as their codes: `z` (N, d), float32, `y` (N,) where there are labels, `x` if asked for."""

    z: Tensor
    y: Tensor | None
    x: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        assert self.y is not None
        return self.y


def coded(subject: Subject, split: str | None = None, limit: int | None = None, keep: bool = False) -> Coded:
    """The codes of a split (the judged one if None), at most `limit` examples of it.

    Those are drawn at random, for a data set may be sorted by its labels.

    Args:
        keep: the examples themselves as well.

    Raises:
        GentrainError: a code is NaN or infinite.
    """
    model = subject.model
    assert isinstance(model, Codes)
    split = split or subject.split
    size = subject.size(split)
    chosen = torch.ones(size, dtype=torch.bool)
    if limit is not None and limit < size:
        chosen[torch.randperm(size)[limit:]] = False
    parts, start = [], 0
    for batch in subject.track(subject.batches(split), math.ceil(size / 500), f"codes of {split}"):
        rows = chosen[start : start + len(batch.x)].to(batch.x.device)
        start += len(batch.x)
        if rows.any():
            x = batch.x[rows]
            z = model.codes(x).flatten(1).float()
            parts.append((z, None if batch.y is None else batch.y[rows], x if keep else None))
    z, y, x = (None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))
    if z is None or not bool(torch.isfinite(z).all()):
        raise GentrainError(
            f"codes of {type(model).__name__} on the {split} split: some are NaN or infinite;"
            " the model may have diverged, look at its samples"
        )
    return Coded(z, y, x)


def nearest(queries: Tensor, keys: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Euclidean distances from each query to its k nearest keys, and the keys' positions, (Q, k) each, nearest first.

    `keys` come in blocks that never are in memory together. Candidates are found by a matrix product, which rounds;
    their distances are then computed exactly, so that a key equal to the query is at 0.

    >>> nearest(torch.tensor([[0.0], [5.0]]), [torch.tensor([[4.0], [1.0]]), torch.tensor([[7.0]])], k=2)
    (tensor([[1., 4.], [1., 2.]]), tensor([[1, 0], [0, 2]]))
    """
    queries = queries.flatten(1).float()
    distances = queries.new_empty(len(queries), 0)
    positions = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    start = 0
    for block in keys:
        block = block.flatten(1).float()
        found = torch.cdist(queries, block).topk(min(k, len(block)), largest=False).indices
        exact = (queries[:, None] - block[found]).square_().sum(-1).sqrt_()
        distances, positions = torch.cat([distances, exact], 1), torch.cat([positions, found + start], 1)
        order = distances.argsort(dim=1, stable=True)[:, :k]
        distances, positions = distances.gather(1, order), positions.gather(1, order)
        start += len(block)
    return distances, positions


def neighbours(queries: Tensor, keys: Tensor, k: int, same: bool = False) -> Tensor:
    """Positions of the k nearest of `keys` (N, d) to each of `queries` (Q, d), (Q, k), nearest first.

    Args:
        same: queries and keys are one set, in one order: no query is its own neighbour.

    Raises:
        UsageError: there are fewer than k keys.
    """
    if k > len(keys) - same:
        raise UsageError(f"k={k}: there are {len(keys)} examples to look for neighbours among")
    found = []
    for start in range(0, len(queries), QUERIES):
        block = queries[start : start + QUERIES]
        _, positions = nearest(block, keys.split(KEYS), k + same)
        if same:
            own = positions == torch.arange(start, start + len(block), device=positions.device)[:, None]
            others_first = own.int().argsort(dim=1, stable=True)
            positions = positions.gather(1, others_first[:, :k])
        found.append(positions)
    return torch.cat(found)


# --- classes --------------------------------------------------------------------------------------------------------


class _Labelled(Estimator):
    """Needs codes, and a data set with two classes or more."""

    needs = (Codes,)

    def unfit(self, subject: Subject) -> str | None:
        if (subject.spec.classes or 0) < 2:
            return f"was trained on data={subject.spec.name}, which has no labels"
        return super().unfit(subject)


@dataclass(frozen=True)
class LinearClassifier:
    """Multinomial logistic regression on standardised codes, as scikit-learn fits it."""

    scaler: Any
    regression: Any

    @classmethod
    def fit(cls, z: np.ndarray, y: np.ndarray, C: float, iterations: int, scaler: Any = None) -> LinearClassifier:
        """From codes (N, d) and labels (N,). `scaler`: one that was fitted before; else it is fitted to z.

        Raises:
            UsageError: all labels are the same.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        if len(np.unique(y)) < 2:
            raise UsageError("a probe needs training examples of two classes at least, and these are all of one")
        scaler = scaler or StandardScaler().fit(z)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says it
            regression = LogisticRegression(C=C, max_iter=iterations).fit(scaler.transform(z), y)
        return cls(scaler, regression)

    @property
    def converged(self) -> bool:
        return int(self.regression.n_iter_.max()) < self.regression.max_iter

    def accuracy(self, z: np.ndarray, y: np.ndarray) -> float:
        return float((self.regression.predict(self.scaler.transform(z)) == y).mean())


def binomial_error(p: float, n: int) -> float:
    """√(p(1-p)/n), the standard error of a share p of n examples.

    >>> binomial_error(0.5, 100)
    0.05
    """
    return math.sqrt(p * (1 - p) / n)


class Probe(_Labelled):
    """Accuracy of a linear classifier of the codes, trained on the training split (Alain & Bengio 2016).

    Logistic regression on standardised codes: argmin_W C Σ_i -log p(y_i|z_i; W) + ‖W‖²/2. The standard error is
    binomial: it covers the draw of the judged examples, not that of the training split.

    Args:
        train: training examples, drawn at random; None takes all. C: inverse weight of the penalty. iterations: of
            L-BFGS at most; the row's `converged` says whether they were enough.
    """

    def __init__(self, train: PositiveInt | None = 10_000, C: PositiveFloat = 1.0, iterations: PositiveInt = 500):
        self.train, self.C, self.iterations = train, C, iterations

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        train, judged = coded(subject, "train", self.train), coded(subject)
        probe = LinearClassifier.fit(numpy(train.z), numpy(train.labels), self.C, self.iterations)
        accuracy = probe.accuracy(numpy(judged.z), numpy(judged.labels))
        n = len(judged.z)
        settings = {"dimensions": train.z.shape[1], "converged": probe.converged}
        yield Finding("probe_accuracy", "probe", accuracy, binomial_error(accuracy, n), "share", n, settings)


class FewLabel(_Labelled):
    """Accuracy of the linear probe that sees a few labels of each class: the few-label curve.

    Each point is a metric of its own, `probe_accuracy_<m>_labels`: the mean over `draws` choices of m training
    examples a class. Codes are standardised by the training split, which takes no labels. With draws' accuracies a_r
    the standard error is √(Var(a)/R + ā(1-ā)/n): the choice of labels, and the judged examples that all share.

    Args:
        labels_per_class: the points; those beyond the smallest class of the training split are left out.
        draws: R, choices of labelled examples. train: training examples to choose from; None takes all.
        C, iterations: as in `Probe`.

    Raises:
        UsageError: the smallest class has too few examples for every point.
    """

    def __init__(
        self,
        labels_per_class: Sequence[PositiveInt] = (1, 5, 10, 50, 100),
        draws: PositiveInt = 5,
        train: PositiveInt | None = 10_000,
        C: PositiveFloat = 1.0,
        iterations: PositiveInt = 500,
    ):
        self.labels_per_class, self.draws, self.train = sorted(labels_per_class), draws, train
        self.C, self.iterations = C, iterations

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        from sklearn.preprocessing import StandardScaler

        train, judged = coded(subject, "train", self.train), coded(subject)
        z, y, z_judged, y_judged = (numpy(t) for t in (train.z, train.labels, judged.z, judged.labels))
        classes = [np.flatnonzero(y == c) for c in np.unique(y)]
        points = [m for m in self.labels_per_class if m <= min(map(len, classes))]
        if not points:
            raise UsageError(
                f"labels_per_class={self.labels_per_class}: the smallest class has {min(map(len, classes))} examples"
            )
        scaler, n = StandardScaler().fit(z), len(y_judged)
        work = [m for m in points for _ in range(self.draws)]
        accuracies: dict[int, list[float]] = {}
        for m in subject.track(work, len(work), "few labels"):
            rows = np.concatenate([c[torch.randperm(len(c))[:m].numpy()] for c in classes])
            probe = LinearClassifier.fit(z[rows], y[rows], self.C, self.iterations, scaler)
            accuracies.setdefault(m, []).append(probe.accuracy(z_judged, y_judged))
        for m, values in accuracies.items():
            mean, error = mean_and_error(torch.tensor(values, dtype=torch.float64))
            error = math.hypot(error, binomial_error(mean, n))
            settings = {"labels_per_class": m, "dimensions": z.shape[1]}
            yield Finding(f"probe_accuracy_{m}_labels", "probe", mean, error, "share", n, settings)


class KNN(_Labelled):
    """Accuracy of the majority vote of the k nearest training examples in code space, by Euclidean distance.

    Of classes with equal votes the one with the lowest index wins. The standard error is binomial.

    Args:
        k: neighbours. train: training examples to look among, drawn at random; None takes all.
    """

    def __init__(self, k: PositiveInt = 5, train: PositiveInt | None = 10_000):
        self.k, self.train = k, train

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        train, judged, same = keys_and_queries(subject, self.train)
        labels = vote(train.labels[neighbours(judged.z, train.z, self.k, same)])
        accuracy, n = float((labels == judged.labels).double().mean()), len(labels)
        settings = {"dimensions": train.z.shape[1]}
        yield Finding("knn_accuracy", "knn", accuracy, binomial_error(accuracy, n), "share", n, settings)


def vote(labels: Tensor) -> Tensor:
    """The most frequent of each row's labels (N, k), the lowest of equally frequent ones, (N,).

    >>> vote(torch.tensor([[2, 1, 2], [3, 0, 1]]))
    tensor([2, 0])
    """
    counts = torch.nn.functional.one_hot(labels).sum(1).double()
    return (counts - torch.linspace(0, 0.5, counts.shape[1], device=counts.device)).argmax(1)


def keys_and_queries(subject: Subject, limit: int | None, keep: bool = False) -> tuple[Coded, Coded, bool]:
    """Codes to look among, codes to look for, and whether the two are one set. Judged by itself, all of it is taken."""
    if subject.split == "train":
        both = coded(subject, keep=keep)
        return both, both, True
    return coded(subject, "train", limit, keep), coded(subject, keep=keep), False


# --- what a code keeps ----------------------------------------------------------------------------------------------


def active(means: Tensor, threshold: float = ACTIVE) -> Tensor:
    """Which latent units follow x: Var_x(E_q[z]) > threshold, (d,), from the posteriors' means (N, d).

    >>> active(torch.tensor([[1.0, 0.05], [-1.0, -0.05]]))
    tensor([ True, False])
    """
    return means.double().var(0) > threshold


class ActiveUnits(Estimator):
    """How many latent units the model uses: those with Var_x(E_q(z|x)[z]) > threshold (Burda et al. 2016, section 5.2).

    The standard error is that of the count under resampling of the examples. Where E_q[z] has no closed form, the code
    at ε = 0 stands for it.

    Args:
        threshold: on the variance. resamples: of the bootstrap.
    """

    needs = (LatentVariable,)
    cheap: ClassVar[bool] = True

    def __init__(self, threshold: NonNegativeFloat = ACTIVE, resamples: PositiveInt = 100):
        self.threshold, self.resamples = threshold, resamples

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model = subject.model
        assert isinstance(model, LatentVariable)
        means = torch.cat([self._codes(model, batch) for batch in subject.batches()])
        n, total = means.shape
        count = int(active(means, self.threshold).sum())
        centred = means - means.mean(0)
        squares, counts = centred.square(), []
        for _ in range(self.resamples):
            weights = torch.bincount(torch.randint(n, (n,)), minlength=n).double() / n
            variance = (weights @ squares - (weights @ centred).square()) * n / max(n - 1, 1)
            counts.append(int((variance > self.threshold).sum()))
        error = float(torch.tensor(counts, dtype=torch.float64).std()) if len(counts) > 1 else 0.0
        yield Finding("active_units", "active-units", count, error, "units", n, {"total": total})

    @staticmethod
    def _codes(model: LatentVariable, batch: Batch) -> Tensor:
        return centre(model.encode(batch.x, **given(model, batch.y))).flatten(1).double().cpu()


def unit_scaled(x: Tensor, support: Support, levels: int | None) -> Tensor:
    """Data or expected values brought to the scale on which images are [0, 1]; reals stay as they are, nothing is
    clipped.

    >>> unit_scaled(torch.tensor([-1.0, 1.0]), "signed", 256), unit_scaled(torch.tensor([0, 16]), "levels", 17)
    (tensor([0., 1.]), tensor([0., 1.]))
    """
    x = x.float()
    if support == "signed":
        return (x + 1) / 2
    return x / ((levels or 256) - 1) if support == "levels" else x


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """‖x - reconstruction‖² for each example, summed over all of its elements, (B,), in float64.

    >>> squared_error(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.5]]))
    tensor([1.2500], dtype=torch.float64)
    """
    return (x.double() - reconstruction.double()).square().flatten(1).sum(1)


class ReconstructionError(Estimator):
    """Squared error of the reconstruction, summed over the elements of an example, images on [0, 1].

    Of a model of bits, x are bits: compare rows of one protocol only. The mean image alone leaves 52.90 on MNIST's
    grey test images, 30 principal components 13.87 (Hinton & Salakhutdinov 2006).
    """

    needs = (Reconstructs,)
    cheap: ClassVar[bool] = True

    def unfit(self, subject: Subject) -> str | None:
        if subject.model.support == "tokens":
            return "models tokens, which have no squared error"
        return super().unfit(subject)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        model, levels = subject.model, subject.spec.levels
        assert isinstance(model, Reconstructs)
        values = []
        for batch in subject.batches():
            reconstruction = model.reconstruct(batch.x, **given(model, batch.y))
            pair = (unit_scaled(t, model.support, levels) for t in (batch.x, reconstruction))
            values.append(squared_error(*pair))
        mean, error = mean_and_error(torch.cat(values))
        kind = kind_given(model, "recon")
        yield Finding("reconstruction_error", kind, mean, error, "squared error", sum(map(len, values)))


def numpy(t: Tensor) -> np.ndarray:
    return t.cpu().numpy()
