"""What models that fill in what is missing claim: that their completions follow p(missing | known)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gentrain.models.base import Autoregressive, Completes, Conditions, OrderAgnostic
from gentrain.truth.base import Case, Verdict, claims
from gentrain.truth.models import ROUNDING, require_smooth
from gentrain.truth.spaces import Space, exact_log_prob, follow, over

COMMON = 0.01
"""What is known of the example is no less likely than this share of the likeliest."""


def masks(case: Case) -> list[Tensor]:
    """What is known of an example, (*shape): half of its elements, all but one. Of an autoregressive model those that
    come first, else random ones."""
    size = math.prod(case.model.shape)
    order = case.model.order.cpu() if isinstance(case.model, Autoregressive) else torch.randperm(size)
    counts = sorted({size // 2, size - 1} - {0})
    return [(order.argsort() < count).view(case.model.shape).to(case.x.device) for count in counts]


def given_part(space: Space, log_p: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """An example (*shape), and the log of p(missing | known) at each point of the space, (M,), up to a constant: -∞
    where a point differs from it in what is known.

    Its known part is, among those that are common, the one that tells most of the missing one: where conditional and
    marginal hardly differ, a model that looks at nothing would pass.
    """
    flat, missing = space.points.flatten(1), ~known.flatten()
    log_p = torch.log_softmax(log_p.double(), 0)
    group, seen = _marginal(flat[:, ~missing], log_p)
    group_of_missing, unseen = _marginal(flat[:, missing], log_p)
    # of each known part the KL divergence of its conditional from the marginal
    tells = log_p.exp() * (log_p - seen.log()[group] - unseen.log()[group_of_missing])
    gain = torch.zeros_like(seen).index_add_(0, group, tells.nan_to_num()) / seen
    chosen = int(gain.masked_fill(seen < COMMON * seen.max(), -math.inf).argmax())
    here = group == chosen
    return space.points[here.nonzero()[0, 0]], log_p.masked_fill(~here, -math.inf)


def _marginal(part: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """The number of each point's part (M, d) among all that differ, (M,), and their probabilities."""
    parts, group = part.unique(dim=0, return_inverse=True)
    return group, torch.zeros(len(parts)).to(log_p).index_add_(0, group, log_p.exp())


@claims("completions follow p(missing | known)", Completes)
@torch.no_grad()
def completions_follow(case: Case) -> Verdict | None:
    """Against enumeration. A model that knows the density of its completions is held to that too."""
    model = case.model
    assert isinstance(model, Completes)
    claimed = [known for known in masks(case) if model.completion(known[None]) != "approximate"]
    if not claimed:
        return None
    log_p = exact_log_prob(model, case.space)
    if isinstance(log_p, str):  # there is nothing to hold completions against
        return None
    require_smooth(case.space, log_p)
    found = [_with_so_much(case, model, log_p, known) for known in claimed]
    return max(found, key=lambda verdict: verdict[0] / max(verdict[1], 1e-9))


def _with_so_much(case: Case, model: Completes, log_p: Tensor, known: Tensor) -> Verdict:
    space = case.space
    # in small machines of coupled bits what is known changes little of what is missing
    n = case.n * (3 if space.levels is not None and model.completion(known[None]) == "chain" else 1)
    x, conditional = given_part(space, log_p, known)
    if isinstance(model, OrderAgnostic):  # each set of known elements has a p of its own
        assert isinstance(model, Conditions)
        conditional = torch.where(conditional.isfinite(), _own(model, space.points, known), -math.inf)
    elif isinstance(model, Conditions):
        off = _distance(_own(model, space.points, known), conditional, space, known)
        allowed = 5 * ROUNDING + (0.0 if space.coarse is None else 2e-3)
        if not off <= allowed:
            return off, allowed, "log_conditional against log p(x) - log p(known), largest difference in nats"
    unread = torch.where(known, x, math.nan) if x.is_floating_point() else torch.where(known, x, 0)
    drawn = over(lambda part: model.complete(part, known.expand_as(part)), unread.expand(n, *x.shape))
    if not torch.equal(drawn[:, known], x[known].expand(n, -1)):
        return math.inf, 0, "what is known is changed"
    statistic, allowed, words = follow(drawn, space, conditional)
    return statistic, allowed, f"{words}, {int(known.sum())} of {known.numel()} elements known"


def _own(model: Conditions, points: Tensor, known: Tensor) -> Tensor:
    return over(lambda part: model.log_conditional(part, known.expand_as(part)), points).double()


def _distance(own: Tensor, conditional: Tensor, space: Space, known: Tensor) -> float:
    """The largest difference of a model's own log p(missing | known) from the normalised one, where that is finite."""
    here = conditional.isfinite()
    volume = 0.0 if space.sides is None else float(space.sides[~known.flatten()].double().log().sum())
    exact = conditional[here] - torch.logsumexp(conditional[here], 0) - volume
    likely = exact > exact.max() - 20  # beyond, rounding of what is nearly impossible
    return float((own[here] - exact)[likely].abs().max())
