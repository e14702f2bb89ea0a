"""Captions as what a model is conditional on: words, of which others can be made than those it has seen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gentrain.errors import UsageError, nearest
from gentrain.models.base import Conditional


class Captioned(Conditional):
    """p(x | caption). A label y is the number of one of K captions; by their words others can be asked for.

    Attributes:
        words: that it knows; none of an instance whose labels are no captions.
    """

    words: tuple[str, ...]

    @abstractmethod
    def sample_text(self, n: int, text: str) -> Tensor:
        """n draws, (n, *shape), of a caption.

        Raises:
            UsageError: it has no word, or one that the model doesn't know.
        """


class Vocabulary(nn.Module):
    """The words of K captions, and each caption as the mean of its words, one-hot: rows of weights (K, V).

    A linear map of such a row is the mean of its words' embeddings, so that a caption never seen means what its words
    do. Without captions every label is a word of its own.

    Args:
        classes: K. captions: K texts; words are parted by spaces, and the order they stand in is not read.

    Raises:
        UsageError: there are other than K captions, or one is empty.

    >>> vocabulary = Vocabulary(2, ["a thin one", "a thick one"])
    >>> vocabulary.words, vocabulary.read("thick one")
    (('a', 'one', 'thick', 'thin'), tensor([0.0000, 0.5000, 0.5000, 0.0000]))
    """

    rows: Tensor

    def __init__(self, classes: int, captions: Sequence[str] | None = None):
        super().__init__()
        if captions is not None and len(captions) != classes:
            raise UsageError(
                f"model.captions: are {len(captions)}, of {classes} labels; let them be ${{data.captions}}"
            )
        self.words = tuple(sorted({word for text in captions or () for word in text.split()}))
        rows = torch.eye(classes) if captions is None else torch.stack([self.read(text) for text in captions])
        self.register_buffer("rows", rows, persistent=False)

    @property
    def size(self) -> int:
        """V."""
        return self.rows.shape[1]

    def forward(self, one_hot: Tensor) -> Tensor:
        """Labels (B, K), one-hot -> (B, V)."""
        return one_hot @ self.rows

    def read(self, text: str) -> Tensor:
        """A caption's weights, (V,).

        Raises:
            UsageError: it has no word, or one that isn't known.
        """
        asked = text.lower().split()
        unknown = [word for word in asked if word not in self.words]
        if unknown or not asked:
            what = f"the word {unknown[0]!r} is not known.{nearest(unknown[0], self.words)}" if unknown else "is empty."
            raise UsageError(f"text={text!r}: {what} Known words: {', '.join(self.words)}")
        return torch.tensor([asked.count(word) / len(asked) for word in self.words])
