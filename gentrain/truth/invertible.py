"""What normalizing flows claim: proved in float64, since a flow that was shaken may well stretch by millions.

Those in continuous time are solved to `SOLVED`, whatever their own solver: what is proved is the flow, and not how good
a solver somebody chose.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from gentrain.models.base import Invertible, given
from gentrain.models.continuous import ContinuousFlow
from gentrain.models.ode import Solver
from gentrain.truth.base import Case, Unchecked, Verdict, claims

ROWS = 4
"""Examples that are looked at."""
INPUTS = 256
"""Elements of x up to which the whole Jacobian is computed."""
ROUNDING = 1e-5
"""What is allowed a map and back, relatively, and log |det| and log p for each element."""
SOLVED = Solver("dopri5", rtol=1e-8, atol=1e-8)
"""Leaves errors far below `ROUNDING`."""


def exactly(case: Case, rows: int | None = None) -> tuple[Invertible | ContinuousFlow, Tensor, dict[str, Any]]:
    """The model, examples and the keyword arguments that put their labels to it, in float64."""
    assert isinstance(case.model, Invertible | ContinuousFlow)
    model, y = copy.deepcopy(case.model).cpu().double(), case.batches[0].y
    if isinstance(model, ContinuousFlow):
        model.solver = model.precise = SOLVED
    return model, case.x[:rows].cpu().double(), given(model, None if y is None else y[:rows].cpu())


@claims("the flow can be undone", Invertible, ContinuousFlow)
def flow_inverts(case: Case) -> Verdict:
    """f⁻¹(f(x)) = x for examples, and f(f⁻¹(z)) = z for draws from the prior that lead into the support."""
    model, x, to = exactly(case)
    with torch.no_grad():
        z, _ = model.transform(x, **to)
        if z.shape != (len(x), x[0].numel()):
            return math.inf, ROUNDING, f"codes are {tuple(z.shape)} of {len(x)} examples of {x[0].numel()} elements"
        there = _off(model.invert(z, **to), x)
        drawn = model.prior.sample(torch.Size([len(x)]))
        from_drawn = model.invert(drawn, **to)
        low, high = {"unit": (0, 1), "signed": (-1, 1)}.get(model.support, (-math.inf, math.inf))
        inside = ((from_drawn >= low) & (from_drawn <= high)).flatten(1).all(1)
        kept = {name: value[inside] for name, value in to.items()}
        back = _off(model.transform(from_drawn[inside], **kept)[0], drawn[inside]) if inside.any() else 0.0
    words = f"largest relative error: {there:.1g} of {len(x)} x by way of z, {back:.1g} of {inside.sum()} z by way of x"
    return max(there, back, key=_worst), ROUNDING, words


def _worst(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _off(found: Tensor, wanted: Tensor) -> float:
    return float(((found - wanted).abs() / (1 + wanted.abs())).max())


@claims("log |det| is the Jacobian's", Invertible, ContinuousFlow)
def log_det_is_the_jacobians(case: Case) -> Verdict:
    """Against the determinant of autograd's Jacobian."""
    model, x, to = exactly(case, ROWS)
    size = x[0].numel()
    if size > INPUTS:
        raise Unchecked(f"a Jacobian of {size}x{size} takes long")
    with torch.enable_grad():
        found = model.transform(x, **to)[1].detach()
        exact = torch.stack([_log_det(model, x, to, i) for i in range(len(x))])
    off = float((found - exact).abs().max()) / size
    return off, ROUNDING, f"nats for each of {size} elements, {len(x)} examples; mean log |det| {found.mean():.3f}"


def _log_det(model: Invertible | ContinuousFlow, x: Tensor, to: dict[str, Any], i: int) -> Tensor:
    own = {name: value[i : i + 1] for name, value in to.items()}
    jacobian = torch.autograd.functional.jacobian(lambda v: model.transform(v[None], **own)[0][0], x[i])
    assert isinstance(jacobian, Tensor)
    return jacobian.reshape(x[i].numel(), -1).slogdet().logabsdet


@claims("log p(x) is the code's and log |det|", Invertible, ContinuousFlow)
def density_changes_variables(case: Case) -> Verdict:
    model, x, to = exactly(case)
    with torch.no_grad():
        z, log_det = model.transform(x, **to)
        off = float((model.log_prob(x, **to) - model.prior.log_prob(z) - log_det).abs().max()) / x[0].numel()
        code = _off(model.codes(x, **to), z)
    return max(off, code, key=_worst), ROUNDING, f"off by {off:.1g} nats an element; `codes` by {code:.1g} from f(x)"
