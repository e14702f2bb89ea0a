"""What travels from data to objective: `DataSpec` says what a data set is, `Batch` is a piece of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from gentrain.types import Pairs, Support

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Modes:
    """An equal mixture of round Gaussians, as far as it is known: its M `centres`, each a point, and their `std`."""

    centres: tuple[tuple[float, ...], ...]
    std: float


@dataclass(frozen=True)
class Captions:
    """Labels that are captions, "a thick seven": of what image, and how much it has of something measured in it.

    Args:
        nouns: N words. attributes: A words, from little to much.
        bounds: the A - 1 values between them; one that lies on a bound belongs below it.
    """

    nouns: tuple[str, ...]
    attributes: tuple[str, ...]
    bounds: tuple[float, ...]

    @property
    def texts(self) -> list[str]:
        """The caption of each label A noun + attribute."""
        return [f"a {attribute} {noun}" for noun in self.nouns for attribute in self.attributes]

    def attribute(self, measured: Tensor) -> Tensor:
        """The attributes' numbers, int64, of as many measured values."""
        return sum(((measured > bound).long() for bound in self.bounds), (measured != measured).long())


@dataclass(frozen=True)
class DataSpec:
    """What a data set stores, before any conversion.

    Args:
        name: the data set's name, as in `data=mnist`.
        shape: of one example: (channels, height, width) for images, (dimensions,) for points, (length,) for text.
        support: the space the *stored* values live in: `levels` for bytes, `binary`, `real` or `tokens`.
        levels: number of values a stored element can take (256 for bytes, 2 for bits, the vocabulary's size for
            tokens); None for reals.
        classes: number of labels, or None without labels.
        sizes: examples in each split.
        modes: those of the distribution the data were drawn from, where they are known.
        channel_classes: K, where each of the C channels is an image with one of K labels of its own, y_1 … y_C, and the
            example's is y_1 K^(C-1) + … + y_C; else None.
        captioning: what the labels say, where they are captions.
        pairs: whether batches have a `pair`, and of which kind; None where they have none.
        vocabulary: of tokens, the characters that they stand for, in their order.
    """

    name: str
    shape: tuple[int, ...]
    support: Support
    levels: int | None = None
    classes: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    modes: Modes | None = None
    channel_classes: int | None = None
    captioning: Captions | None = None
    pairs: Pairs | None = None
    vocabulary: str | None = None

    @property
    def centres(self) -> list[list[float]] | None:
        """Those of `modes`, as configurations have them."""
        return None if self.modes is None else [list(centre) for centre in self.modes.centres]

    @property
    def captions(self) -> list[str] | None:
        """The caption of each label, where labels have some."""
        return None if self.captioning is None else self.captioning.texts

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3


class Batch(NamedTuple):
    """`x` (B, *shape) in the model's support; `y` (B,) labels; for translation, `pair` (B, *shape) the examples of the
    other domain, in the same support, and `pair_y` (B,) their labels where they have labels of their own.

    In paired data `pair` is what a translator is given and `x` what it should make of that. In unpaired data they are
    of different examples.

    `starts` (B,), bools, is there where a row goes on where the same row of the batch before ended: except where it is
    true, and the row is the beginning of a stream.
    """

    x: Tensor
    y: Tensor | None = None
    pair: Tensor | None = None
    pair_y: Tensor | None = None
    starts: Tensor | None = None
