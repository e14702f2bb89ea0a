"""Data sets that come with the installation: nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gentrain.data.randomness import fixed_permutation
from gentrain.data.source import Source, Split, hold_out, make_source
from gentrain.data.text import Vocabulary, source_from_text
from gentrain.errors import DataError
from gentrain.types import NonNegativeInt, PositiveInt

__all__ = ["PYDOC_VOCABULARY", "digits", "pydoc"]

_DIGITS_HELD_OUT = 270

PYDOC_VOCABULARY = Vocabulary("\n" + "".join(map(chr, range(32, 127))) + "\ufffd")
"""Line feed, printable ASCII and one token for anything else: the same for every version of Python's documentation."""

_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})


def _digits_table() -> np.ndarray:
    """scikit-learn's table of 1,797 rows: 64 grey levels 0…16 and the digit."""
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DataError("data=digits comes with scikit-learn, which is not installed: pip install scikit-learn")
    file = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if file.exists():  # importing scikit-learn takes a hundred times as long as reading its file
        return np.loadtxt(file, delimiter=",", dtype=np.uint8)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels]).astype(np.uint8)


def digits(validation: NonNegativeInt | None = None) -> Source:
    """The 1,797 handwritten digits of 8 x 8 pixels and 17 grey levels of scikit-learn (Alpaydin & Kaynak 1998).

    Split 1,257 / 270 / 270 unless `validation` says otherwise; the test split is always the same, and the classes are
    spread evenly over the splits.
    """
    table = torch.from_numpy(_digits_table())
    table = table[fixed_permutation(len(table), "digits")]
    # Sorted by class, evenly spaced rows are a stratified sample.
    by_class = table[:, -1].argsort(stable=True)
    rest, test = _every(by_class, _DIGITS_HELD_OUT)
    held = _DIGITS_HELD_OUT if validation is None else validation
    split = {"train": rest, "validation": rest[:0], "test": test}
    if 0 < held < len(rest):
        split["train"], split["validation"] = _every(rest, held)
    elif held:
        hold_out(Split(rest), held, 0, "digits")  # says why not
    parts = {key: _digits_split(table[rows.sort().values]) for key, rows in split.items()}
    return make_source("digits", "levels", parts, levels=17, classes=10)


def _digits_split(table: torch.Tensor) -> Split:
    return Split(table[:, :64].reshape(-1, 1, 8, 8).contiguous(), table[:, 64].long())


def _every(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Take `count` evenly spaced rows: (those left, those taken)."""
    taken = torch.zeros(len(rows), dtype=torch.bool)
    taken[(torch.arange(count) * len(rows) + len(rows) // 2) // count] = True
    return rows[~taken], rows[taken]


def pydoc(
    length: PositiveInt = 128, order: Literal["shuffled", "stream"] = "stream", validation: NonNegativeInt | None = None
) -> Source:
    """The topics of Python's own documentation (what `help()` shows) as windows of `length` characters.

    The text belongs to the running version of Python, so numbers compare within one version; the vocabulary of 97
    characters does not change.
    """
    from pydoc_data.topics import topics

    content = "\n\n".join(topics[name] for name in sorted(topics)).translate(_PLAIN)
    return source_from_text(content, PYDOC_VOCABULARY, length, order, validation, "pydoc")
