"""Pictures made of less: of fewer pixels, of brightness without colour."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from gentrain.errors import UsageError
from gentrain.evaluation.conditioning import Effort, restored, unable_to_restore
from gentrain.evaluation.views import BlockMeans, Luminance, View
from gentrain.models.base import Generative
from gentrain.types import PositiveFloat, PositiveInt
from gentrain.uses.base import Data, Drawn, Use, batch
from gentrain.uses.completion import in_rows, repeated


class Restoration(Use):
    """Test examples, what is seen of them, and what the model makes of that.

    A row holds the example, what is seen of it, and several draws: the model's own where it has a way (`Restores`),
    else decodings of codes z ~ p(z) N(seen; A G(z), σ² I), by Hamiltonian Monte Carlo that starts from the prior. A
    model of p(x|z) is shown by its mean.

    Args:
        draws: of each example. steps, leapfrog, sigma: as of `Effort`.
    """

    conditional = True

    def __init__(self, draws: int, effort: Effort):
        self.draws, self.effort = draws, effort

    def unfit(self, model: Generative) -> str | None:
        if (reason := unable_to_restore(model)) is not None:
            return reason
        try:
            self.view(model)
        except UsageError as error:
            return f"can't serve: {error}"
        return None

    @abstractmethod
    def view(self, model: Generative) -> View:
        """What is seen. Raises UsageError where examples don't have it."""

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        view, levels = self.view(model), data().spec.levels
        shown = batch(data, max(1, n // (2 + self.draws)))
        again, y = repeated(shown, self.draws)
        made, mean = restored(model, view, again, self.effort, levels, y)
        rows, means = (in_rows(model, shown.x, view, t, levels) for t in (made, mean))
        return Drawn(rows, 2 + self.draws, shown=means)


class SuperResolve(Restoration):
    """Pictures of which the means of blocks of pixels are known, made whole.

    Args:
        factor: pixels along the side of a block. draws, steps, leapfrog, sigma: as of `Restoration`.
    """

    def __init__(
        self,
        factor: Literal[2, 4] = 4,
        draws: PositiveInt = 6,
        steps: PositiveInt = 100,
        leapfrog: PositiveInt = 5,
        sigma: PositiveFloat = 0.05,
    ):
        super().__init__(draws, Effort(steps=steps, leapfrog=leapfrog, sigma=sigma))
        self.factor = factor

    def view(self, model: Generative) -> View:
        return BlockMeans(self.factor, model.shape)


class Colourise(Restoration):
    """Pictures of which the brightness is known, in colour.

    Args:
        draws, steps, leapfrog, sigma: as of `Restoration`.
    """

    def __init__(
        self,
        draws: PositiveInt = 6,
        steps: PositiveInt = 100,
        leapfrog: PositiveInt = 5,
        sigma: PositiveFloat = 0.05,
    ):
        super().__init__(draws, Effort(steps=steps, leapfrog=leapfrog, sigma=sigma))

    def view(self, model: Generative) -> View:
        return Luminance(model.shape)
