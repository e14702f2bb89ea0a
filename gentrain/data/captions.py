"""Digits with a caption each, "a thick seven", that is made from the label and from the image itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from gentrain.batch import Captions
from gentrain.data import embedded, vision
from gentrain.data.source import Source, Split, make_source
from gentrain.errors import UsageError, nearest
from gentrain.types import NonNegativeInt

__all__ = ["captioned_digits", "captioned_mnist", "stroke_width"]

NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THICKNESS = ("thin", "medium", "thick")
CHUNK = 4096  # images that are measured together


def stroke_width(x: Tensor) -> Tensor:
    """The mean width of the strokes, in pixels, of images x (B, 1, H, W) in [0, 1], bright on dark: (B,).

        w = 2 Σ x / Σ |∇x|

    Twice the area of the ink over the length of its outline, which for grey images is the total variation (by the
    coarea formula): a stroke of length L and width w has the area wL and an outline of 2L, but for its ends. Nothing is
    thresholded, so smoothed edges count for what they cover. An image without ink has the width 0.

    >>> bar = torch.zeros(1, 1, 40, 40)
    >>> bar[..., 10:14] = 1.0  # 4 wide, from edge to edge
    >>> stroke_width(bar)  # about 2 * 160 / (2 * 40 + 2 * 4), the ends included
    tensor([3.6607])
    """
    x = pad(x[:, 0].double(), (1, 1, 1, 1))
    across, along = x[:, 1:, 1:] - x[:, 1:, :-1], x[:, 1:, 1:] - x[:, :-1, 1:]
    outline = torch.hypot(across, along).sum((1, 2))
    return (2 * x.sum((1, 2)) / outline.clamp_min(1e-12)).float()


def captioned_digits(validation: NonNegativeInt | None = None, withhold: Sequence[str] = ()) -> Source:
    """scikit-learn's digits of 8 x 8 pixels, each with one of 30 captions; see `captioned`.

    >>> source = captioned_digits()
    >>> source.spec.classes, source.spec.captions[:4]
    (30, ['a thin zero', 'a medium zero', 'a thick zero', 'a thin one'])
    """
    return captioned(embedded.digits(validation), withhold)


def captioned_mnist(
    root: str | None = None,
    download: bool = True,
    validation: NonNegativeInt | None = None,
    withhold: Sequence[str] = (),
) -> Source:
    """MNIST, each digit with one of 30 captions; see `captioned`."""
    return captioned(vision.mnist(root, download, validation), withhold)


def captioned(base: Source, withhold: Sequence[str] = ()) -> Source:
    """Grey images of digits, the label of each the number of its caption: 3 times the digit, plus 0, 1 or 2 for a thin,
    medium or thick one by its `stroke_width`, whose bounds are the training images' terciles over all digits.

    Args:
        withhold: captions that no training example is to have: those that have them are left out. Held-out splits keep
            theirs, so that what a model makes of words that it never saw together can be judged.

    Raises:
        UsageError: there is no such caption, or nothing is left to train on.
    """
    top = (base.spec.levels or 2) - 1
    widths = {key: _measure(split, top) for key, split in base.splits.items()}
    thirds = torch.quantile(widths["train"].double(), torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    captions = Captions(NUMERALS, THICKNESS, tuple(thirds.tolist()))
    texts = captions.texts
    for text in withhold:
        if text not in texts:
            raise UsageError(f"data.withhold={text!r}: there is no such caption.{nearest(text, texts)}")
    out = torch.tensor([texts.index(text) for text in withhold], dtype=torch.int64)
    splits: dict[str, Split | None] = {}
    for key, split in base.splits.items():
        assert split.y is not None
        y = split.y * len(THICKNESS) + captions.attribute(widths[key])
        kept = ~torch.isin(y, out) if key == "train" else torch.ones(len(y), dtype=torch.bool)
        splits[key] = Split(split.x[kept], y[kept])
    if not len(splits["train"] or ()):
        raise UsageError(f"data.withhold: leaves nothing to train on; withhold some of the {len(texts)} captions")
    source = make_source(f"captioned_{base.spec.name}", "levels", splits, levels=base.spec.levels, classes=len(texts))
    return replace(source, spec=replace(source.spec, captioning=captions))


def _measure(split: Split, top: int) -> Tensor:
    return torch.cat([stroke_width(x.double() / top) for x in split.x.split(CHUNK)])
