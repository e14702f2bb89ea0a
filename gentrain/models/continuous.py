"""What flows in continuous time have."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from gentrain.models.base import Conditional, Decoder, Encodes
from gentrain.models.ode import Solve


class ContinuousFlow(Decoder, Encodes):
    """x <-> z by a differential equation dx/dt = v(x, t) from z ~ p(z) at t = 0 to x at t = 1, which is solved
    numerically (Chen et al. 2018, arXiv:1806.07366; Grathwohl et al. 2019, arXiv:1810.01367).

    It is what an `Invertible` is but for the solver's error, and log p(x) = log p(z) - ∫ tr ∂v/∂x dt is an estimate: as
    good as the solver where the trace is taken, and random, without bias, where probes stand for it. So it is no
    `Density`, and its numbers have a kind of their own.

    Attributes:
        solver: solves for `decode` and `codes`. precise: for densities.
    """

    solver: Solve
    precise: Solve

    @abstractmethod
    def transform(
        self, x: Tensor, y: Tensor | None = None, *, probes: int | None = None, solver: Solve | None = None
    ) -> tuple[Tensor, Tensor]:
        """z, (B, D), and log |det dz/dx| in nats, (B,).

        Args:
            y: labels (B,), of a model that needs them. solver: in place of `precise`.
            probes: random vectors by which the trace is estimated; None takes the trace itself, by D gradients in each
                evaluation of v.
        """

    @abstractmethod
    def invert(self, z: Tensor, y: Tensor | None = None, *, solver: Solve | None = None) -> Tensor:
        """What `transform` undoes, (B, *shape), by `precise` or a solver in place of it."""

    def log_prob(
        self, x: Tensor, y: Tensor | None = None, *, probes: int | None = None, solver: Solve | None = None
    ) -> Tensor:
        """An estimate of log p(x), of log p(x|y) given labels, in nats, (B,); the arguments are `transform`'s.

        Without labels that of a conditional model is of the even mixture, at K times the work.
        """
        if isinstance(self, Conditional) and self.classes and y is None:
            labels = [torch.full((len(x),), k, device=x.device) for k in range(self.classes)]
            each = [self.log_prob(x, k, probes=probes, solver=solver) for k in labels]
            return torch.logsumexp(torch.stack(each), 0) - math.log(self.classes)
        z, log_det = self.transform(x, y, probes=probes, solver=solver)
        return self.prior.log_prob(z) + log_det


def density_kind(probes: int | None) -> str:
    """The kind of a log-likelihood that is estimated with so many probes."""
    return "ode" if probes is None else "ode-hutchinson"
