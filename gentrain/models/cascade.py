"""Decoders that make an image in steps, coarse to fine, each step two networks with a game of their own."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from gentrain.errors import UsageError
from gentrain.models.base import Conditional, Decoder
from gentrain.models.critics import Adversarial

SMALLEST, LARGEST = 4, 64
"""Sides of the images that such a model makes, the coarsest and the finest."""


class Cascade(Decoder, Conditional):
    """x = G(z) in steps, each a submodule with the parts `generator` and `discriminator`, trained independently.

    Attributes:
        steps: names of the submodules, the coarsest first.
    """

    steps: tuple[str, ...]

    @abstractmethod
    def player(self, step: str, x: Tensor) -> tuple[Adversarial, Tensor]:
        """What plays the game of a step against data x (B, *shape), and what is real to it, (B, …).

        Its networks are the step's own. It may know these very examples, row by row, as what its own are made from:
        it stands for no model beyond the batch. Labels go to it as to the model.
        """


def down(x: Tensor) -> Tensor:
    """d: images (B, C, H, W) at half the size, each pixel the mean of four.

    >>> import torch
    >>> down(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]]))
    tensor([[[[4.]]]])
    """
    return avg_pool2d(x, 2)


def up(x: Tensor) -> Tensor:
    """u: images (B, C, H, W) at twice the size, smoothed: bilinear interpolation."""
    return interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def sides(name: str, shape: tuple[int, ...], levels: int | None, halvings: int, option: str) -> list[int]:
    """The sides of images that are halved so often, the given one first.

    Args:
        name: of the model. shape, levels: of the data. option: what the user may change, with its value.

    Raises:
        UsageError: these are no square images of a fitting size.

    >>> sides("lapgan", (1, 28, 28), 256, 2, "model.halvings=2")
    [28, 14, 7]
    """
    if len(shape) != 3 or levels is None:
        raise UsageError(f"model={name} takes images, and one example here has shape {shape}; use model=gan")
    if shape[1] != shape[2] or shape[1] > LARGEST:
        raise UsageError(
            f"model={name} takes square images with a side of at most {LARGEST} pixels, not {shape[1]}x{shape[2]};"
            " resize the images or use model=gan"
        )
    found = [shape[1] >> i for i in range(halvings + 1)]
    if shape[1] % (1 << halvings) or found[-1] < SMALLEST:
        most = max((i for i in range(shape[1]) if not shape[1] % (1 << i) and shape[1] >> i >= SMALLEST), default=0)
        remedy = f"{shape[1]} pixels can be {most} times" if most else "resize the images or use model=gan"
        raise UsageError(
            f"{option}: a side of {shape[1]} pixels can't be halved {halvings} times to {SMALLEST} or more; {remedy}"
        )
    return found
