"""Filling in what is missing of an example, and taking off what was put on it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.evaluation.conditioning import (
    Effort,
    complete,
    decoded,
    law,
    unable_to_complete,
    unable_to_search,
)
from gentrain.evaluation.views import Pixels, View, missing
from gentrain.models.base import Decoder, Denoises, Generative, Reconstructs, given
from gentrain.models.corruption import Corruption, Kind
from gentrain.types import NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt
from gentrain.uses.base import Data, Drawn, Use, batch


class Complete(Use):
    """Test examples with a part hidden, and what the model puts in its place.

    A row holds the example, what is left of it, and several completions.

    How a model completes is said by its class. A latent-variable model does it by `gibbs`, a chain over z and what is
    missing; a decoder, of a GAN or a flow, by codes whose decoding agrees with what is known (`codes_given`).

    Args:
        mask: the hidden part. share: of the example that is hidden.
        draws: completions of each example.
        sweeps: of the chain of a latent-variable model.
        steps, leapfrog, sigma: of the way to a decoder's codes, as of `Effort`.
    """

    conditional = True

    def __init__(
        self,
        mask: Literal["bottom", "top", "left", "right", "centre", "random"] = "bottom",
        share: OpenFraction = 0.5,
        draws: PositiveInt = 6,
        sweeps: PositiveInt = 100,
        steps: PositiveInt = 100,
        leapfrog: PositiveInt = 5,
        sigma: PositiveFloat = 0.1,
    ):
        self.mask, self.share, self.draws = mask, share, draws
        self.effort = Effort(sweeps, steps, leapfrog, sigma)

    def unfit(self, model: Generative) -> str | None:
        return unable_to_complete(model)

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        try:
            hidden = missing(model.shape, self.mask, self.share).to(model.device)
        except UsageError as error:
            raise UsageError(f"kind.{error}") from error
        shown = batch(data, max(1, n // (2 + self.draws)))
        levels, view = data().spec.levels, Pixels(~hidden)
        again, y = repeated(shown, self.draws)
        filled = complete(model, again, ~hidden, self.effort, levels, y)
        rows = in_rows(model, shown.x, view, filled, levels)
        return Drawn(rows, 2 + self.draws, arrays={"hidden": hidden}, note=note_of(model, ~hidden))


def note_of(model: Generative, known: Tensor) -> str | None:
    """That completions aren't draws of p(missing | known), where so much is known, (*shape)."""
    if law(model, known[None]) != "approximate":
        return None
    return f"{type(model).__name__}: these completions approximate p(missing | known), and are no draws from it"


def repeated(shown: Batch, draws: int) -> tuple[Tensor, Tensor | None]:
    """Each example and its label `draws` times over."""
    return shown.x.repeat_interleave(draws, 0), None if shown.y is None else shown.y.repeat_interleave(draws, 0)


def in_rows(model: Generative, x: Tensor, view: View, made: Tensor, levels: int | None) -> Tensor:
    """Rows of an example, what is seen of it, and what was made of that, one below the other."""
    seen = view.picture(x, middle(model, levels))
    made = made.view(len(x), -1, *model.shape)
    return torch.cat([t.float() for t in (x[:, None], seen[:, None], made)], 1).flatten(0, 1)


def middle(model: Generative, levels: int | None) -> float:
    """The value that stands for an unseen element in a picture."""
    if model.support == "levels":
        return ((levels or 2) - 1) // 2
    return 0.0 if model.support == "signed" or levels is None else 0.5


class Denoise(Use):
    """Test examples, each followed by itself with noise on it and by what the model makes of that.

    That is the mean of x given the noisy one where the model knows it (`Denoises`), else one reconstruction. A decoder
    that can't reconstruct takes off Gaussian noise by a code z ~ p(z) N(x; G(z), level² I) (`codes_given`).

    Args:
        noise: `mask` (to 0), `salt_and_pepper` (to 0 or 1) or `gaussian`; of images on [0, 1], whatever the support.
        level: the probability that an element is corrupted; of `gaussian` the noise's standard deviation.
    """

    needs = (Reconstructs, Decoder, Denoises)
    conditional = True

    def __init__(self, noise: Kind = "mask", level: NonNegativeFloat = 0.3):
        self.corruption = Corruption(noise, level)

    def unfit(self, model: Generative) -> str | None:
        if model.support in ("levels", "tokens") and self.corruption.kind != "mask":
            return f"models {model.support}, which can be masked and take no other noise; say kind.noise=mask"
        if isinstance(model, Decoder | Denoises) and not isinstance(model, Reconstructs):
            if self.corruption.kind != "gaussian":
                return "can't reconstruct, and takes off gaussian noise alone; say kind.noise=gaussian"
            if not self.corruption.level:
                return "can't reconstruct, and there is no noise to take off; set kind.level above 0"
            return None if isinstance(model, Denoises) else unable_to_search(model)
        return super().unfit(model)

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        signed = model.support == "signed"
        if not signed:
            self.corruption.require(model)
        across = 3 if n >= 9 else 1  # threes in a row of the picture
        shown = batch(data, max(1, n // (3 * across)) * across)
        noisy = 2 * self.corruption((shown.x + 1) / 2) - 1 if signed else self.corruption(shown.x)
        level = self.corruption.level
        if isinstance(model, Denoises):
            clean = model.denoise(noisy, level * (2 if signed else 1))
        elif isinstance(model, Reconstructs):
            clean = model.reconstruct(noisy, **given(model, shown.y))
        else:
            assert isinstance(model, Decoder)
            all_seen = Pixels(torch.ones(model.shape, dtype=torch.bool, device=model.device))
            clean, _ = decoded(model, all_seen, noisy, Effort(sigma=level), data().spec.levels, shown.y)
        rows = torch.stack([t.float() for t in (shown.x, noisy, clean)], 1)
        return Drawn(rows.flatten(0, 1), columns=3 * across)
