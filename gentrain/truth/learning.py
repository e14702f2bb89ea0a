"""What models claim that learn by EM, or by gradients through their own samples."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch

from gentrain.models.base import ExpectationMaximisation, Reparametrised
from gentrain.truth.base import Case, Verdict, claims
from gentrain.truth.objectives import shake
from gentrain.truth.spaces import follow, over


@claims("EM climbs", ExpectationMaximisation)
@torch.no_grad()
def em_climbs(case: Case) -> Verdict:
    """Steps of plain EM on all batches together, from parameters that are shaken out of their optimum."""
    model, x = copy.deepcopy(case.model), torch.cat([batch.x for batch in case.batches])
    assert isinstance(model, ExpectationMaximisation)
    shake(list(model.parameters()), case.seed)
    path = [float(model.log_prob(x).mean())]
    for _ in range(5):
        model.expect(x, 0.0)
        model.maximise()
        path.append(float(model.log_prob(x).mean()))
    fall = max(a - b for a, b in pairwise(path))
    words = f"log-likelihood {' -> '.join(f'{value:.4g}' for value in path)} over {len(x)} examples; largest fall"
    return fall if path[-1] > path[0] else math.inf, 1e-3 * (1 + abs(path[-1])), words


@claims("EM's statistics add up", ExpectationMaximisation)
@torch.no_grad()
def statistics_add_up(case: Case) -> Verdict:
    """An M-step from all examples at once, against one from pieces of them, whatever was known before."""
    x, pieces = torch.cat([batch.x for batch in case.batches]), [batch.x for batch in case.batches]
    found = []
    for parts in ([x], pieces):
        model = copy.deepcopy(case.model)
        assert isinstance(model, ExpectationMaximisation)
        if parts is pieces:
            model.expect(x[:7])  # forgotten
        for i, part in enumerate(parts):
            model.expect(part, float(i > 0))
        model.maximise()
        found.append(model.log_prob(x).double())
    off = float((found[0] - found[1]).abs().max() / (1 + found[0].abs().max()))
    return off, 1e-3, f"{len(x)} examples at once and in {len(pieces)} pieces; largest relative change of log p(x)"


@claims("reparametrised draws follow p(x)", Reparametrised)
def rsamples_follow(case: Case) -> Verdict:
    model, space = case.model, case.space
    assert isinstance(model, Reparametrised)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    with torch.enable_grad():
        draws = model.rsample(case.n)
        gradients = torch.autograd.grad(draws.square().sum(), parameters, allow_unused=True)
    lacks = [name for name, g in zip(names, gradients, strict=True) if g is None or not g.any()]
    statistic, allowed, words = follow(draws.detach(), space, over(model.log_prob, space.points))
    if lacks:
        return math.inf, allowed, f"no gradient reaches {', '.join(lacks)}"
    return statistic, allowed, f"{words}; gradients reach {len(names)} parameters"
