"""What diffusion models claim: that their bound is the one of their chain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal

from gentrain.models.base import given
from gentrain.models.diffusion import Diffuses
from gentrain.truth.base import Case, Verdict, claims
from gentrain.truth.models import ROUNDING, ROWS, SIGMAS
from gentrain.truth.spaces import sigmas

WORK = 50_000
"""Evaluations of the network for each of two estimates."""


@claims("the bound is E log p/q along the chain", Diffuses)
@torch.no_grad()
def bound_is_the_chains(case: Case) -> Verdict:
    """Against log p(x, x_1, …, x_T) - log q(x_1, …, x_T|x) of chains that go from x step by step."""
    model, x, y = case.model, case.x[:ROWS], case.batches[0].y
    assert isinstance(model, Diffuses)
    repeats = max(4, WORK // (model.steps * len(x)))
    y = given(model, None if y is None else y[:ROWS].repeat(repeats)).get("y")
    many = x.repeat(repeats, *(1 for _ in model.shape))
    difference = model.bound(many, y) - along(model, many, y)
    off = sigmas(difference[:, None], torch.zeros(1, device=x.device), ROUNDING * model.steps**0.5)
    words = f"{repeats} chains of {model.steps} steps from each of {len(x)} examples"
    return off, SIGMAS, f"{words}; distance in standard errors"


def along(model: Diffuses, x: Tensor, y: Tensor | None = None) -> Tensor:
    """log p(x, x_1, …, x_T) - log q(x_1, …, x_T|x) for one draw of a chain each, (B,), float64."""
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for t in range(1, model.steps + 1):
        q = model.forth(x, t)
        noisier = q.sample()
        total += model.back(noisier, t, y).log_prob(x).double() - q.log_prob(noisier).double()
        x = noisier
    return total + Normal(0.0, 1.0).log_prob(x).double().flatten(1).sum(1)
