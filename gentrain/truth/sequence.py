"""What recurrent models claim."""

from __future__ import annotations

import torch

from gentrain.models.sequence import Recurrent
from gentrain.truth.base import Case, Verdict, claims

LENGTH = 24
"""Elements of the sequences that are read: several examples in a row."""


@claims("its memory holds all of the past", Recurrent)
@torch.no_grad()
def memory_is_enough(case: Case) -> Verdict:
    """A sequence that is read in pieces, with nothing but the memory handed on, is as likely as in one go."""
    model = case.model
    assert isinstance(model, Recurrent)
    x = case.x.flatten()
    length = min(LENGTH, len(x))
    x = x[: len(x) // length * length].view(-1, length)
    whole, _ = model.read(x, model.blank(len(x)))
    worst = 0.0
    for cuts in ([1] * length, [length // 2, length - length // 2], [1, length - 1]):
        memory, found = model.blank(len(x)), []
        for piece in x.split(cuts, 1):
            log_p, memory = model.read(piece, memory)
            found.append(log_p)
        worst = max(worst, float((torch.cat(found, 1) - whole).abs().max()))
    return worst, 1e-4, f"{len(x)} sequences of {length}, in pieces and at once; the largest difference in nats"


@claims("what it says of an element hangs on earlier ones alone", Recurrent)
@torch.no_grad()
def reading_is_causal(case: Case) -> Verdict:
    """log p(x_t | x_<t) doesn't change with any x after t, nor the sum over all x_t of p from one."""
    model, levels = case.model, case.levels or 2
    assert isinstance(model, Recurrent)
    x = case.x.flatten()[:LENGTH].view(1, -1)
    log_p, _ = model.read(x, model.blank(1))
    worst = 0.0
    for t in range(x.shape[1] - 1):
        other = x.clone()
        other[:, t + 1 :] = (x[:, t + 1 :] + 1) % levels
        worst = max(worst, float((model.read(other, model.blank(1))[0] - log_p)[:, : t + 1].abs().max()))
    every = x[:, :-1].expand(levels, -1)
    every = torch.cat([every, torch.arange(levels, device=x.device)[:, None]], 1)
    total = model.read(every, model.blank(levels))[0][:, -1].double().exp().sum()
    worst = max(worst, abs(float(total) - 1))
    return worst, 1e-4, f"a sequence of {x.shape[1]} whose end changes, and all {levels} values of its last element"
