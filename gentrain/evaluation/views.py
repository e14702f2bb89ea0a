"""What is seen of an example: linear maps of it, of which the result is known and the example is sought."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from gentrain.data.randomness import fixed_permutation
from gentrain.errors import UsageError

LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""


class View(ABC):
    """y = A x for a linear A whose rows sum to one: what is seen of a picture is on the same scale as the picture."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """What is seen of examples (B, *shape), (B, …), differentiable."""

    @abstractmethod
    def picture(self, x: Tensor, blank: float) -> Tensor:
        """What is seen, as examples (B, *shape); `blank` stands where nothing is."""

    @abstractmethod
    def onto(self, z: Tensor, x: Tensor) -> Tensor:
        """z + A⁺ (A x - A z), both (B, *shape): the nearest to z of which is seen what is seen of x."""


class Pixels(View):
    """Some of the elements themselves.

    Args:
        known: which, of bools, (*shape) or (B, *shape).
    """

    def __init__(self, known: Tensor):
        self.known = known

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.known, x, torch.zeros_like(x))

    def picture(self, x: Tensor, blank: float) -> Tensor:
        return torch.where(self.known, x, torch.full_like(x, blank))

    def onto(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.where(self.known, x, z)


class BlockMeans(View):
    """The means of blocks of `factor` x `factor` pixels: a picture of fewer pixels.

    Raises:
        UsageError: examples are no images whose sides are multiples of it.

    >>> BlockMeans(2, (1, 2, 4))(torch.arange(8.0).view(1, 1, 2, 4))
    tensor([[[[2.5000, 4.5000]]]])
    """

    def __init__(self, factor: int, shape: tuple[int, ...]):
        if len(shape) != 3 or shape[1] % factor or shape[2] % factor or factor < 2:
            size = "x".join(map(str, shape))
            raise UsageError(f"examples of {size} have no blocks of {factor}x{factor} pixels")
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, self.factor)

    def picture(self, x: Tensor, blank: float) -> Tensor:
        return self(x.float()).repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)

    def onto(self, z: Tensor, x: Tensor) -> Tensor:
        return z + self.picture(x - z, 0.0)  # A⁺ repeats each mean all over its block


class Luminance(View):
    """The brightness of a picture in colour.

    Raises:
        UsageError: examples are no such pictures.
    """

    def __init__(self, shape: tuple[int, ...]):
        if len(shape) != 3 or shape[0] != 3:
            size = "x".join(map(str, shape))
            raise UsageError(f"examples of {size} have no colours, which take three channels")

    def __call__(self, x: Tensor) -> Tensor:
        return (x * x.new_tensor(LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)

    def picture(self, x: Tensor, blank: float) -> Tensor:
        return self(x.float()).expand(-1, 3, -1, -1)

    def onto(self, z: Tensor, x: Tensor) -> Tensor:
        weights = z.new_tensor(LUMINANCE).view(3, 1, 1)
        return z + self(x - z) * weights / weights.square().sum()


def missing(shape: tuple[int, ...], region: str, share: float) -> Tensor:
    """Which elements of an example are hidden: bools, (*shape), the same in all channels.

    `centre` is a window in the middle, `random` are single pixels, drawn once for all: whatever the seed, they are the
    same for every model of such examples. They hide `share` of the area as nearly as whole pixels allow. Of vectors,
    `top` and `left` are the first elements.

    Raises:
        UsageError: that is all or nothing.

    >>> missing((1, 4, 2), "bottom", 0.5)[0].int().tolist()
    [[0, 0], [0, 0], [1, 1], [1, 1]]
    """
    hidden = _hidden(shape, region, share)
    if not hidden.any() or hidden.all():
        raise UsageError(f"share={share:g}: hides all or nothing of {tuple(shape)}; take another share")
    return hidden


def _hidden(shape: tuple[int, ...], region: str, share: float) -> Tensor:
    hidden = torch.zeros(shape, dtype=torch.bool)
    if region == "random":
        area = shape[1:] if len(shape) == 3 else shape
        flat = torch.zeros(area).flatten()
        flat[fixed_permutation(len(flat), "missing")[: round(share * len(flat))]] = 1
        return hidden | flat.view(area).bool()
    if region == "centre":
        sides = shape[1:] if len(shape) == 3 else shape
        lengths = [round(side * share ** (1 / len(sides))) for side in sides]
        window = tuple(slice((s - n) // 2, (s - n) // 2 + n) for s, n in zip(sides, lengths, strict=True))
        hidden[(..., *window)] = True
        return hidden
    axis = {"top": -2, "bottom": -2, "left": -1, "right": -1}[region] if len(shape) == 3 else -1
    n = round(share * shape[axis])
    last = region in ("bottom", "right")
    hidden.narrow(axis, shape[axis] - n if last else 0, n).fill_(True)
    return hidden
