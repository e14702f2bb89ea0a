"""A data set as it is stored: its description and its splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gentrain.batch import DataSpec
from gentrain.errors import DataError, UsageError
from gentrain.types import Support

if TYPE_CHECKING:
    from gentrain.data.pairs import Degradation
    from gentrain.data.stacked import Stack
    from gentrain.data.text import Vocabulary

__all__ = ["SPLITS", "Order", "Source", "Split", "hold_out", "make_source", "shares"]

SPLITS = ("train", "validation", "test")

Order = Literal["shuffled", "stream"]
"""How an epoch goes through the training split: at random, or along it in as many streams as a batch has rows."""

_STORED = {
    "binary": (torch.uint8,),
    "levels": (torch.uint8,),
    "real": (torch.float32,),
    "tokens": (torch.uint8, torch.int16, torch.int32, torch.int64),
}


@dataclass(frozen=True)
class Split:
    """Examples `x` (N, *shape), as stored or put together from what is, and any labels `y` (N,), int64."""

    x: Tensor | Stack
    y: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> Split:
        return Split(self.x[rows], None if self.y is None else self.y[rows])


@dataclass(frozen=True)
class Source:
    """A data set in memory or memory-mapped.

    Args:
        spec: what it is; `spec.sizes` counts the examples of each split.
        splits: "train", and "validation" and "test" where there are any.
        vocabulary: how tokens read as text, for `tokens` only.
        order: of training. `stream` needs splits in which each example goes on where the one before it ended.
        change: what is done to each image on its way to the model.
        partner: for translation, the other domain, or what makes each example's partner of it.
        one_set: whether the other domain is other examples of this set, changed.
    """

    spec: DataSpec
    splits: Mapping[str, Split]
    vocabulary: Vocabulary | None = None
    order: Order = "shuffled"
    change: Degradation | None = None
    partner: Source | Degradation | None = None
    one_set: bool = False

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the training split: types, shapes and every stored value, and of what makes pairs of it."""
        digest = hashlib.sha256()
        train = self.splits["train"]
        for tensor in (train.x, train.y):
            if tensor is None:
                continue
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            for piece in tensor.split(4096):  # a memory-mapped set never has to be in memory as a whole
                digest.update(piece.contiguous().numpy().data)
        for part in (self.change, self.partner):
            if part is not None:
                digest.update((part.fingerprint() if isinstance(part, Source) else repr(part)).encode())
        return digest.hexdigest()


def make_source(
    name: str,
    support: Support,
    splits: Mapping[str, Split | None],
    *,
    levels: int | None = None,
    classes: int | None = None,
    vocabulary: Vocabulary | None = None,
    order: Order = "shuffled",
) -> Source:
    """Check that the splits agree with one another and describe them.

    Args:
        name: of the data set, as in `data=mnist`.
        support: of what is stored: `binary`, `levels`, `real` or `tokens`.
        splits: split name -> examples; None and empty ones are left out.
        levels, classes: as in `DataSpec`.
        vocabulary: for `tokens`.
        order: as in `Source`.

    Raises:
        DataError: without training examples, or if shapes or labels of the splits disagree.
    """
    kept = {key: splits[key] for key in SPLITS if splits.get(key) is not None}
    kept = {key: split for key, split in kept.items() if split is not None and len(split)}
    if "train" not in kept:
        raise DataError(f"data={name} has no training examples")
    shape = tuple(kept["train"].x.shape[1:])
    for key, split in kept.items():
        assert split.x.dtype in _STORED[support], f"{name}: {support} stored as {split.x.dtype}"
        if tuple(split.x.shape[1:]) != shape:
            raise DataError(f"data={name}: {key} examples are shaped {tuple(split.x.shape[1:])}, training ones {shape}")
        if split.y is not None and len(split.y) != len(split):
            raise DataError(f"data={name}: {key} has {len(split)} examples but {len(split.y)} labels")
    sizes = {key: len(split) for key, split in kept.items()}
    characters = None if vocabulary is None else vocabulary.characters
    spec = DataSpec(name, shape, support, levels, classes, sizes, vocabulary=characters)
    return Source(spec, kept, vocabulary, order)


def hold_out(train: Split, validation: int | None, default: int, name: str) -> tuple[Split, Split]:
    """Keep the last `validation` examples (`default` if None) from training: (training, validation).

    Raises:
        UsageError: if nothing is left to train on.
    """
    n = default if validation is None else validation
    if n >= len(train):
        raise UsageError(
            f"data.validation={n} leaves nothing of the {len(train)} training examples of data={name}: "
            f"choose at most {len(train) - 1}"
        )
    cut = len(train) - n
    return train[:cut], train[cut:]


def shares(n: int) -> int:
    """A tenth of n examples, at least one where three splits are possible: the default held-out share.

    >>> shares(1000), shares(5), shares(2)
    (100, 1, 0)
    """
    return max(n // 10, 1) if n >= 3 else 0
