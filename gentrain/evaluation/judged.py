"""Examples and samples as they are judged: brought to [0, 1] by one map (points stay as they are), so that models of
one data set are judged in one space, whatever their support."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gentrain import pictures
from gentrain.data.pipeline import Pipeline
from gentrain.data.randomness import derive, fixed_permutation
from gentrain.errors import GentrainError, UsageError
from gentrain.evaluation.estimator import Subject, seeded
from gentrain.evaluation.ledger import on_unit_scale
from gentrain.models.base import Generative

CHUNK = 1000  # samples drawn at a time
KEPT = 256 << 20  # bytes of samples, or of features of one set, that are kept from one estimator to the next
_SAMPLES = 5  # first word of the hashes that seed the samples; the data pipeline has 1 to 4 and 6


def unit(pipeline: Pipeline, x: Tensor) -> Tensor:
    """Examples or samples in the model's support on the scale they are compared on, float32: levels and bits on
    [0, 1], stored real numbers as they are."""
    if pipeline.spec.support == "real":
        return x.detach().float()
    return pictures.to_unit(x, pipeline.support, pipeline.spec.levels)


def representation(pipeline: Pipeline) -> str:
    """The protocol as far as it still shows on [0, 1]: grey levels are the same to unit, signed and level models.

    >>> from gentrain.data.embedded import digits
    >>> representation(Pipeline(digits(), "signed", 10, 0)), representation(Pipeline(digits(), "binary", 10, 0))
    ('unit', 'binary, dynamic binarization')
    """
    return on_unit_scale(pipeline.protocol)


def finite(model: Generative, x: Tensor, what: str) -> Tensor:
    """x, what the model has given.

    Raises:
        GentrainError: some of it is NaN or infinite.
    """
    if not bool(torch.isfinite(x).all()):
        raise GentrainError(f"{what} of {type(model).__name__}: some are NaN or infinite; the model has diverged")
    return x


_shelves: dict[int, dict[Any, Any]] = {}


def shelf(subject: Subject) -> dict[Any, Any]:
    """What estimators of one evaluation share. It goes with the subject: in training each look has one of its own."""
    key = id(subject)
    if key not in _shelves:
        _shelves[key] = {}
        weakref.finalize(subject, _shelves.pop, key, None)
    return _shelves[key]


def samples(subject: Subject, n: int) -> Iterator[Tensor]:
    """n samples of the model on [0, 1], `CHUNK` at a time.

    They are a function of the subject's seed: the first m of n are the m that another estimator gets.

    Raises:
        GentrainError: a sample is NaN or infinite.
    """
    kept: list[Tensor] = shelf(subject).setdefault("samples", [])
    total = math.ceil(n / CHUNK)
    for i in subject.track(range(total), total, "samples"):
        if i < len(kept):
            chunk = kept[i]
        else:
            with seeded(derive(_SAMPLES, subject.seed, i) >> 1):
                chunk = subject.model.sample(CHUNK)
            chunk = unit(subject.pipeline, finite(subject.model, chunk, "samples"))
            if i == len(kept) and (i + 1) * chunk.numel() * chunk.element_size() <= KEPT:
                kept.append(chunk)
        yield chunk[: n - i * CHUNK]


def how_many(subject: Subject, split: str, n: int | None, at_most: int) -> int:
    """The size of the reference: n, or if None `at_most` of them or all that the split has.

    Raises:
        UsageError: the split has fewer than n examples, or doesn't exist.
    """
    have = subject.size(split)
    if n is not None and n > have:
        raise UsageError(f"n_reference={n}: the {split} split of data={subject.spec.name} has {have} examples; ask for"
                         f" {have} at most")  # fmt: skip
    return min(at_most, have) if n is None else n


def examples(subject: Subject, split: str, n: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """n examples of a split on [0, 1] with their labels, at most 500 at a time.

    Fewer than all are drawn at random, for a set may be sorted by label: the same ones in every run.
    """
    size = subject.size(split)
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[fixed_permutation(size, "reference")[:n]] = True
    start = 0
    for batch in subject.track(subject.batches(split), math.ceil(size / 500), f"features of {split}"):
        rows = chosen[start : start + len(batch.x)].to(batch.x.device)
        start += len(batch.x)
        if rows.any():
            yield unit(subject.pipeline, batch.x[rows]), None if batch.y is None else batch.y[rows]


def labelled(subject: Subject) -> bool:
    return (subject.spec.classes or 0) > 1
