"""The contract of an estimator: it asks a trained model for numbers and says what kind of numbers they are."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from gentrain.batch import Batch, DataSpec
from gentrain.data.pipeline import Pipeline
from gentrain.errors import UsageError
from gentrain.models.base import Generative
from gentrain.models.domains import Translator

T = TypeVar("T")
Track = Callable[[Iterable[T], int, str], Iterable[T]]


def nowhere(data: str | Mapping[str, Any]) -> Pipeline:
    """Other data, for a subject that knows only its own."""
    raise UsageError(f"data={data}: other data can't be had here; use gentrain evaluate")


def untracked(items: Iterable[T], total: int, label: str) -> Iterable[T]:
    """A progress display for whoever wants none."""
    return items


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model in eval mode, on its device, and the data it is held against.

    Args:
        model, pipeline: of the run. split: that is judged. n: only its first so many examples.
        seed: of everything an estimator draws. data: the fingerprint of the training set.
        track: track(items, total, label) shows progress through `items`.
        elsewhere: elsewhere(name) are other data, brought to the model as its own are.
    """

    model: Generative
    pipeline: Pipeline
    split: str = "test"
    n: int | None = None
    seed: int = 0
    data: str = ""
    track: Track = untracked
    elsewhere: Callable[[str | Mapping[str, Any]], Pipeline] = nowhere

    @property
    def spec(self) -> DataSpec:
        return self.pipeline.spec

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    def size(self, split: str | None = None, limit: int | None = None) -> int:
        """How many examples `batches` gives.

        Raises:
            UsageError: the split doesn't exist, or is smaller than the examples asked for.
        """
        split = split or self.split
        have = self.spec.sizes.get(split, 0)
        if not have:
            splits = ", ".join(self.spec.sizes)
            raise UsageError(f"split={split}: data={self.spec.name} has {splits}")
        if self.n is not None and split == self.split and self.n > have:
            raise UsageError(f"n={self.n}: the {split} split of data={self.spec.name} has {have} examples")
        bounds = [have, *([self.n] if self.n and split == self.split else []), *([limit] if limit else [])]
        return min(bounds)

    def batches(self, split: str | None = None, limit: int | None = None, batch_size: int = 500) -> Iterator[Batch]:
        """The examples of a split (the judged one if None), at most `limit`, in the model's support, `batch_size` at a
        time. The draws of a binarization or dequantization are the same in every run."""
        size = self.size(split, limit)
        yield from self.pipeline.evaluation(split or self.split, min(batch_size, size), size)

    def examples(self, split: str | None = None, limit: int | None = None) -> Tensor:
        """The same in one tensor, (N, *shape)."""
        return torch.cat([batch.x for batch in self.batches(split, limit)])

    def labelled(self, split: str | None = None, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Examples and labels, (N, *shape) and (N,).

        Raises:
            UsageError: the data set has no labels.
        """
        batches = list(self.batches(split, limit))
        labels = [batch.y for batch in batches if batch.y is not None]
        if not labels:
            raise UsageError(f"data={self.spec.name} has no labels, which this estimator needs")
        return torch.cat([batch.x for batch in batches]), torch.cat(labels)


@dataclass(frozen=True)
class Finding:
    """One number: the mean `value` over `n` examples of `metric`, in `unit`, with its standard error.

    Args:
        kind: what sort of number it is; numbers of different kinds are never ranked together.
        settings: what was found on the way or chosen by the data and belongs to the number: an interval, a bandwidth.
    """

    metric: str
    kind: str
    value: float
    stderr: float
    unit: str
    n: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """Something to look at, (H, W, 3) bytes, kept as `samples/<name>-<step>.png`."""

    name: str
    pixels: np.ndarray


class Estimator(ABC):
    """One way of making numbers of a model. Its constructor's arguments are its settings, in `conf/metrics/*.yaml`.

    Class attributes:
        needs: the model must be an instance of one of these capabilities.
        of_samples: it is of samples, which must be draws from the model's distribution and not a few things repeated.
        cheap: done within a second or so: such an estimator also runs in training, at `trainer.evaluate_every`.
    """

    needs: ClassVar[tuple[type, ...]] = (Generative,)
    of_samples: ClassVar[bool] = False
    cheap: ClassVar[bool] = False

    def unfit(self, subject: Subject) -> str | None:
        """Why this estimator can't judge the subject, in words that follow the model's name; None if it can."""
        if self.of_samples and isinstance(subject.model, Translator):
            return "draws samples by translating a few inputs that it keeps; use metrics=[translation]"
        if isinstance(subject.model, self.needs):
            return None
        return f"is no {' or '.join(need.__name__ for need in self.needs)}"

    @abstractmethod
    def __call__(self, subject: Subject) -> Iterable[Finding | Picture]:
        """What it finds. Draws come from torch's global generators, which the caller has seeded."""


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of (N,) values and its standard error, the sample deviation over √N; in float64.

    >>> mean_and_error(torch.tensor([1.0, 3.0]))
    (2.0, 1.0)
    """
    values = values.double()
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(values.mean()), error


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it draws come from `seed`, no gradients are kept, and training's generators stay as they are."""
    from gentrain.device import own_randomness

    with own_randomness(seed), torch.no_grad():
        yield
