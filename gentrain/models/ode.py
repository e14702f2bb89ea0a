"""Solving dx/dt = v(x, t) for tensors, by Runge-Kutta methods of fixed and of adapted steps, and the divergence of v.

x is (B, …), and t (B,): a field sees for each example a time of its own, which is the same for all only where steps are
fixed. Solutions can be differentiated by whatever x and v depend on; the sizes of adapted steps count as constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gentrain.errors import UsageError

Field = Callable[[Tensor, Tensor], Tensor]
"""v(x, t): x (B, …) and t (B,) to (B, …)."""
Method = Literal["euler", "midpoint", "rk4", "dopri5"]


class Tableau(NamedTuple):
    """k_i = v(x + h Σ_j a_ij k_j, t + h Σ_j a_ij), and x + h Σ_i b_i k_i is the solution h later.

    `error` are the b_i less those of a solution that is one order worse, for methods that know their error: in these
    the last stage is the next step's first.
    """

    a: Sequence[Sequence[float]]
    b: Sequence[float]
    error: Sequence[float] = ()


TABLEAUS: dict[Method, Tableau] = {
    "euler": Tableau([[]], [1.0]),
    "midpoint": Tableau([[], [1 / 2]], [0.0, 1.0]),
    "rk4": Tableau([[], [1 / 2], [0.0, 1 / 2], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    "dopri5": Tableau(  # Dormand & Prince (1980), as in Hairer, Norsett & Wanner (1993), table II.5.2
        [
            [],
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
            [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
        ],
        [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0],
        [71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40],
    ),
}
ORDER = 5
"""Of the adaptive method: its error goes with h^5 in each step's estimate."""
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
"""The next step is that whose error would be `SAFETY`^5 of what is allowed, but at most so much shorter or longer."""
MOST = 10_000
"""Steps of an adaptive solution, at most."""


class Solution(NamedTuple):
    """x at the end, and how often v was evaluated."""

    x: Tensor
    evaluations: int


Solve = Callable[[Field, Tensor, float, float], Solution]
"""v, x at a start, the start and an end, to x at the end: a `Solver`, or what stands for one."""


@dataclass(frozen=True)
class Solver:
    """How a differential equation is solved.

    Args:
        method: `euler`, `midpoint` or `rk4`, of order 1, 2 and 4, in `steps` equal steps; or `dopri5`, Dormand &
            Prince's of order 5, in steps that each example has for itself, so that what becomes of one doesn't depend
            on the others.
        rtol, atol: of dopri5: the root mean square over an example's elements of error/(atol + rtol |x|) stays below 1
            in every step, by an estimate of it. In float32 nothing below about 1e-6 can be had.

    >>> Solver("rk4", steps=10)(lambda x, t: x, torch.ones(1, 1)).x  # e
    tensor([[2.7183]])
    """

    method: Method = "midpoint"
    steps: int = 20
    rtol: float = 1e-5
    atol: float = 1e-5

    @property
    def adaptive(self) -> bool:
        return bool(TABLEAUS[self.method].error)

    def __call__(self, v: Field, x: Tensor, start: float = 0.0, end: float = 1.0) -> Solution:
        """x at time `end` of the solution that is x at `start`.

        Raises:
            UsageError: adapted steps become too many or too short.
        """
        return self._adapt(v, x, start, end) if self.adaptive else self._march(v, x, start, end)

    def _march(self, v: Field, x: Tensor, start: float, end: float) -> Solution:
        tableau, h = TABLEAUS[self.method], (end - start) / self.steps
        for i in range(self.steps):
            t = x.new_full((len(x),), start + i * h)
            x = _ahead(x, x.new_full((len(x),), h), tableau.b, _stages(v, x, t, x.new_full((len(x),), h), tableau))
        return Solution(x, self.steps * len(tableau.a))

    def _adapt(self, v: Field, x: Tensor, start: float, end: float) -> Solution:
        tableau = TABLEAUS[self.method]
        t, goal = x.new_full((len(x),), start), x.new_full((len(x),), end)
        first = v(x, t)
        h, evaluations = self._first_step(v, x, t, goal, first), 2
        for _ in range(MOST):
            left = goal - t
            last = h.abs() >= left.abs()
            step = torch.where(last, left, h)
            if not bool((((t + step - t).abs() > 0) | (left == 0)).all()):  # NaN is not
                break
            stages = _stages(v, x, t, step, tableau, first)
            evaluations += len(tableau.a) - 1
            ahead = _ahead(x, step, tableau.b, stages)
            error = self._size(_ahead(torch.zeros_like(x), step, tableau.error, stages), x, ahead)
            good = error <= 1  # NaN is not
            factor = (SAFETY * error.clamp_min(1e-10) ** (-1 / ORDER)).clamp(SHRINK, GROW).nan_to_num(SHRINK)
            h = step * torch.where(good, factor, factor.clamp(max=1))
            x, first = torch.where(_along(good, x), ahead, x), torch.where(_along(good, x), stages[-1], first)
            t = torch.where(good, torch.where(last, goal, t + step), t)
            if bool((t == goal).all()):
                return Solution(x, evaluations)
        raise UsageError(
            f"the dopri5 solver made no more progress after {evaluations} evaluations with rtol={self.rtol:g} and"
            f" atol={self.atol:g}: these are too small for {x.dtype}, or the solution runs away; make them larger"
        )

    @torch.no_grad()
    def _size(self, change: Tensor, x: Tensor, other: Tensor) -> Tensor:
        """The root mean square of `change` in units of what is allowed, (B,)."""
        allowed = self.atol + self.rtol * torch.maximum(x.abs(), other.abs())
        return (change / allowed).flatten(1).square().mean(1).sqrt()

    @torch.no_grad()
    def _first_step(self, v: Field, x: Tensor, t: Tensor, goal: Tensor, first: Tensor) -> Tensor:
        """A step for each example by Hairer, Norsett & Wanner (1993), section II.4, (B,), with the sign of time."""
        span = goal - t
        size, slope = self._size(x, x, x), self._size(first, x, x)
        h = torch.where((size < 1e-5) | (slope < 1e-5), 1e-6, 0.01 * size / slope)
        h = torch.minimum(h, span.abs()) * span.sign()
        bend = self._size(v(x + _along(h, x) * first, t + h) - first, x, x) / h.abs()
        steepest = torch.maximum(slope, bend)
        other = torch.where(steepest <= 1e-15, (h.abs() * 1e-3).clamp_min(1e-6), (0.01 / steepest) ** (1 / ORDER))
        return torch.minimum(torch.minimum(100 * h.abs(), other), span.abs()) * span.sign()


def _along(row: Tensor, x: Tensor) -> Tensor:
    """One number an example, (B,), in the shape of x."""
    return row.view(-1, *[1] * (x.dim() - 1))


def _ahead(x: Tensor, h: Tensor, weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """x + h Σ_i w_i k_i, for as many stages as there are."""
    total = sum(w * k for w, k in zip(weights, stages, strict=True) if w)
    return x + _along(h, x) * total


def _stages(v: Field, x: Tensor, t: Tensor, h: Tensor, tableau: Tableau, first: Tensor | None = None) -> list[Tensor]:
    stages = [v(x, t) if first is None else first]
    for row in tableau.a[1:]:
        stages.append(v(_ahead(x, h, row, stages), t + h * math.fsum(row)))
    return stages


# --- divergence -------------------------------------------------------------------------------------------------------


def with_divergence(v: Field, probes: Tensor | None = None) -> Field:
    """The field of (x, l), (B, D + 1), with dx/dt = v(x, t) and dl/dt = tr ∂v/∂x: l is the log of how volume grows.

    A density that moves by v has d log p/dt = -tr ∂v/∂x (Chen et al. 2018, arXiv:1806.07366, theorem 1).

    Args:
        v: of x (B, D). probes: ε (K, B, D) with zero mean and covariance I: Σ_k ε_k·(∂v/∂x)ε_k / K then stands for the
            trace, without bias (Hutchinson 1990; Grathwohl et al. 2019, arXiv:1810.01367), at the cost of K gradients.
            None takes the D gradients of the trace itself.

    >>> field = with_divergence(lambda x, t: x * torch.tensor([1.0, 2.0]))
    >>> field(torch.ones(1, 3), torch.zeros(1)).tolist()
    [[1.0, 2.0, 3.0]]
    """

    def field(state: Tensor, t: Tensor) -> Tensor:
        kept = torch.is_grad_enabled()
        with torch.enable_grad():
            x = state[:, :-1]
            x = x if kept and x.requires_grad else x.detach().requires_grad_()
            slope = v(x, t)
            rows = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
            rows = rows if probes is None else probes
            total = x.new_zeros(len(x))
            for row in rows:
                (gradient,) = torch.autograd.grad(slope, x, row, create_graph=kept, retain_graph=True)
                total = total + (gradient * row).sum(1)
        if probes is not None:
            total = total / len(probes)
        both = torch.cat([slope, total[:, None]], 1)
        return both if kept else both.detach()

    return field
