"""Denoising at every level of noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import Conditional, given, kind_given
from gentrain.models.diffusion import Diffuses
from gentrain.types import OpenFraction, PositiveFloat, PositiveInt
from gentrain.update import Objective, Score, Update


class Diffusion(Objective):
    """E_{t, ε} w_t |f(x_t, t) - target|², the mean over elements, at one time an example (Ho et al. 2020,
    arXiv:2006.11239, eq. 14). Of a conditional model the network sees the label, or now and then none.

    Args:
        weighting: `simple` has w = 1 for what the network predicts; `min_snr` has w = min(SNR, γ) for x_0 (Hang et al.
            2023, arXiv:2303.09556); `bound` is minus the bound of log p(x) in nats an element, less its constant L_T.
            Times are drawn evenly, for `bound` by the model's `proposal` and weighted for it.
        gamma: γ.
        label_dropout: the probability that a label is left out, so that the model knows p(x) beside p(x|y): what
            guidance and completion need (Ho & Salimans 2022, arXiv:2207.12598).
        draws: times at which held-out examples' bound is taken, besides 1; the more the less noise.
    """

    needs = Diffuses
    monitor = "elbo"

    def __init__(
        self,
        weighting: Literal["simple", "min_snr", "bound"] = "simple",
        gamma: PositiveFloat = 5.0,
        label_dropout: OpenFraction = 0.1,
        draws: PositiveInt = 2,
    ):
        super().__init__()
        self.weighting, self.gamma, self.label_dropout, self.draws = weighting, gamma, label_dropout, draws

    def forward(self, model: Diffuses, batch: Batch, progress: float) -> Iterator[Update]:
        x, y = batch.x, self.labels(model, batch)
        u = noise.uniform(len(x), device=x.device)
        epsilon = noise.normal(*x.shape, device=x.device)
        if self.weighting == "bound":
            p = model.proposal
            t = torch.searchsorted(p.cumsum(0), u, right=True).clamp_(max=model.steps - 1) + 1
            loss = (model.term(x, t, epsilon, y, clip=False) / p[t - 1]).mean() / math.prod(x.shape[1:])
        else:
            t = (u * model.steps).long().clamp_(max=model.steps - 1) + 1
            error = model.error(x, t, epsilon, y)
            loss = (self.weight(model, t) * error).mean()
        yield Update(loss, metrics={"loss": loss.detach()})

    def weight(self, model: Diffuses, t: Tensor) -> Tensor:
        """w_t of the error of what the network predicts, (B,)."""
        if self.weighting == "simple":
            return torch.ones_like(t, dtype=torch.float32)
        return model.snr(t).clamp(max=self.gamma) * model.share(t)

    def labels(self, model: Diffuses, batch: Batch) -> Tensor | None:
        """The labels that the network sees: K, the label of none, in place of some."""
        y = given(model, batch.y).get("y")
        if y is None or not self.label_dropout:
            return y
        assert isinstance(model, Conditional)
        left_out = noise.uniform(len(y), device=y.device) < self.label_dropout
        return torch.where(left_out, torch.full_like(y, model.classes or 0), y)

    def require(self, model: Diffuses) -> None:
        if isinstance(model, Conditional) and model.classes and model.guidance != 1 and not self.label_dropout:
            raise UsageError(
                f"model.guidance={model.guidance:g} needs a network that knows no label too: set"
                " objective.label_dropout=0.1"
            )

    @torch.no_grad()
    def validate(self, model: Diffuses, batch: Batch) -> dict[str, Score]:
        y = given(model, batch.y).get("y")
        return {"elbo": Score(model.bound(batch.x, y, self.draws), kind_given(model, "elbo"))}
