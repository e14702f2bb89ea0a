"""Kullback-Leibler divergence from or to a known density, in either direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import Reparametrised
from gentrain.models.gaussian import mixture_log_prob
from gentrain.types import PositiveFloat
from gentrain.update import Objective, Score, Update


class _Divergence(Objective):
    """What both directions share: the target t(x) = 1/M Σ_m N(x; c_m, σ² I)."""

    needs = Reparametrised
    centres: Tensor

    def __init__(self, centres: Sequence[Sequence[float]] | None, std: PositiveFloat | None):
        super().__init__()
        if centres is None or std is None:
            missing = "centres" if centres is None else "std"
            raise UsageError(
                f"objective.{missing}=null: the density of these data is not known; use data=ring or data=grid, or give"
                " a mixture of Gaussians by objective.centres and objective.std"
            )
        if not centres or not centres[0] or len({len(c) for c in centres}) > 1:
            raise UsageError(
                f"objective.centres={list(centres)}: must be a list of points with as many coordinates each"
            )
        self.std = std
        self.register_buffer("centres", torch.tensor(centres), persistent=False)

    def target(self, x: Tensor) -> Tensor:
        """log t(x) in nats, (B,).

        Raises:
            UsageError: the centres lie in a space of another dimension.
        """
        flat, dim = x.flatten(1), self.centres.shape[1]
        if flat.shape[1] != dim:
            raise UsageError(f"objective.centres has points of {dim} coordinates, and one example has {flat.shape[1]}")
        return mixture_log_prob(flat, self.centres, self.std)


class ForwardKL(_Divergence):
    """KL(t ‖ p) = E_t[log t(x) - log p(x)] over the data, which are drawn from t: maximum likelihood and a constant.

    It is infinite where p is zero and t is not: p covers all modes, and what lies between them (Bishop 2006, section
    10.1.2).

    Metrics: `forward_kl` and `log_likelihood`, in nats.

    Args:
        centres: c_m of the target, (M, D), `${data.centres}`.
        std: σ.
    """

    monitor = "log_likelihood"

    def forward(self, model: Reparametrised, batch: Batch, progress: float) -> Iterator[Update]:
        log_likelihood = model.log_prob(batch.x)
        loss = (self.target(batch.x) - log_likelihood).mean()
        yield Update(loss, metrics={"forward_kl": loss.detach(), "log_likelihood": log_likelihood.detach().mean()})

    @torch.no_grad()
    def validate(self, model: Reparametrised, batch: Batch) -> dict[str, Score]:
        values = model.log_prob(batch.x)
        divergence = Score(self.target(batch.x) - values, "forward-kl")
        return {"log_likelihood": Score(values, "exact"), "forward_kl": divergence}


class ReverseKL(_Divergence):
    """KL(p ‖ t) = E_p[log p(x) - log t(x)] over the model's own samples, reparametrised; the data are not looked at.

    It is infinite where t is zero and p is not: p keeps to one mode (Bishop 2006, section 10.1.2). This is variational
    inference with t for the posterior.

    Metrics: `reverse_kl`, in nats.

    Args:
        centres: c_m of the target, (M, D), `${data.centres}`.
        std: σ.
    """

    def forward(self, model: Reparametrised, batch: Batch, progress: float) -> Iterator[Update]:
        x = model.rsample(len(batch.x))
        loss = (model.log_prob(x) - self.target(x)).mean()
        yield Update(loss, metrics={"reverse_kl": loss.detach()})

    @torch.no_grad()
    def validate(self, model: Reparametrised, batch: Batch) -> dict[str, Score]:
        """The divergence over as many samples as there are examples, and the likelihood of the examples."""
        x = model.sample(len(batch.x))
        divergence = Score(model.log_prob(x) - self.target(x), "reverse-kl")
        return {"reverse_kl": divergence, "log_likelihood": Score(model.log_prob(batch.x), "exact")}
