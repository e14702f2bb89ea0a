"""Walks through a model's code space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from gentrain.errors import UsageError
from gentrain.evaluation.inversion import expected
from gentrain.models.base import Decoder, Encodes, Factors, Generative, LatentVariable
from gentrain.types import NonNegativeInt, PositiveFloat, PositiveInt
from gentrain.uses.base import Data, Drawn, Use, draw_codes, examples

LOOKED_AT = 1000
"""Test examples whose codes say which dimensions are in use."""


class Interpolate(Use):
    """Ways through the code space, a row each, between the codes of test examples.

    Where the model can't encode they lead from one draw from the prior to another.

    Args:
        steps: examples on each way, its ends included.
        path: `linear`, or `spherical`, along the great circle with the norm going evenly from one end's to the other's:
            codes in many dimensions lie near a sphere, and a straight line leaves it (White 2016, arXiv:1609.04468).
    """

    needs = (LatentVariable, Decoder)

    def __init__(self, steps: PositiveInt = 10, path: Literal["linear", "spherical"] = "linear"):
        if steps < 2:
            raise UsageError(f"kind.steps={steps}: a way has two ends; ask for 2 or more")
        self.steps, self.path = steps, path

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        assert isinstance(model, LatentVariable | Decoder)
        rows = max(1, n // self.steps)
        ends = model.codes(examples(data, 2 * rows)) if isinstance(model, Encodes) else draw_codes(model, 2 * rows)
        t = torch.linspace(0, 1, self.steps, device=ends.device).view(1, -1, *[1] * (ends.dim() - 1))
        way = slerp if self.path == "spherical" else torch.lerp
        z = way(ends[:rows, None], ends[rows:, None], t).flatten(0, 1)
        return Drawn(expected(model, z), columns=self.steps, arrays={"z": z})


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """From a to b along the great circle of their directions, the norm going linearly; the last axis is the vector's.

    >>> slerp(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), torch.tensor([0.5]))
    tensor([2.1213, 2.1213])
    """
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    u, v = a / norm_a.clamp_min(1e-12), b / norm_b.clamp_min(1e-12)
    angle = torch.acos((u * v).sum(-1, keepdim=True).clamp(-1, 1))
    sine = torch.sin(angle)
    near = sine < 1e-6  # the same direction, or opposite ones, which no great circle joins
    weights = (torch.sin((1 - t) * angle) / sine.clamp_min(1e-6), torch.sin(t * angle) / sine.clamp_min(1e-6))
    direction = torch.where(near, torch.lerp(u, v, t), weights[0] * u + weights[1] * v)
    return torch.lerp(norm_a, norm_b, t) * direction


class Traverse(Use):
    """One dimension of the code a row, from one end of the prior to the other, the rest held (Higgins et al. 2017).

    Where the code has categories, a row for each of them (Chen et al. 2016).

    Args:
        dims: the dimensions; None takes those that stand for something, or else those whose codes of test examples vary
            most (of a model that can't encode, the first), as many as `n` examples allow.
        steps: examples in a row.
        span: how far to go from the prior's mean, in its standard deviations.
        start: held at the prior's `mean`, or at the code of the first test `example`.
    """

    needs = (LatentVariable, Decoder)

    def __init__(
        self,
        dims: Sequence[NonNegativeInt] | None = None,
        steps: PositiveInt = 11,
        span: PositiveFloat = 3.0,
        start: Literal["mean", "example"] = "mean",
    ):
        self.dims, self.steps, self.span, self.start = dims, steps, span, start

    def unfit(self, model: Generative) -> str | None:
        if self.start == "example" and not isinstance(model, Encodes):
            return "can't encode an example; use kind.start=mean"
        return super().unfit(model)

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        assert isinstance(model, LatentVariable | Decoder)
        mean, std = moments(model)
        size = mean.numel()
        if wrong := [d for d in self.dims or () if d >= size]:
            raise UsageError(f"kind.dims={list(self.dims or ())}: there is no {wrong[0]}; codes have {size} dimensions")
        held = mean.flatten()[None]
        if self.start == "example":
            assert isinstance(model, Encodes)
            held = model.codes(examples(data, 1))[:1].flatten(1)
        elif isinstance(model, Factors):
            held = model.starts()
        dims = list(self.dims) if self.dims else self._used(model, data, size)[: max(1, n // (self.steps * len(held)))]
        t = torch.linspace(-self.span, self.span, self.steps, device=mean.device)
        z = held[None, :, None].repeat(len(dims), 1, self.steps, 1)
        for row, d in enumerate(dims):
            z[row, ..., d] = mean.flatten()[d] + t * std.flatten()[d]
        z = z.view(-1, *mean.shape)
        return Drawn(expected(model, z), self.steps, arrays={"z": z, "dims": torch.tensor(dims)})

    @staticmethod
    def _used(model: Generative, data: Data, size: int) -> list[int]:
        if isinstance(model, Factors) and model.factors:
            return list(model.factors)
        if not isinstance(model, Encodes):
            return list(range(size))
        x = examples(data, min(LOOKED_AT, data().size()))
        return model.codes(x).flatten(1).var(0).argsort(descending=True).tolist()


def moments(model: LatentVariable | Decoder) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a code under the prior: its own, or those of 10,000 draws where it has none."""
    prior: Distribution = model.prior
    try:
        return prior.mean.to(model.device), prior.stddev.to(model.device)
    except NotImplementedError:  # torch's answer for a transformed distribution
        z = draw_codes(model, 10_000)
        return z.mean(0), z.std(0)
