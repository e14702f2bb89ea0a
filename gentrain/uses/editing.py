"""Some pixels painted, the rest generated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from gentrain.errors import UsageError
from gentrain.evaluation.codes import unit_scaled
from gentrain.evaluation.conditioning import Effort, complete, unable_to_complete, unable_to_search
from gentrain.evaluation.inversion import expected, invert
from gentrain.models.base import Completes, Decoder, Encodes, Generative, LatentVariable, given
from gentrain.models.latent import centre
from gentrain.pictures import is_image
from gentrain.types import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Support
from gentrain.uses.base import Data, Drawn, Use, batch
from gentrain.uses.completion import note_of


class Edit(Use):
    """Test examples with some pixels painted, and what the model makes of them.

    A decoder's examples are those of codes that obey the paint and stay near where they come from,

        z = argmin Σ_painted (G(z) - paint)² + λ ‖z - z_0‖²

    by gradient descent from z_0, the example's own code (Zhu et al. 2016, arXiv:1609.03552); where there is no encoder
    that is found by descent too. A row holds the example, the painted one, G(z_0), and G(z) for each λ. Other models
    complete: what is painted is known, and what lies farther from it than `margin`, and the rest is drawn. A row then
    holds the example, the painted one, and as many draws as there are λ.

    Args:
        paint: an image file of the examples' size; what is opaque in it is painted in its colours. Or none:
        box, value: a box is painted, from (top, left) to (bottom, right) as shares of the sides, its value in [0, 1].
        near: λ, one or several.
        steps, lr: of the descents.
        margin: pixels around the paint that are drawn anew where a model completes; None draws all the rest anew.
    """

    conditional = True

    def __init__(
        self,
        paint: str | None = None,
        box: Sequence[Fraction] = (0.15, 0.3, 0.22, 0.7),
        value: Fraction = 1.0,
        near: Sequence[NonNegativeFloat] = (3.0, 1.0, 0.3),
        steps: PositiveInt = 200,
        lr: PositiveFloat = 0.05,
        margin: NonNegativeInt | None = 4,
    ):
        if len(box) != 4 or box[0] >= box[2] or box[1] >= box[3]:
            raise UsageError(f"kind.box={list(box)}: must be [top,left,bottom,right], shares of the sides")
        if not near:
            raise UsageError("kind.near=[]: give at least one, e.g. kind.near=[0.1]")
        self.paint, self.box, self.value, self.near = paint, box, value, near
        self.steps, self.lr, self.margin = steps, lr, margin

    def unfit(self, model: Generative) -> str | None:
        if not is_image(model.shape):
            return "makes no pictures to paint on"
        return unable_to_complete(model) if isinstance(model, Completes) else unable_to_search(model)

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        levels = data().spec.levels
        painted, paint = self._paint(model.shape)
        painted, paint = painted.to(model.device), supported(paint, model.support, levels).to(model.device)
        columns = 2 + len(self.near) + (not isinstance(model, Completes))
        shown = batch(data, max(1, n // columns))
        x, y = shown.x, shown.y
        start = torch.where(painted, paint.to(x.dtype), x)
        if isinstance(model, Completes):
            known = self._known(painted)
            again = start.repeat_interleave(len(self.near), 0)
            made = complete(model, again, known, Effort(), levels).view(len(x), -1, *model.shape)
            return Drawn(_rows(x, start, made), columns, note=note_of(model, known))
        assert isinstance(model, LatentVariable | Decoder)
        codes = self._searched(model, start, painted, own_codes(model, x, y, self.steps, self.lr), levels, y)
        mean = torch.stack([expected(model, z, y) for z in codes], 1)
        if not isinstance(model, LatentVariable):
            return Drawn(_rows(x, start, mean), columns, arrays={"z": torch.stack(codes, 1)})
        made = torch.stack([model.decode(z, **given(model, y)).sample() for z in codes], 1)
        return Drawn(_rows(x, start, made), columns, shown=_rows(x, start, mean), arrays={"z": torch.stack(codes, 1)})

    def _searched(
        self,
        model: LatentVariable | Decoder,
        start: Tensor,
        painted: Tensor,
        z: Tensor,
        levels: int | None,
        y: Tensor | None,
    ) -> list[Tensor]:
        """z_0, and the code for each λ."""

        def loss(x: Tensor, made: Tensor) -> Tensor:
            pair = (unit_scaled(t, model.support, levels)[:, painted] for t in (x, made))
            return torch.sub(*pair).square().sum(1)

        found = [invert(model, start, self.steps, self.lr, loss=loss, start=z, near=near, y=y) for near in self.near]
        return [z, *(f.z for f in found)]

    def _known(self, painted: Tensor) -> Tensor:
        """What stays as it is, (*shape): the paint, and what is farther from it than the margin.

        Raises:
            UsageError: nothing is left to be drawn.
        """
        if self.margin is None:
            return painted
        around = max_pool2d(painted.float(), 2 * self.margin + 1, stride=1, padding=self.margin) > 0
        if not bool((around & ~painted).any()):
            raise UsageError(f"kind.margin={self.margin}: leaves nothing to draw; take more, or null for all the rest")
        return painted | ~around

    def _paint(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """What is painted and in which brightness, (*shape), on [0, 1].

        Raises:
            UsageError: there is no such file, it is of another size, or nothing, or all, is painted.
        """
        if self.paint is not None:
            painted, paint = read_paint(Path(self.paint).expanduser(), shape)
        else:
            top, left, bottom, right = (round(s * shape[1 + i % 2]) for i, s in enumerate(self.box))
            painted = torch.zeros(shape, dtype=torch.bool)
            painted[:, top:bottom, left:right] = True
            paint = torch.full(shape, self.value)
        if not painted.any() or painted.all():
            what = f"kind.paint={self.paint}" if self.paint is not None else f"kind.box={list(self.box)}"
            raise UsageError(f"{what}: paints nothing or all of {'x'.join(map(str, shape))}")
        return painted, paint


def read_paint(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What is opaque in an image file, and its colours on [0, 1], both (*shape).

    Raises:
        UsageError: there is no such image, it has another size, or nothing in it is transparent.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGBA"))).permute(2, 0, 1).float() / 255
            mode, grey = image.mode, torch.from_numpy(np.array(image.convert("L")))[None].float() / 255
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(f"kind.paint={path}: can't be read as an image: {error}") from error
    if tuple(pixels.shape[1:]) != tuple(shape[1:]):
        size, wanted = ("x".join(map(str, s)) for s in (pixels.shape[1:], shape[1:]))
        raise UsageError(f"kind.paint={path}: is {size}, examples are {wanted} pixels high and wide")
    if bool((pixels[3] > 0.5).all()):
        raise UsageError(f"kind.paint={path}: is opaque everywhere ({mode}); leave transparent what isn't painted")
    colours = pixels[:3] if shape[0] == 3 else grey
    return (pixels[3] > 0.5).expand(shape), colours.expand(shape)


def supported(x: Tensor, support: Support, levels: int | None) -> Tensor:
    """Brightness on [0, 1] in a model's support: the nearest bits or levels.

    >>> supported(torch.tensor([0.0, 0.4, 1.0]), "signed", None), supported(torch.tensor([0.4]), "levels", 17)
    (tensor([-1.0000, -0.2000,  1.0000]), tensor([6.]))
    """
    if support == "signed":
        return 2 * x - 1
    top = {"binary": 1, "levels": (levels or 256) - 1}.get(support)
    return x if top is None else (x * top).round()


def own_codes(model: LatentVariable | Decoder, x: Tensor, y: Tensor | None, steps: int, lr: float) -> Tensor:
    """The codes of examples (B, *shape): by the model's encoder, or found by descent."""
    if isinstance(model, LatentVariable):
        return centre(model.encode(x, **given(model, y)))
    return model.codes(x) if isinstance(model, Encodes) else invert(model, x.float(), steps, lr, y=y).z


def _rows(x: Tensor, start: Tensor, made: Tensor) -> Tensor:
    return torch.cat([x[:, None].float(), start[:, None].float(), made.float()], 1).flatten(0, 1)
