"""What machines with an annealed log Z claim: that the path ends where it says, and its steps keep to it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gentrain.models.energies import Bounded, TemperedPath
from gentrain.truth.base import Case, Unchecked, Verdict, claims
from gentrain.truth.models import ROUNDING
from gentrain.truth.spaces import STATES, Space, discrete, follow, over

HALFWAY = 0.6
"""The β at which a step is looked at: base and machine are both felt."""


def _path(model: Bounded, x: Tensor) -> tuple[TemperedPath, Space]:
    """The path from the mean units of some examples, and all states of these units."""
    mean = model.tempered_units(x).float().mean(0)
    if 1 << mean.numel() > STATES:
        raise Unchecked(f"the path is over 2^{mean.numel()} states")
    path, space = model.tempered(mean), discrete(tuple(mean.shape), 2)
    if path.categories:
        there = space.points[:, -path.categories :].sum(1) == 1
        space = replace(space, points=space.points[there], bin=space.bin[there])
    return path, space


@claims("the path to log Z ends where it says", Bounded)
@torch.no_grad()
def path_has_its_ends(case: Case) -> Verdict:
    """Sums over all states of p*_0 and p*_1 against the base's normaliser and the machine's, where that is summed."""
    model = case.model
    assert isinstance(model, Bounded)
    path, space = _path(model, case.x)
    points = space.points.to(case.x)

    def total(beta: float) -> float:
        return float(space.log_total(over(lambda x: path.log_prob(path.state(x), beta), points)))

    off, words = abs(total(0.0) - path.log_partition), f"log Σ p*_0 over {len(points):,} states against log Z_0"
    if (log_z := model.log_partition()) is not None:
        off = max(off, abs(total(1.0) - float(log_z)))
        words += ", log Σ p*_1 against log Z"
    return off, ROUNDING * (1 + abs(path.log_partition)), f"{words}: largest difference in nats"


@claims("a step of the path keeps p_β", Bounded)
@torch.no_grad()
def path_keeps_to_itself(case: Case) -> Verdict:
    model = case.model
    assert isinstance(model, Bounded)
    path, space = _path(model, case.x)
    log_p = over(lambda x: path.log_prob(path.state(x), HALFWAY), space.points.to(case.x)).cpu()
    start = space.points[torch.multinomial(log_p.softmax(0), case.n, replacement=True)].to(case.x)
    end = path.example(path.transition(path.state(start), HALFWAY))
    if torch.equal(end, start):
        return float("inf"), 0, "no chain moves in a step"
    return follow(end.cpu(), space, log_p)
