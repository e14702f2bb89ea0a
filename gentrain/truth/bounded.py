"""What machines with a bound of log p(x) claim: that it is one."""

from __future__ import annotations

import torch
from torch import Tensor

from gentrain.models.energies import Bounded
from gentrain.truth.base import Case, Unchecked, Verdict, claims
from gentrain.truth.models import SIGMAS
from gentrain.truth.spaces import over

DRAWS = 100
"""Evaluations of a bound whose mean is taken."""


@claims("the bound lies below log p(x)", Bounded)
@torch.no_grad()
def bound_is_below(case: Case) -> Verdict:
    """Nowhere is exp(bound - log Z) above the share of samples, and over all states it sums to one at most."""
    model, space = case.model, case.space
    assert isinstance(model, Bounded)
    log_z = model.log_partition()
    if space.levels is None or model.support != "binary":
        raise Unchecked("there is no likelihood here that is a sum over states")
    if log_z is None:
        raise Unchecked("log Z is not known exactly")
    bounds = torch.stack([over(model.log_bound, space.points).double() for _ in range(DRAWS)]) - log_z.to(case.x.device)
    error = bounds.std(0) / DRAWS**0.5
    p: Tensor = bounds.mean(0).exp()
    total, unsure = float(p.sum()), float((p * error).sum())
    seen = over(lambda row: model.sample(len(row)), torch.empty(case.n))
    share = torch.bincount(space.locate(seen), minlength=space.bins).double() / len(seen)
    chance = (p * (1 - p).clamp(min=0) / len(seen)).sqrt() + p * error
    often = p * len(seen) > 25  # below, a count is no normal variable
    above = ((p - share) / chance)[often]
    worst = max((total - 1) / (unsure + 1e-6), float(above.max()) if often.any() else 0.0)
    words = f"exp(bound - log Z) sums to {total:.4f} over {len(p):,} states"
    return worst, SIGMAS, f"{words}; its excess over shares of {len(seen):,} samples, in standard errors"
