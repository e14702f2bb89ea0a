"""Pairs for translation: an example and what has become of it, or examples of two domains that nobody has matched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gentrain.batch import DataSpec
from gentrain.data.randomness import uniform
from gentrain.data.source import Source, Split, hold_out
from gentrain.errors import DataError, UsageError
from gentrain.types import Change, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = ["Degradation", "paired", "unpaired"]

AMOUNTS: dict[Change, float | None] = {
    "inpaint": 0.25,
    "super_resolve": 4,
    "colourise": None,
    "denoise": 0.5,
    "edges": 0.5,
    "sketch": 1,
    "invert": None,
    "rotate": 1,
}
"""Every change and its usual amount, for those that have one."""

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Degradation:
    """x -> what is left of it, for images with values in [0, 1]: a translator is to find the way back.

        inpaint        a window in the middle, `amount` of the area, is grey
        super_resolve  means over blocks of `amount` x `amount` pixels, each as large as its block
        colourise      the luminance, in every channel
        denoise        with Gaussian noise of standard deviation `amount`, cut at 0 and 1
        edges          1 where the gradient (Sobel 1968) is longer than `amount`, 0 elsewhere
        sketch         dark lines on white: 1 - |x - its mean over a square of 2 `amount` + 1 pixels|, stretched
        invert         1 - x
        rotate         by `amount` quarter turns against the clock

    Args:
        change: which of them. amount: as above; None is the change's usual one.

    Raises:
        UsageError: the change takes no amount, or not this one.

    >>> Degradation("invert")(torch.tensor([0.25]).view(1, 1, 1, 1), torch.zeros(1)).item()
    0.75
    """

    change: Change
    amount: float | None = None

    def __post_init__(self) -> None:
        usual = AMOUNTS[self.change]
        if self.amount is None:
            object.__setattr__(self, "amount", usual)
            return
        option = f"data.amount={self.amount:g}"
        if usual is None:
            raise UsageError(f"{option}: data.change={self.change} takes no amount; leave it null")
        if self.change in ("super_resolve", "sketch", "rotate") and self.amount != int(self.amount):
            raise UsageError(f"{option}: data.change={self.change} takes a whole number, e.g. {usual:g}")
        if self.change == "inpaint" and not 0 < self.amount < 1:
            raise UsageError(f"{option}: is the share of the area that data.change=inpaint hides, between 0 and 1")
        if (self.change == "super_resolve" and self._whole == 1) or (self.change == "rotate" and self._whole % 4 == 0):
            raise UsageError(f"{option}: data.change={self.change} would change nothing; the usual one is {usual:g}")

    def require(self, spec: DataSpec) -> None:
        """Refuse data that can't be changed in this way.

        Raises:
            UsageError: they are no images, or have no colours or no size for it.
        """
        name = f"data.change={self.change}"
        if not spec.is_image:
            raise UsageError(f"{name}: is for images, and data={spec.name} has examples of shape {list(spec.shape)}")
        channels, height, width = spec.shape
        if self.change == "colourise" and channels != 3:
            raise UsageError(f"{name}: data={spec.name} is grey; take images of 3 channels, e.g. data@data.of=cifar10")
        if self.change == "inpaint" and self._window(height, width) in ((0, 0), (height, width)):
            raise UsageError(f"data.amount={self.amount:g}: hides all or nothing of {height} x {width} pixels")
        if self.change == "super_resolve" and (height % self._whole or width % self._whole):
            fitting = [n for n in range(2, min(height, width) + 1) if height % n == width % n == 0]
            raise UsageError(
                f"data.amount={self._whole}: blocks of so many pixels don't tile {height} x {width}; take one of"
                f" {', '.join(map(str, fitting))}"
            )
        if self.change == "rotate" and self._whole % 2 and height != width:
            raise UsageError(f"data.amount={self._whole}: turns {height} x {width} images on their side; take 2")

    @property
    def inverse(self) -> Degradation | None:
        """What leads back to x exactly, for changes that lose nothing.

        >>> Degradation("rotate", 1).inverse
        Degradation(change='rotate', amount=3)
        """
        match self.change:
            case "invert":
                return self
            case "rotate":
                return Degradation("rotate", -self._whole % 4 or 4)
            case _:
                return None

    @property
    def draws(self) -> bool:
        """Whether what it makes of x is left to chance."""
        return self.change == "denoise"

    @property
    def _whole(self) -> int:
        return int(self.amount or 1)

    def _window(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what `inpaint` hides."""
        share = math.sqrt(self.amount or 0)
        return round(height * share), round(width * share)

    def __call__(self, x: Tensor, keys: Tensor) -> Tensor:
        """x (B, C, H, W) in [0, 1]; `keys` (B,) are the examples' keys for random draws."""
        match self.change:
            case "inpaint":
                height, width = self._window(*x.shape[2:])
                top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
                x = x.clone()
                x[..., top : top + height, left : left + width] = 0.5
                return x
            case "super_resolve":
                small = F.avg_pool2d(x, self._whole)
                return small.repeat_interleave(self._whole, 2).repeat_interleave(self._whole, 3)
            case "colourise":
                grey = (x * x.new_tensor(_LUMINANCE)[:, None, None]).sum(1, keepdim=True)
                return grey.expand_as(x).contiguous()
            case "denoise":
                shape = tuple(x.shape[1:])
                u, v = uniform(keys, (2, *shape)).unbind(1)
                normal = (-2 * torch.log1p(-u)).sqrt() * torch.cos(2 * math.pi * v)  # Box & Muller 1958
                return (x + (self.amount or 0) * normal).clamp(0, 1)
            case "edges":
                return (_gradient(x) > (self.amount or 0)).to(x.dtype).expand_as(x).contiguous()
            case "sketch":
                side = 2 * self._whole + 1
                around = F.avg_pool2d(F.pad(x, [self._whole] * 4, mode="replicate"), side, 1)
                return (1 - 2 * (x - around).abs().mean(1, keepdim=True)).clamp(0, 1).expand_as(x).contiguous()
            case "invert":
                return 1 - x
            case "rotate":
                return torch.rot90(x, self._whole, (2, 3))


def _gradient(x: Tensor) -> Tensor:
    """The length of the Sobel gradient of an image's mean channel, 1 at a straight step from 0 to 1: (B, 1, H, W)."""
    smooth, slope = x.new_tensor([1.0, 2.0, 1.0]) / 4, x.new_tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    padded = F.pad(x.mean(1, keepdim=True), [1] * 4, mode="replicate")
    return F.conv2d(padded, kernels).square().sum(1, keepdim=True).sqrt()


def paired(
    of: Source,
    change: Change = "edges",
    amount: PositiveFloat | None = None,
    size: PositiveInt | None = None,
    validation: NonNegativeInt | None = None,
) -> Source:
    """Every example of a set beside what a degradation leaves of it, which is computed on the device, batch by batch.

    Args:
        of: the set, of images.
        change, amount: the degradation, see `Degradation`.
        size: images become size x size; None leaves them.
        validation: examples held out of training; None leaves the set's own split.

    Raises:
        UsageError: the set doesn't fit the change.

    >>> from gentrain.data.embedded import digits
    >>> paired(digits(), "invert").spec.name
    'digits-invert'
    """
    degradation = Degradation(change, amount)
    of = _held_out(_resized(_single(of), size), validation)
    degradation.require(of.spec)
    return replace(of, spec=replace(of.spec, name=f"{of.spec.name}-{change}", pairs="paired"), partner=degradation)


def unpaired(
    of: Source,
    to: Source | None = None,
    change: Change | None = None,
    amount: PositiveFloat | None = None,
    size: PositiveInt | None = None,
    pad: NonNegativeInt = 0,
    validation: NonNegativeInt | None = None,
) -> Source:
    """Two domains: examples of one set, and, drawn apart from them, examples of another or of the same one changed.

    Each has its own order and its own epochs. Without `to`, the one domain is the first half of the training examples
    and the other the second half, so that no example is seen in both.

    Args:
        of: the set that batches call x. to: the one they call `pair`; None takes other examples of `of`, changed.
        change, amount: what is done to the other domain, see `Degradation`; None is nothing, or `invert` without `to`.
        size: images of both become size x size; None leaves them.
        pad: pixels of level 0 that images of `to` get on every side before that, where theirs fill more of the frame.
        validation: examples of either domain held out of training; None leaves the sets' own splits.

    Raises:
        UsageError: the examples of both domains differ in shape, or can't be changed so.
        DataError: one domain has no examples.
    """
    if to is None and change is None:
        change = "invert"
    degradation = None if change is None else Degradation(change, amount)
    if degradation is None and amount is not None:
        raise UsageError(f"data.amount={amount:g}: is of data.change, which is null; leave it null too")
    of = _held_out(_resized(_single(of), size), validation)
    one_set = to is None
    if to is None:
        if pad:
            raise UsageError(
                f"data.pad={pad}: is of another set, data@data.to=…, and both domains are of one; set it 0"
            )
        of, to = _halves(of)
    else:
        to = _held_out(_resized(_padded(_single(to), pad), size), validation)
    if of.spec.shape != to.spec.shape:
        sizes = of.spec.is_image and to.spec.is_image and of.spec.shape[0] == to.spec.shape[0]
        remedy = f"bring images to one size by data.size, e.g. data.size={of.spec.shape[-1]}"
        if not sizes:
            remedy = "take two sets of images with as many channels, or of points"
        raise UsageError(
            f"data=unpaired: {of.spec.name} has examples of shape {list(of.spec.shape)} and {to.spec.name} of"
            f" {list(to.spec.shape)}; {remedy}"
        )
    other = to.spec.name if change is None else f"{to.spec.name}-{change}"
    if degradation is not None:
        degradation.require(to.spec)
    if lacking := [key for key in of.splits if key not in to.splits]:
        raise DataError(
            f"data=unpaired: {to.spec.name} has no {lacking[0]} split, which {of.spec.name} has: that domain is empty"
            + ("; set data.validation" if lacking[0] == "validation" else "; take another set")
        )
    to = replace(to, spec=replace(to.spec, name=other), change=degradation)
    spec = replace(of.spec, name=f"{of.spec.name}-and-{other}", pairs="unpaired")
    return replace(of, spec=spec, partner=to, one_set=one_set)


def _single(source: object) -> Source:
    """The set itself, if it is one and has no pairs yet."""
    if not isinstance(source, Source) or source.partner is not None:
        what = source.spec.name if isinstance(source, Source) else source
        raise UsageError(f"data.of={what}: pairs are made of one plain data set; name it by data@data.of=digits")
    return source


def _held_out(source: Source, validation: int | None) -> Source:
    """With so many of its training and validation examples in the latter; None leaves it as it is."""
    if validation is None:
        return source
    train, held = source.splits["train"], source.splits.get("validation")
    if held is not None:
        x, y = torch.cat([_tensor(source, train.x), _tensor(source, held.x)]), None
        if train.y is not None and held.y is not None:
            y = torch.cat([train.y, held.y])
        train = Split(x, y)
    train, held = hold_out(train, validation, 0, source.spec.name)
    return _with(source, {**source.splits, "train": train, "validation": held if len(held) else None})


def _halves(source: Source) -> tuple[Source, Source]:
    train = source.splits["train"]
    middle = len(train) // 2
    if not middle:
        raise DataError(f"data=unpaired: {source.spec.name} has one training example, and one of two domains is empty")
    return tuple(_with(source, {**source.splits, "train": half}) for half in (train[:middle], train[middle:]))  # type: ignore[return-value]


def _resized(source: Source, size: int | None) -> Source:
    """Its images as size x size of 256 levels: averaged where they shrink, else interpolated."""
    if size is None or source.spec.shape[1:] == (size, size):
        return source
    spec = source.spec
    if not spec.is_image or spec.support not in ("binary", "levels"):
        raise UsageError(f"data.size={size}: is for images, and data={spec.name} has examples of {list(spec.shape)}")
    top = (spec.levels or 2) - 1

    def resize(x: Tensor) -> Tensor:
        pieces = (piece.float().mul_(255 / top) for piece in x.split(4096))
        scaled = (F.interpolate(p, (size, size), mode="bilinear", antialias=True, align_corners=False) for p in pieces)
        return torch.cat([p.round_().clamp_(0, 255).to(torch.uint8) for p in scaled])

    splits = {key: Split(resize(_tensor(source, split.x)), split.y) for key, split in source.splits.items()}
    return _with(source, splits, levels=256)


def _padded(source: Source, pad: int) -> Source:
    """Its images with so many pixels of level 0 on every side."""
    if not pad:
        return source
    spec = source.spec
    if not spec.is_image or spec.support not in ("binary", "levels"):
        raise UsageError(f"data.pad={pad}: is for images, and data={spec.name} has examples of {list(spec.shape)}")
    splits = {key: Split(F.pad(_tensor(source, split.x), [pad] * 4), split.y) for key, split in source.splits.items()}
    return _with(source, splits)


def _tensor(source: Source, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise UsageError(f"data={source.spec.name}: is put together batch by batch and can't be cut anew for pairs")
    return x


def _with(source: Source, splits: Mapping[str, Split | None], levels: int | None = None) -> Source:
    """The same with other splits, and with `levels` if they are said."""
    kept = {key: split for key, split in splits.items() if split is not None}
    sizes = {key: len(split) for key, split in kept.items()}
    spec = replace(source.spec, shape=tuple(kept["train"].x.shape[1:]), sizes=sizes)
    return replace(source, spec=spec if levels is None else replace(spec, support="levels", levels=levels), splits=kept)
