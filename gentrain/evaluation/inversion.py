"""Finding the code of an example by descent, for decoders that have no encoder, and what can be told of it then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from gentrain.evaluation.anomaly import Anomaly, Score
from gentrain.evaluation.estimator import Subject
from gentrain.models.base import Conditional, Decoder, Generative, LatentVariable, given
from gentrain.models.critics import Adversarial, Perceives
from gentrain.types import Fraction, PositiveFloat, PositiveInt


class Found(NamedTuple):
    """Codes (B, *code), what they decode to (B, *shape), and the loss that is left (B,)."""

    z: Tensor
    x: Tensor
    loss: Tensor


FAR = 10.0
"""No search starts further from 0: a draw at the border of the prior's support would start at infinity."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of examples (B, *shape) and what codes decode to, (B, *shape): (B,)."""


def squared(x: Tensor, made: Tensor) -> Tensor:
    """‖x - G(z)‖²."""
    return (x - made).flatten(1).square().sum(1)


def unsuited(model: Generative) -> str | None:
    """Why codes of the model can't be searched for, in words that follow its name; None if they can."""
    if isinstance(model, Conditional) and model.classes:
        return "decodes nothing without a label, which the search for a code doesn't know"
    if not isinstance(model, LatentVariable | Decoder):
        return "decodes nothing: it is no LatentVariable or Decoder"
    return discontinuous(model.prior)


def discontinuous(prior: Distribution) -> str | None:
    """That no gradient leads through this prior's codes, in words that follow a model's name; None if one does."""
    try:
        biject_to(prior.support)
    except NotImplementedError:  # torch's answer for a support without a bijection onto the reals
        return f"has a prior, {type(prior).__name__}, that isn't continuous: there is no gradient to follow"
    return None


def invert(
    model: LatentVariable | Decoder,
    x: Tensor,
    steps: int = 200,
    lr: float = 0.05,
    restarts: int = 4,
    prior: float = 0.0,
    loss: Loss = squared,
    start: Tensor | None = None,
    near: float = 0.0,
    y: Tensor | None = None,
) -> Found:
    """z that minimises ‖x - G(z)‖² - prior · log p(z), by Adam (Lipton & Tripathi 2017, arXiv:1702.04782; Zhu et al.
    2016, arXiv:1609.03552, section 3.1), the best of several starts drawn from the prior.

    The search goes through u with z = T(u), T from the reals onto the prior's support, so no z is outside of it. Of a
    model with p(x|z), G(z) is its mean. Examples don't influence each other; the model is as the caller has put it,
    and should be in eval mode.

    Args:
        x: (B, *shape) in the model's support. restarts: starts for each example. prior: weight of log p(z).
        loss: what takes the place of ‖x - G(z)‖².
        start: codes (B, *code) at which the search begins, once, in place of draws from the prior.
        near: weight of ‖u - u_0‖², u_0 where it begins. y: labels (B,), which a conditional model needs.
    """
    p = model.prior
    to_z = biject_to(p.support)
    restarts = restarts if start is None else 1
    begin = p.sample(torch.Size([restarts * len(x)])).to(x.device) if start is None else start
    begin = to_z.inv(begin).detach().clamp(-FAR, FAR)
    u = begin.clone().requires_grad_()
    many = x.float().repeat(restarts, *[1] * (x.dim() - 1))
    labels = None if y is None else y.repeat(restarts)
    optimizer = torch.optim.Adam([u], lr)

    def left() -> tuple[Tensor, Tensor, Tensor]:
        z = to_z(u)
        made = expected(model, z, labels)
        remaining = loss(many, made) - (prior * p.log_prob(z) if prior else 0.0)
        return remaining + (near * (u - begin).flatten(1).square().sum(1) if near else 0.0), z, made

    with torch.enable_grad():
        for _ in range(steps):
            (u.grad,) = torch.autograd.grad(left()[0].sum(), u)
            optimizer.step()
    with torch.no_grad():
        remaining, z, made = left()
        best = remaining.view(restarts, len(x)).argmin(0) * len(x) + torch.arange(len(x), device=x.device)
    return Found(z[best], made[best], remaining[best])


def expected(model: LatentVariable | Decoder, z: Tensor, y: Tensor | None = None) -> Tensor:
    """G(z), or the mean of p(x|z); (B, *shape). A conditional model needs labels y (B,)."""
    decoded = model.decode(z, **given(model, y))
    return decoded.mean if isinstance(decoded, Distribution) else decoded


class AnoGAN(Anomaly):
    """Anomalies by what a generator can't make (Schlegl et al. 2017, arXiv:1703.05921). For z that minimises it,

        A(x) = (1 - λ) Σ|x - G(z)| + λ Σ|f(x) - f(G(z))|

    with f the critic's features. Rows are those of `anomaly`, of the kind `anogan`.

    Args:
        against: as of `Anomaly`. steps, lr, restarts: of the search. weight: λ. examples: of each set, at most; the
            search takes `steps` passes through both networks for each. resamples: as of `Anomaly`.
    """

    needs = (Perceives,)

    def __init__(
        self,
        against: str | dict[str, Any] | None = None,
        steps: PositiveInt = 500,
        lr: PositiveFloat = 0.02,
        restarts: PositiveInt = 1,
        weight: Fraction = 0.1,
        examples: PositiveInt = 500,
        resamples: PositiveInt = 200,
    ):
        super().__init__(against, resamples=resamples)
        self.steps, self.lr, self.restarts, self.weight, self.limit = steps, lr, restarts, weight, examples

    def unfit(self, subject: Subject) -> str | None:
        if isinstance(subject.model, Adversarial) and subject.model.judges_batches:
            return "has a critic whose features of an example depend on its batch; set model.minibatch_features=0"
        return super().unfit(subject) or unsuited(subject.model)

    def _scores(self, subject: Subject) -> Mapping[str, Score]:
        model = subject.model
        assert isinstance(model, Perceives)

        def loss(x: Tensor, made: Tensor) -> Tensor:
            pixels = (x - made).abs().flatten(1).sum(1)
            features = (model.features(x) - model.features(made)).abs().sum(1)
            return (1 - self.weight) * pixels + self.weight * features

        return {"anogan": lambda x: invert(model, x, self.steps, self.lr, self.restarts, loss=loss).loss}
