"""What models that factorise along an order claim."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gentrain.models.base import Autoregressive, given
from gentrain.truth.base import Case, Verdict, claims

POSITIONS = 64
"""Places of the order that are looked at, evenly spread over those of a larger x."""
ROWS = 4
"""Examples that are looked at."""


@claims("conditionals are strictly causal", Autoregressive)
def conditionals_are_causal(case: Case) -> Verdict:
    """Neither a change of x_o(i), …, x_o(D) nor, where x has gradients, autograd's Jacobian reaches element o(i)."""
    model, x = case.model, case.x[:ROWS]
    assert isinstance(model, Autoregressive)
    size, order = x[0].numel(), model.order
    if not torch.equal(order.sort().values, torch.arange(size, device=order.device)):
        return math.inf, 0, f"the order is no permutation of the {size} elements"
    with torch.no_grad():
        raw = model.conditionals(x, **_labels(case, model))
    if raw.dim() != 3 or raw.shape[:2] != (len(x), size):
        return math.inf, 0, f"conditionals are {tuple(raw.shape)}, not {(len(x), size)} and their parameters"
    places = sorted({round(i) for i in torch.linspace(0, size - 1, min(size, POSITIONS)).tolist()})
    worst, how = max((_by_change(case, raw, i), f"x changed from place {i + 1} on") for i in places)
    if x.is_floating_point():
        worst, how = max((worst, how), *((_by_gradient(case, x, i), f"gradient at place {i + 1}") for i in places))
    words = f"{len(places)} of {size} elements and {len(x)} examples; the largest influence of what is not before"
    return worst, 1e-5, words + (f": {how}" if worst else "")


def _labels(case: Case, model: Autoregressive) -> dict[str, Tensor]:
    """Labels of the first examples, where the model's conditionals are those given a label."""
    y = case.batches[0].y
    return given(model, None if y is None else y[:ROWS])


@torch.no_grad()
def _by_change(case: Case, raw: Tensor, i: int) -> float:
    """How much, relatively, the conditionals of the first i + 1 elements change when all but the first i do."""
    model, x = case.model, case.x[: len(raw)]
    assert isinstance(model, Autoregressive)
    other = 1 - x if x.is_floating_point() else (x + 1) % (case.levels or 2)
    after = torch.zeros(x[0].numel(), dtype=torch.bool, device=x.device)
    after[model.order[i:]] = True
    changed = model.conditionals(torch.where(after.view(x.shape[1:]), other, x), **_labels(case, model))
    return float((changed - raw)[:, model.order[: i + 1]].abs().max() / (1e-6 + raw.abs().max()))


def _by_gradient(case: Case, x: Tensor, i: int) -> float:
    """The largest derivative of a random combination of o(i)'s parameters by an element that is not before it."""
    model = case.model
    assert isinstance(model, Autoregressive)
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        own = model.conditionals(x, **_labels(case, model))[:, model.order[i]]
        if not own.requires_grad:
            return 0.0
        (gradient,) = torch.autograd.grad((own * torch.randn_like(own)).sum(), x, allow_unused=True)
    return 0.0 if gradient is None else float(gradient.flatten(1)[:, model.order[i:]].abs().max())
