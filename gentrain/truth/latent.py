"""What latent-variable models claim: that q(z|x) and p(x|z) are what they say, and that the bounds are bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from gentrain.evaluation.likelihood import IWAE
from gentrain.models.base import Conditional, LatentVariable
from gentrain.truth.base import Case, Unchecked, Verdict, claims
from gentrain.truth.models import ROUNDING, ROWS, SIGMAS, require_smooth
from gentrain.truth.spaces import (
    AtLabel,
    Integral,
    around,
    codes_around,
    follow,
    over,
    quadrature,
    sigmas,
)


def unconditional(case: Case) -> tuple[LatentVariable, Tensor]:
    """The model and its examples; a conditional one with its last label held fixed, and the examples that have it."""
    model, x, y = case.model, case.x, case.batches[0].y
    assert isinstance(model, LatentVariable)
    if not (isinstance(model, Conditional) and model.classes):
        return model, x
    label = model.classes - 1
    own = None if y is None else x[y == label]
    return AtLabel(model, label), x if own is None or not len(own) else own


@claims("KL(q‖p) in closed form", LatentVariable)
def kl_is_closed(case: Case) -> Verdict | None:
    model, x = unconditional(case)
    with torch.no_grad():
        q, prior = model.encode(x[:8]), model.prior
        try:
            closed = kl_divergence(q, prior)
        except NotImplementedError:  # then objectives and estimators draw it, and nothing is claimed
            return None
        z = q.sample(torch.Size([20_000]))
        ratio = q.log_prob(z) - prior.log_prob(z)
    if closed.shape != ratio.shape[1:]:
        return math.inf, SIGMAS, f"is {tuple(closed.shape)} for {ratio.shape[1]} examples"
    words = f"20,000 draws of z each for 8 examples, in standard errors; mean KL {closed.mean():.3f} nats"
    return sigmas(ratio, closed, ROUNDING), SIGMAS, words


@claims("q(z|x) draws what it weighs", LatentVariable)
def posterior_follows_itself(case: Case) -> Verdict:
    model, x = unconditional(case)
    with torch.no_grad():
        q = model.encode(x[:1])
        draws = q.sample(torch.Size([case.n]))[:, 0]
        space = codes_around(model, draws)
        if isinstance(space, str):
            raise Unchecked(space)
        log_q = over(lambda z: q.log_prob(z[:, None])[:, 0], space.points)
    return _total_and_draws(space, log_q, draws)


def _total_and_draws(space, log_p: Tensor, draws: Tensor) -> Verdict:
    """That exp(log_p) sums to one on `space`, and if so that `draws` follow it."""
    total, unsure = float(space.log_total(log_p).exp()), require_smooth(space, log_p)
    allowed = ROUNDING if space.coarse is None else 2e-3 + unsure
    if abs(total - 1) > allowed:
        return abs(total - 1), allowed, f"it sums to {total:.6f}"
    statistic, bound, words = follow(draws, space, log_p)
    return statistic, bound, f"{words}; sums to {total:.6f}"


@claims("p(x|z) sums to one and draws what it weighs", LatentVariable)
def likelihood_follows_itself(case: Case) -> Verdict:
    model, _ = unconditional(case)
    with torch.no_grad():
        z = model.prior.sample(torch.Size([1]))
        p = model.decode(z)
        draws = p.sample(torch.Size([case.n]))[:, 0]
        space = case.space
        if space.coarse is not None and model.support == "real":
            found = around(draws)
            assert not isinstance(found, str)
            space = found
        log_p = over(lambda x: model.decode(z.expand(len(x), *z.shape[1:])).log_prob(x), space.points)
    return _total_and_draws(space, log_p, draws)


@claims("p(x|z) has its mean", LatentVariable)
def likelihood_has_its_mean(case: Case) -> Verdict:
    model, _ = unconditional(case)
    with torch.no_grad():
        p = model.decode(model.prior.sample(torch.Size([8])))
        try:
            mean = p.mean
        except NotImplementedError as error:
            raise Unchecked("the distribution gives no mean") from error
        draws = p.sample(torch.Size([4000])).double()
    # a bit so rare that no draw shows it has no sample deviation: a count of 3 is what may be missed
    scale = 1.0 if model.support == "real" else max(1.0, float(draws.max()))
    return sigmas(draws, mean, 3 * scale / len(draws)), SIGMAS, "4,000 draws of x for 8 codes, in standard errors"


@claims("the bounds rise to log p(x)", LatentVariable)
def bounds_rise(case: Case) -> Verdict:
    """ELBO <= IWAE-5 <= IWAE-50 <= log p(x), and 20,000 importance draws reach it; or the ELBO is what it should be."""
    model, x = unconditional(case)
    x = x[:ROWS]
    found = quadrature(model, x)
    if isinstance(found, str):
        raise Unchecked(found)
    exact, unsure = found.log_p, found.unsure
    means, errors = [], []
    for k in (1, 5, 50):
        draws = bounds(model, x, k, 200)
        means.append(draws.mean(0))
        errors.append(draws.std(0) / len(draws) ** 0.5 + ROUNDING + unsure)
    ladder = [*means, exact]
    slack = [errors[0] + errors[1], errors[1] + errors[2], errors[2]]
    descent = max(float(((a - b) / e).max()) for a, b, e in zip(ladder[:-1], ladder[1:], slack, strict=True))
    words = "ELBO {:.3f} <= IWAE-5 {:.3f} <= IWAE-50 {:.3f} <= log p(x) {:.3f} nats".format(
        *(float(v.mean()) for v in ladder)
    )
    if descent > SIGMAS:
        return descent, SIGMAS, f"{words} does not hold; largest descent in standard errors"
    # E[w] = p(x). The variance is the exact one: that of draws misses the rare weights that it is made of.
    with torch.no_grad():
        z = found.codes.points
        log_q = model.encode(x).log_prob(z[:, None].expand(-1, len(x), *z.shape[1:])).double()
    second = (found.codes.log_total(2 * found.log_joint - log_q) - 2 * exact).exp()
    error = ((second - 1).clamp(min=0) / 20_000) ** 0.5
    weights = (bounds(model, x, 500, 40) - exact).exp()
    clear = error < 0.05
    if not clear.any():  # q(z|x) is too far from p(z|x) for importance sampling to reach log p(x)
        integral, blur = _elbo(found, log_q)
        off = float(((means[0] - integral).abs() / (errors[0] + blur))[integral.isfinite()].max())
        return off, SIGMAS, f"{words}; the ELBO against its integral, in standard errors"
    off = float(((weights.mean(0) - 1).abs() / (error + ROUNDING + unsure))[clear].max())
    return off, SIGMAS, f"{words}; 20,000 importance draws, in standard errors"


def _elbo(found: Integral, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """∫ q (log p(x, z) - log q) dz on the grid for those examples whose q lies on it, NaN for others; its uncertainty.
    Over codes of bits it is a sum.

    Raises:
        Unchecked: no q lies on the grid.
    """
    space, gain = found.codes, found.log_joint - log_q
    mass = (log_q + space.log_volume).exp()
    if space.coarse is None:
        whole = (mass * gain).sum(0)
        return whole, torch.zeros_like(whole)
    fine, coarse = (mass * gain).sum(0), (mass * gain)[space.coarse].sum(0) * len(mass) / len(space.coarse)
    within = (mass.sum(0) - 1).abs() < 1e-3
    if not within.any():
        raise Unchecked("q(z|x) is too far from p(z|x), and beyond the grid")
    return torch.where(within, fine, math.nan), (fine - coarse).abs()


@torch.no_grad()
def bounds(model: LatentVariable, x: Tensor, k: int, repeats: int, y: Tensor | None = None) -> Tensor:
    """`repeats` independent draws of the IWAE-k bound for each of x (B, *shape), (repeats, B); the ELBO for k = 1.

    y (B,) are the labels that a conditional model needs.
    """
    many = x.repeat(repeats, *[1] * (x.dim() - 1))
    return IWAE(samples=k).bound(model, many, None if y is None else y.repeat(repeats)).view(repeats, len(x))
