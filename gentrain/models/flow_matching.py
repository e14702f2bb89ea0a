"""Flow matching: a velocity field that carries noise to data, learned without solving it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.distributions import Distribution

from gentrain.errors import UsageError
from gentrain.models import timed
from gentrain.models.base import Conditional, Onto, Restores
from gentrain.models.continuous import ContinuousFlow
from gentrain.models.labels import checked
from gentrain.models.layers import StandardNormal
from gentrain.models.ode import Field, Method, Solve, Solver, with_divergence
from gentrain.models.standard import Standardised
from gentrain.models.timed import Kind
from gentrain.types import NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt, Shape

FASTEST = 30.0
"""Frequency of the network's features of the time: a field that changes slowly can be solved in few steps."""


class FlowMatching(ContinuousFlow, Standardised, Conditional, Restores):
    """dx/dt = v(x, t) from z ~ N(0, I) at t = 0 to data at t = 1 (Lipman et al. 2023, arXiv:2210.02747; Liu et al.
    2023, arXiv:2209.03003; Albergo & Vanden-Eijnden 2023, arXiv:2209.15571).

    v is a network of x, t and perhaps a label. Levels are brought to [-1, 1]; reals are standardised, each element by
    its own mean and deviation. Codes are vectors of as many elements as x. `sample`, `decode` and `codes` solve by
    `solver`; `transform`, `invert` and `log_prob` by dopri5 at the same tolerances. Densities are of x as it is in
    `support`, including what little the flow has outside of [-1, 1], which `decode` clamps. Stored levels have none
    that is bounded: to estimate bits/dim, train with data.dequantize=true.

    A conditional model's field is v(x, t, ∅) + w (v(x, t, y) - v(x, t, ∅)) (Ho & Salimans 2022, arXiv:2207.12598) with
    w the `guidance`: 1 is p(x|y), 0 knows no label; v(x, t, ∅) is learned where the objective drops labels. Samples,
    codes and densities are all of this field.

    `complete` is an approximation, after RePaint (Lugmayr et al. 2022, arXiv:2201.09865): before each of `steps` steps
    the known part is put back as t x + (1 - t) ε with ε drawn anew, and each step is taken `resamples` times, noise
    leading back to where it began, by which the drawn part comes to agree with the known one. `restore` does so for
    what a linear map shows. Both of a conditional model are of v(x, t, ∅), and `codes` are unless they are given
    labels: codes are not to tell what they were told.

    Args:
        shape: of one example. levels: number of values an element can take in the data, None for reals.
        network: `unet` for images, `mlp`, or `auto` by the shape.
        hidden: of the mlp, units of its layers.
        channels: of the U-Net, as all that follow up to dropout, feature maps at the largest scale; None is 32.
        multipliers: feature maps of each scale in `channels`; None is 1, 2, 2, … .
        blocks: residual blocks at each scale, on each way.
        attention: between the blocks at the smallest scale.
        patch: side of the squares of pixels that are taken as channels of one.
        dropout: in each block.
        conditional: model p(x|y). classes: labels of the data.
        guidance: w.
        solver: `euler`, `midpoint`, `rk4` or `dopri5`. steps: of the first three; they take one, two and four
            evaluations of v each. rtol, atol: of dopri5.
        resamples: how often `complete` takes each step.

    Raises:
        UsageError: conditional without labels, guidance without conditional, or as of `gentrain.models.timed.network`.

    >>> model = FlowMatching((2,), hidden=[16])
    >>> x = model.sample(5)
    >>> z, log_det = model.transform(x)
    >>> torch.allclose(model.invert(z), x, atol=1e-3), log_det.shape
    (True, torch.Size([5]))
    """

    sampling = ("solver", "steps", "rtol", "atol", "guidance", "resamples")

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        network: Kind = "auto",
        hidden: Sequence[PositiveInt] = (128, 128, 128),
        channels: PositiveInt | None = None,
        multipliers: Sequence[PositiveInt] | None = None,
        blocks: PositiveInt = 1,
        attention: bool = False,
        patch: PositiveInt = 1,
        dropout: OpenFraction = 0.0,
        conditional: bool = False,
        classes: PositiveInt | None = None,
        guidance: NonNegativeFloat = 1.0,
        solver: Method = "midpoint",
        steps: PositiveInt = 20,
        rtol: PositiveFloat = 1e-5,
        atol: PositiveFloat = 1e-5,
        resamples: PositiveInt = 5,
    ):
        super().__init__(shape, each=True)
        if conditional and classes is None:
            raise UsageError("model.conditional=true: these data have no labels; use model.conditional=false")
        if guidance != 1 and not conditional:
            raise UsageError(f"model.guidance={guidance:g} is towards a label; it needs model.conditional=true")
        self.support = "real" if levels is None else "signed"
        self.classes, self.guidance = classes if conditional else None, guidance
        self.solver: Solve = Solver(solver, steps, rtol, atol)
        self.precise: Solve = Solver("dopri5", steps, rtol, atol)
        self._step = Solver(solver, 1, rtol, atol)
        self.steps, self.resamples = steps, resamples
        self._prior = StandardNormal(math.prod(self.shape))
        self.network = timed.network(
            network,
            self.shape,
            self.classes,
            hidden=hidden,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            patch=patch,
            dropout=dropout,
            fastest=FASTEST,
        )

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        if self.support == "real":
            super().standardise(mean, deviation)

    @property
    def prior(self) -> Distribution:
        return self._prior()

    def velocity(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """v(x, t, y) at standardised x (B, D) and times t (B,), (B, D). y = K, and no y, is no label."""
        return self.network(x.view(-1, *self.shape), t, y).flatten(1)

    def field(self, y: Tensor | None) -> Field:
        """The field, with guidance, for examples of the labels y (B,), or of none."""
        if y is None or self.guidance == 1:
            return lambda x, t: self.velocity(x, t, y)
        assert self.classes
        both = torch.cat([torch.full_like(y, self.classes), y])

        def guided(x: Tensor, t: Tensor) -> Tensor:
            without, towards = self.velocity(x.repeat(2, 1), t.repeat(2), both).chunk(2)
            return without + self.guidance * (towards - without)

        return guided

    def _labels(self, y: Tensor | None, rows: int) -> Tensor | None:
        return checked(self, y, rows) if self.classes else None

    def _field_or_unlabelled(self, y: Tensor | None, rows: int) -> Field:
        if y is None:
            self.network.require_unlabelled()
        return self.field(None if y is None else self._labels(y, rows))

    def transform(
        self, x: Tensor, y: Tensor | None = None, *, probes: int | None = None, solver: Solve | None = None
    ) -> tuple[Tensor, Tensor]:
        start = self.inward(x)
        signs = None if probes is None else torch.rand(probes, *start.shape, device=x.device).lt(0.5).to(start) * 2 - 1
        field = with_divergence(self.field(self._labels(y, len(x))), signs)
        start = torch.cat([start, start.new_zeros(len(x), 1)], 1)
        end = (solver or self.precise)(field, start, 1.0, 0.0).x
        return end[:, :-1], end[:, -1] - self.log_scale

    def invert(self, z: Tensor, y: Tensor | None = None, *, solver: Solve | None = None) -> Tensor:
        return self.outward((solver or self.precise)(self.field(self._labels(y, len(z))), z, 0.0, 1.0).x)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.invert(z, y, solver=self.solver)
        return x.clamp(-1, 1) if self.support == "signed" else x

    def codes(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.solver(self._field_or_unlabelled(y, len(x)), self.inward(x), 1.0, 0.0).x

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        if y is None and self.classes:
            y = torch.randint(self.classes, (n,), device=self.device)
        return self.decode(self.prior.sample(torch.Size([n])), y)

    @torch.no_grad()
    def restore(self, x: Tensor, onto: Onto) -> Tensor:
        field, end = self._field_or_unlabelled(None, len(x)), self.inward(x)
        state = torch.randn_like(end)
        times = [i / self.steps for i in range(self.steps + 1)]
        for start, stop in pairwise(times):
            for again in range(self.resamples):
                if again:
                    keep = start / stop
                    deviation = math.sqrt((1 - start) ** 2 - (keep * (1 - stop)) ** 2)
                    state = keep * state + deviation * torch.randn_like(state)
                state = self.agreeing(state, start * end + (1 - start) * torch.randn_like(end), onto)
                state = self._step(field, state, start, stop).x
        return self.settled(self.outward(state), x, onto)
