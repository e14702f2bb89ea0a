"""Filling in what is missing of an example, and taking off what was put on it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.models.base import Completes, Generative, LatentVariable, Reconstructs, given
from gentrain.models.corruption import Corruption
from gentrain.types import NonNegativeFloat, OpenFraction, PositiveInt
from gentrain.uses.base import Data, Drawn, Use, batch


def missing(shape: tuple[int, ...], region: str, share: float) -> Tensor:
    """Which elements of an example are hidden: bools, (*shape), the same in all channels.

    `centre` is a window in the middle, `random` are single pixels, drawn from torch's global generator. They hide
    `share` of the area as nearly as whole pixels allow. Of vectors, `top` and `left` are the first elements.

    >>> missing((1, 4, 2), "bottom", 0.5)[0].int().tolist()
    [[0, 0], [0, 0], [1, 1], [1, 1]]
    """
    hidden = torch.zeros(shape, dtype=torch.bool)
    if region == "random":
        area = shape[1:] if len(shape) == 3 else shape
        flat = torch.zeros(area).flatten()
        flat[torch.randperm(len(flat))[: round(share * len(flat))]] = 1
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


class Complete(Use):
    """Test examples with a part hidden, and what the model puts in its place.

    A row holds the example, what is left of it, and several completions.

    How a model completes is said by its class; a latent-variable model does it by `gibbs` here, an approximation.

    Args:
        mask: the hidden part. share: of the example that is hidden.
        draws: completions of each example.
        sweeps: of the Gibbs chain of a latent-variable model.
    """

    needs = (Completes, LatentVariable)
    conditional = True

    def __init__(
        self,
        mask: Literal["bottom", "top", "left", "right", "centre", "random"] = "bottom",
        share: OpenFraction = 0.5,
        draws: PositiveInt = 6,
        sweeps: PositiveInt = 100,
    ):
        self.mask, self.share, self.draws, self.sweeps = mask, share, draws, sweeps

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        hidden = missing(model.shape, self.mask, self.share).to(model.device)
        if not hidden.any() or hidden.all():
            raise UsageError(
                f"kind.share={self.share}: hides all or nothing of {tuple(model.shape)}; take another share"
            )
        shown = batch(data, max(1, n // (2 + self.draws)))
        x, y = shown.x, shown.y
        levels = data().spec.levels
        again = x.repeat_interleave(self.draws, 0)
        known = ~hidden.expand_as(again)
        if isinstance(model, Completes):
            filled = model.complete(torch.where(known, again, torch.zeros_like(again)), known)
        else:
            assert isinstance(model, LatentVariable)
            filled = gibbs(model, again, known, self.sweeps, None if y is None else y.repeat_interleave(self.draws))
        blank = torch.where(hidden, torch.full_like(x, middle(model, levels)), x)
        rows = torch.cat([x[:, None], blank[:, None], filled.to(x).view(len(x), self.draws, *model.shape)], 1)
        return Drawn(rows.flatten(0, 1), 2 + self.draws, arrays={"hidden": hidden})


def middle(model: Generative, levels: int | None) -> float:
    """The value that stands for an unseen element in a picture."""
    return {"signed": 0.0, "real": 0.0, "levels": ((levels or 2) - 1) // 2, "tokens": 0}.get(model.support, 0.5)


def gibbs(model: LatentVariable, x: Tensor, known: Tensor, sweeps: int, y: Tensor | None = None) -> Tensor:
    """z ~ q(z|x), then the missing part of x ~ p(x|z), again and again (Rezende et al. 2014, arXiv:1401.4082, app. F).

    The chain's stationary law is p(missing | known) where q is the exact posterior, and near it as far as q is near. It
    starts from p(x) for the missing part. Of a conditional model all is given y.
    """
    to = given(model, y)
    x = torch.where(known, x, model.sample(len(x), **to).to(x))
    for _ in range(sweeps):
        draw = model.decode(model.encode(x, **to).sample(), **to).sample()
        x = torch.where(known, x, draw.to(x))
    return x


class Denoise(Use):
    """Test examples, each followed by itself with noise on it and by what the model makes of that: one reconstruction.

    Args:
        noise: `mask` (to 0), `salt_and_pepper` (to 0 or 1) or `gaussian`.
        level: the probability that an element is corrupted; of `gaussian` the noise's standard deviation.
    """

    needs = (Reconstructs,)
    conditional = True

    def __init__(self, noise: Literal["mask", "salt_and_pepper", "gaussian"] = "mask", level: NonNegativeFloat = 0.3):
        self.corruption = Corruption(noise, level)

    def unfit(self, model: Generative) -> str | None:
        if model.support in ("levels", "tokens") and self.corruption.kind != "mask":
            return f"models {model.support}, which can be masked and take no other noise; say kind.noise=mask"
        return super().unfit(model)

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        assert isinstance(model, Reconstructs)
        self.corruption.require(model)
        across = 3 if n >= 9 else 1  # threes in a row of the picture
        shown = batch(data, max(1, n // (3 * across)) * across)
        noisy = self.corruption(shown.x)
        clean = model.reconstruct(noisy, **given(model, shown.y))
        rows = torch.stack([t.float() for t in (shown.x, noisy, clean)], 1)
        return Drawn(rows.flatten(0, 1), columns=3 * across)
