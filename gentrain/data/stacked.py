"""Images in the colour channels of one: many modes that can be counted (Metz et al. 2017, arXiv:1611.02163)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from gentrain.data import embedded, vision
from gentrain.data.source import Source, Split, make_source
from gentrain.types import NonNegativeInt, PositiveInt

__all__ = ["Stack", "stacked_digits", "stacked_mnist"]


class Stack:
    """Examples (N, C, H, W) whose channels are rows of one set of grey images: put together when they are asked for.

    It has what a data set's pipeline does with a tensor, and the memory of the images and N C row numbers: 128,000
    stacks of three MNIST images are 41 MB, where they would be 301.

    Args:
        images: (M, 1, H, W). rows: which of them the channels are, (N, C), int32.
    """

    def __init__(self, images: Tensor, rows: Tensor):
        self.images, self.rows = images, rows
        self.shape = torch.Size([*rows.shape, *images.shape[2:]])
        self.dtype, self.device = images.dtype, images.device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Stack:
        return Stack(self.images, self.rows[rows])

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The examples at `index`, (B, C, H, W); `dim` is 0."""
        assert dim == 0
        rows = self.rows.index_select(0, index)
        return self.images.index_select(0, rows.flatten()).view(len(rows), *self.shape[1:])

    def split(self, size: int) -> Iterator[Tensor]:
        """All the examples, `size` at a time."""
        for rows in self.rows.split(size):
            yield self.images.index_select(0, rows.flatten()).view(len(rows), *self.shape[1:])

    def to(self, device: torch.device) -> Stack:
        return Stack(self.images.to(device), self.rows.to(device))

    def cpu(self) -> Stack:
        return self.to(torch.device("cpu"))

    def numel(self) -> int:
        """Bytes that it holds; with `element_size`, what it takes on a device."""
        return self.images.numel() * self.images.element_size() + self.rows.numel() * self.rows.element_size()

    def element_size(self) -> int:
        return 1


def stacked_mnist(
    n: PositiveInt = 128_000,
    channels: Literal[1, 2, 3, 4] = 3,
    seed: NonNegativeInt = 0,
    root: str | None = None,
    download: bool = True,
    validation: NonNegativeInt | None = None,
) -> Source:
    """n examples with random MNIST digits in their channels; held-out ones, a fifth as many, of held-out digits.

    The label is that of all channels together, y_1 10^(C-1) + … + y_C: the digits a, b, c make class 100a + 10b + c.

    Args:
        n: training examples. channels: C.
        seed: which draw of the examples; the run's own seed doesn't change them.
        root, download: of MNIST. validation: examples in that split; a fifth of n if None.

    Raises:
        DataError: MNIST can't be had.
    """
    return _stacked(vision.mnist(root, download), n, channels, seed, validation)


def stacked_digits(
    n: PositiveInt = 50_000,
    channels: Literal[1, 2, 3, 4] = 3,
    seed: NonNegativeInt = 0,
    validation: NonNegativeInt | None = None,
) -> Source:
    """The same of scikit-learn's digits of 8 x 8 pixels, which come with the installation. Arguments: see
    `stacked_mnist`.

    >>> source = stacked_digits(n=100)
    >>> source.spec.shape, source.spec.classes, source.spec.sizes
    ((3, 8, 8), 1000, {'train': 100, 'validation': 20, 'test': 20})
    """
    return _stacked(embedded.digits(), n, channels, seed, validation)


def _stacked(base: Source, n: int, channels: int, seed: int, validation: int | None) -> Source:
    classes = base.spec.classes
    assert classes is not None
    held = max(n // 5, 1)
    sizes = {"train": n, "validation": held if validation is None else validation, "test": held}
    splits: dict[str, Split | None] = {}
    for i, (key, size) in enumerate(sizes.items()):
        images, labels = base.splits[key].x, base.splits[key].y
        assert isinstance(images, Tensor) and labels is not None
        generator = torch.Generator().manual_seed(3 * seed + i)
        rows = torch.randint(len(images), (size, channels), generator=generator, dtype=torch.int32)
        place = classes ** torch.arange(channels - 1, -1, -1)
        splits[key] = Split(Stack(images, rows), (labels[rows.long()] * place).sum(1))
    name, kinds = f"stacked_{base.spec.name}", classes**channels
    source = make_source(name, "levels", splits, levels=base.spec.levels, classes=kinds)
    return replace(source, spec=replace(source.spec, channel_classes=classes))
