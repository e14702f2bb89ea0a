"""What models of labels claim."""

from __future__ import annotations

import torch

from gentrain.models.base import Categorises, Classifies, Conditional, Generative
from gentrain.models.domains import Adapts
from gentrain.models.energies import EnergyBased
from gentrain.truth.base import Case, Verdict, claims
from gentrain.truth.models import ROUNDING, ROWS


@claims("p(y|x) is the joint's, and sums to one", Classifies)
@torch.no_grad()
def log_class_is_right(case: Case) -> Verdict | None:
    """Of a model with the energy of x and y together it is softmax(-F(x, y)), and F(x) their sum over y."""
    model, x = case.model, case.x[:ROWS]
    assert isinstance(model, Classifies)
    if not model.knows_labels:
        return None
    log_p = model.log_class(x).double()
    if log_p.dim() != 2 or len(log_p) != len(x) or not log_p.isfinite().all():
        return float("inf"), ROUNDING, f"log_class is {tuple(log_p.shape)} of {len(x)} examples, or not finite"
    off = float((torch.logsumexp(log_p, 1)).abs().max())
    words = f"log Σ_y p(y|x) of {len(x)} examples, {log_p.shape[1]} labels"
    if isinstance(model, EnergyBased) and isinstance(model, Conditional):
        each = [model.free_energy(x, **_at(model, x, y)).double() for y in range(log_p.shape[1])]
        joint = -torch.stack(each, 1)
        scale = 1 + float(joint.abs().max()) / 100
        off = max(off, float((log_p - torch.log_softmax(joint, 1)).abs().max()) / scale)
        off = max(off, float((model.free_energy(x).double() + torch.logsumexp(joint, 1)).abs().max()) / scale)
        words += ", log p(y|x) and F(x) against F(x, y)"
    return off, ROUNDING, f"{words}: largest difference in nats"


@claims("p(y|pair) sums to one", Adapts)
@torch.no_grad()
def log_class_pair_sums(case: Case) -> Verdict | None:
    model, pair = case.model, case.batches[0].pair
    assert isinstance(model, Adapts)
    if not model.knows_labels or pair is None:
        return None
    log_p = model.log_class_pair(pair[:ROWS]).double()
    if log_p.shape != model.log_class(case.x[:ROWS]).shape or not log_p.isfinite().all():
        return float("inf"), ROUNDING, f"log_class_pair is {tuple(log_p.shape)}, unlike log_class, or not finite"
    off = float(torch.logsumexp(log_p, 1).abs().max())
    return off, ROUNDING, f"log Σ_y p(y|pair) of {len(log_p)} examples, {log_p.shape[1]} labels: the largest in nats"


@claims("the categories' probabilities sum to one", Categorises)
@torch.no_grad()
def log_category_is_right(case: Case) -> Verdict | None:
    model, x = case.model, case.x[:ROWS]
    assert isinstance(model, Categorises)
    if not model.categories:
        return None
    log_p = model.log_category(x).double()
    if log_p.shape != (len(x), model.categories) or not log_p.isfinite().all():
        return float("inf"), ROUNDING, f"log_category is {tuple(log_p.shape)} of {len(x)} examples, or not finite"
    off = float(torch.logsumexp(log_p, 1).abs().max())
    return off, ROUNDING, f"log Σ_c p(c|x) of {len(x)} examples, {model.categories} categories: farthest from 0"


def _at(model: Generative, x: torch.Tensor, y: int) -> dict[str, torch.Tensor]:
    return {"y": torch.full((len(x),), y, device=model.device)}
