"""The contract of a use: it draws examples from a trained model, given how many are wanted and, if it asks, data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Subject
from gentrain.models.base import Conditional, Decoder, Generative, LatentVariable


class Data(Protocol):
    """The run's own data, read when first asked for: a use that needs none works where they can't be had."""

    def __call__(self) -> Subject: ...


@dataclass(frozen=True)
class Drawn:
    """What came of a use.

    Args:
        x: the examples, (N, *shape), in the model's support.
        columns: examples in a row of the picture; None makes it about square.
        shown: what the picture shows instead of x, as many: the means of pixels rather than draws from them.
        arrays: what goes into an NPZ file beside x, by name.
        texts: the examples in words, for a model of tokens.
        note: what is to be said of them, in one line.
    """

    x: Tensor
    columns: int | None = None
    shown: Tensor | None = None
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Sequence[str] | None = None
    note: str | None = None


class Use(ABC):
    """One kind of use. Its constructor's arguments are its settings, in `conf/kind/*.yaml`.

    Class attributes:
        needs: the model must be an instance of one of these capabilities.
        conditional: whether it knows what to do with a model of p(x|y).
    """

    needs: ClassVar[tuple[type, ...]] = (Generative,)
    conditional: ClassVar[bool] = False

    def unfit(self, model: Generative) -> str | None:
        """Why the model can't serve, in words that follow its name; None if it can."""
        if isinstance(model, Conditional) and model.classes and not self.conditional:
            return "decodes nothing without a label, which this kind doesn't take"
        if isinstance(model, self.needs):
            return None
        return f"is no {' or '.join(need.__name__ for need in self.needs)}"

    @abstractmethod
    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        """Draw about n examples. Randomness comes from torch's global generators, which the caller has seeded."""


def examples(data: Data, n: int) -> Tensor:
    """The first n test examples in the model's support, (n, *shape).

    Raises:
        UsageError: there are fewer.
    """
    return batch(data, n).x


def batch(data: Data, n: int) -> Batch:
    """The first n test examples in the model's support, with their labels where there are any.

    Raises:
        UsageError: there are fewer.
    """
    subject = data()
    have = subject.size()
    if n > have:
        raise UsageError(f"n: {n:,} test examples are wanted and {subject.spec.name} has {have:,}; set a smaller n")
    return next(subject.batches(limit=n, batch_size=n))


def draw_codes(model: LatentVariable | Decoder, n: int) -> Tensor:
    """n draws from the prior, (n, *code)."""
    return model.prior.sample(torch.Size([n])).to(model.device)
