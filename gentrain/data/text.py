"""Text as sequences of characters: `data=text path=my.txt`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gentrain.data.places import data_root
from gentrain.data.source import Order, Source, Split, hold_out, make_source
from gentrain.errors import DataError
from gentrain.types import NonNegativeInt, PositiveInt

__all__ = ["Vocabulary", "source_from_text", "text"]


@dataclass(frozen=True)
class Vocabulary:
    """Characters as tokens: the token of a character is its place in `characters`, the last one stands for any other.

    >>> vocabulary = Vocabulary("ab ?")
    >>> vocabulary.encode("a bee").tolist(), vocabulary.decode([1, 0, 2, 3])
    ([0, 2, 1, 3, 3], 'ba ?')
    """

    characters: str

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Tokens, (len(text),): int16, or int32 beyond 32,767 characters."""
        if not text:
            return torch.zeros(0, dtype=torch.int16)
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        dtype = np.int16 if len(self) < 2**15 else np.int32
        table = np.full(max(int(points.max()), *map(ord, self.characters)) + 1, len(self) - 1, dtype=dtype)
        table[[ord(character) for character in self.characters]] = np.arange(len(self))
        return torch.from_numpy(table[points])

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """The text of a sequence of tokens."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return "".join(self.characters[i] for i in ids)


def windows(tokens: Tensor, length: int) -> Tensor:
    """Consecutive windows that don't overlap, (N, length); the rest at the end is left out."""
    n = len(tokens) // length
    return tokens[: n * length].view(n, length)


def source_from_text(
    content: str, vocabulary: Vocabulary, length: int, order: Order, validation: int | None, name: str
) -> Source:
    """Windows of a text: the last tenth of it is for testing, the tenth before (or `validation` windows) for
    validation, what comes first for training. Each window begins where the one before it ended.

    With validation=0 that is nanoGPT's split of 0.9 and 0.1. What is left of a part beyond its last whole window is
    left out.

    Raises:
        DataError: if the text is too short for a window in the training and the test part.
    """
    tokens = vocabulary.encode(content)
    cut = _testing_from(content)
    rest, test = windows(tokens[:cut], length), windows(tokens[cut:], length)
    if len(rest) < 2 or not len(test):
        raise DataError(f"data={name}: {len(content)} characters are too few for windows of data.length={length}")
    train, held = hold_out(Split(rest), validation, max(len(rest) // 9, 1), name)
    splits = {"train": train, "validation": held, "test": Split(test)}
    return make_source(name, "tokens", splits, levels=len(vocabulary), vocabulary=vocabulary, order=order)


def _testing_from(content: str) -> int:
    """Where the test part begins: int(0.9 n), as in nanoGPT."""
    return len(content) * 9 // 10


def text(
    path: str,
    length: PositiveInt = 128,
    order: Literal["shuffled", "stream"] = "stream",
    root: str | None = None,
    validation: NonNegativeInt | None = None,
) -> Source:
    """One's own text file (UTF-8) as windows of characters. The vocabulary is the characters of all but the test part
    and one token (shown as U+FFFD) for any other.

    Args:
        path: the file; a relative path that leads nowhere from the current folder is looked for under `root`.
        length: characters in a window.
        order: `stream` reads along the text in as many places as a batch has rows, `shuffled` windows at random.
        root: where data sets lie; None is $GENTRAIN_DATA, else the user's cache folder.
        validation: windows kept for validation; None is a ninth of what is not for testing.

    Raises:
        DataError: if the file is missing, is not UTF-8 or too short.
    """
    file = Path(path).expanduser()
    if not file.exists() and (under := data_root(root) / file).exists():
        file = under
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}): convert it first") from error
    except OSError as error:
        where = f", here or in {data_root(root)}" if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"data.path={path} can't be read: {error.strerror}{where}") from error
    # The dollar comes last: before a brace that follows in the code table it would read as an interpolation in a YAML
    seen = sorted(
        set(content[: _testing_from(content)]) - {"\ufffd"}, key=lambda character: (character == "$", character)
    )
    return source_from_text(content, Vocabulary("".join(seen) + "\ufffd"), length, order, validation, "text")
