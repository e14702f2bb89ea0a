"""What flows in continuous time claim beyond what all flows do."""

from __future__ import annotations

import torch

from gentrain.models.continuous import ContinuousFlow
from gentrain.truth.base import Case, Verdict, claims
from gentrain.truth.invertible import ROUNDING, ROWS, exactly
from gentrain.truth.models import SIGMAS
from gentrain.truth.spaces import sigmas

DRAWS = 200
"""Estimates of each log |det|."""


@claims("probes estimate log |det| without bias", ContinuousFlow)
def probes_are_unbiased(case: Case) -> Verdict:
    """A probe's estimate of the trace, along the whole path, on average over draws of the probe."""
    model, x, to = exactly(case, ROWS)
    assert isinstance(model, ContinuousFlow)
    with torch.no_grad():
        exact = model.transform(x, **to)[1]
        many = {name: value.repeat(DRAWS) for name, value in to.items()}
        _, found = model.transform(x.repeat(DRAWS, *[1] * (x.dim() - 1)), **many, probes=1)
    draws = found.view(DRAWS, len(x))
    off = sigmas(draws, exact, ROUNDING * x[0].numel())
    words = f"{DRAWS} estimates for each of {len(x)} examples, deviation {float(draws.std(0).mean()):.2g} nats"
    return off, SIGMAS, f"{words}; distance of their mean in standard errors"
