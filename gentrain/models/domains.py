"""What models of two domains can do, as base classes like those of `gentrain.models.base`."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from gentrain.models.base import Classifies, Decoder, Generative
from gentrain.types import Pairs


class LearnsFromPairs(Generative):
    """Learns from `Batch.x` and `Batch.pair`: its objective finds both in every batch.

    Class attributes:
        pairs: the kinds of pairs that it can learn from.
    """

    pairs: ClassVar[tuple[Pairs, ...]] = ("paired", "unpaired")


class Translator(LearnsFromPairs):
    """Makes of an example of one domain, `Batch.pair`, one of the other, `Batch.x`.

    It is a distribution over x all the same: `sample` translates examples of the one domain that the model keeps.
    """

    noisy: bool = False
    """Whether a translation is a draw, and that of the same example another one the next time."""

    @abstractmethod
    def translate(self, pair: Tensor) -> Tensor:
        """x for each of `pair`, both (B, *shape) and in `support`."""


class TranslatesBack(Translator):
    """Goes both ways."""

    @abstractmethod
    def translate_back(self, x: Tensor) -> Tensor:
        """The example of the domain of `pair` for each of x, both (B, *shape) and in `support`."""


class Couples(Decoder, LearnsFromPairs):
    """A decoder of both domains: one code gives two examples that belong together."""

    @abstractmethod
    def decode_pair(self, z: Tensor) -> Tensor:
        """The example of the domain of `pair` that goes with `decode(z)`, (B, *shape) in `support`."""


class Adapts(Classifies, LearnsFromPairs):
    """Learns labels of x alone, and tells those of `pair` all the same: domain adaptation."""

    @abstractmethod
    def log_class_pair(self, pair: Tensor) -> Tensor:
        """log p(y | pair) in nats for every label, (B, K)."""
