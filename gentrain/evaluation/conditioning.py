"""Examples given what is seen of them, by whatever a model has for it.

`Completes`        its own way, for single elements: ancestral sampling, clamped Gibbs sampling, closed forms
`Restores`         its own way, for any linear view y = A x: diffusion in which what is seen is put back at each time
`LatentVariable`   for single elements a Markov chain over z and the missing part, by q(z|x) and p(x|z)
`Decoder`          codes z by Hamiltonian Monte Carlo from the prior to p(z) N(y; A G(z), σ² I), for any linear view;
                   latent-variable models too, where the view is no set of elements
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.evaluation.codes import unit_scaled
from gentrain.evaluation.inversion import discontinuous, expected
from gentrain.evaluation.posterior_path import Observation, PosteriorPath, ladder
from gentrain.evaluation.views import Pixels, View
from gentrain.models.base import Completes, Decoder, Generative, LatentVariable, Law, Restores, given
from gentrain.models.missing import impute

RATE = 0.1
"""By which step sizes change after a transition: the way to the posterior is short."""


@dataclass(frozen=True)
class Effort:
    """How long chains run, where a model has none of its own.

    Args:
        sweeps: of the chain of a latent-variable model over z and the missing elements.
        steps: transitions of the chains of codes, a quarter of them at their posterior, to which the others lead from
            the prior. leapfrog: steps of a Hamiltonian trajectory.
        sigma: σ, standard deviation of what is seen from what is decoded, on the scale where images lie in [0, 1].
    """

    sweeps: int = 100
    steps: int = 100
    leapfrog: int = 5
    sigma: float = 0.1


def unable_to_complete(model: Generative) -> str | None:
    """Why the model can't fill in missing elements, in words that follow its name; None if it can."""
    if model.support == "tokens":
        return "models tokens, of which it goes on after the first ones only: kind=text"
    if isinstance(model, Completes | LatentVariable):
        return None
    return unable_to_search(model)


def unable_to_restore(model: Generative) -> str | None:
    """Why the model can't be asked for examples by a linear view of them, in words that follow its name."""
    return None if isinstance(model, Restores) else unable_to_search(model)


def unable_to_search(model: Generative) -> str | None:
    """Why it has no codes that can be found by what is seen of their decodings, in words that follow its name."""
    if not isinstance(model, LatentVariable | Decoder):
        return "has no code to search for by what is seen: it is no LatentVariable or Decoder"
    return discontinuous(model.prior)


def law(model: Generative, known: Tensor) -> Law:
    """What `complete` draws from where so much is `known`, (B, *shape)."""
    if isinstance(model, Completes):
        return model.completion(known)
    return "chain" if isinstance(model, LatentVariable) else "approximate"


def complete(
    model: Generative, x: Tensor, known: Tensor, effort: Effort, levels: int | None = None, y: Tensor | None = None
) -> Tensor:
    """x (B, *shape) where `known`, elsewhere drawn given that; in the model's support. Values elsewhere aren't read.

    Args:
        known: (B, *shape) or (*shape), of bools. levels: values of an element of the data.
        y: labels (B,), which a conditional model needs that can't complete without.

    Raises:
        UsageError: the mask has another shape, or all or nothing is known; the model can't.
    """
    require_mask(x, known)
    known = known.expand_as(x)
    if isinstance(model, Completes):
        return model.complete(torch.where(known, x, torch.zeros_like(x)), known)
    if isinstance(model, LatentVariable):
        return gibbs(model, x, known, effort.sweeps, y)
    if _searchable(model):
        z = codes_given(model, Pixels(known), x, effort, levels, y)
        return torch.where(known, x, expected(model, z, y).to(x.dtype))
    raise UsageError(f"{type(model).__name__} {unable_to_complete(model)}")


def require_mask(x: Tensor, known: Tensor) -> None:
    """Raises UsageError unless `known` says of each element of x (B, *shape), of some and not of all, that it is."""
    if known.dtype != torch.bool or known.shape not in (x.shape, x.shape[1:]):
        raise UsageError(
            f"the mask is {known.dtype} of shape {list(known.shape)}; it must be bools of shape {list(x.shape[1:])}, or"
            f" of shape {list(x.shape)}"
        )
    if not known.any() or known.all():
        raise UsageError("the mask hides all or nothing: there is nothing to complete, or nothing to complete it by")


def _searchable(model: Generative) -> TypeGuard[LatentVariable | Decoder]:
    return unable_to_search(model) is None


def restored(
    model: Generative, view: View, x: Tensor, effort: Effort, levels: int | None = None, y: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Examples (B, *shape) that look like those of x (B, *shape) by `view`, one for each, and the means they are drawn
    around where there are such: a model's own way, else `decoded`.

    Raises:
        UsageError: the model can't.
    """
    if isinstance(model, Restores):
        made = model.restore(x, view.onto)
        return made, made
    if _searchable(model):
        return decoded(model, view, x, effort, levels, y)
    raise UsageError(f"{type(model).__name__} {unable_to_restore(model)}")


def decoded(
    model: LatentVariable | Decoder,
    view: View,
    x: Tensor,
    effort: Effort,
    levels: int | None = None,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Examples (B, *shape) that look like those of x (B, *shape) by `view`, one for each, and the means of p(x|z) they
    are drawn from; of a deterministic decoder these are the same. Of x nothing but the view is read."""
    z = codes_given(model, view, x, effort, levels, y)
    if isinstance(model, LatentVariable):
        p = model.decode(z, **given(model, y))
        return p.sample(), p.mean
    made = model.decode(z, **given(model, y))
    return made, made


def codes_given(
    model: LatentVariable | Decoder,
    view: View,
    x: Tensor,
    effort: Effort,
    levels: int | None = None,
    y: Tensor | None = None,
) -> Tensor:
    """Codes z (B, *code), one for each of x (B, *shape), drawn from p(z | y) ∝ p(z) N(y; A G(z), σ² I), y = A x, by
    annealed Hamiltonian Monte Carlo (`PosteriorPath`); of a model with p(x|z), G(z) is its mean.

    So much of a code as y leaves open differs from draw to draw. A short chain may not come to the best of several
    modes: the draws follow that law in the limit of many steps.
    """

    def scaled(x: Tensor) -> Tensor:
        return unit_scaled(x, model.support, levels)

    def look(z: Tensor) -> Tensor:
        return view(scaled(expected(model, z, y)))

    def log_prob(z: Tensor, seen: Tensor) -> Tensor:
        return -0.5 * ((seen - look(z)) / effort.sigma).flatten(1).square().sum(1)

    observation = Observation(log_prob, look)
    path = PosteriorPath(model.prior, observation, view(scaled(x)), chains=1, leapfrog=effort.leapfrog, rate=RATE)
    state, rest = path.start(len(x)), effort.steps // 4
    for beta in ladder("geometric", effort.steps - rest, 1e-5)[1:]:
        state = path.transition(state, beta)
    path.rate = 0.0  # from here on a chain that keeps p(z | y)
    for _ in range(rest):
        state = path.transition(state, 1.0)
    return path.example(state)


def gibbs(model: LatentVariable, x: Tensor, known: Tensor, sweeps: int, y: Tensor | None = None) -> Tensor:
    """z ~ q(z|x), then the missing part of x ~ p(x|z), again and again (Rezende et al. 2014, arXiv:1401.4082, app. F),
    in the second half of the sweeps with z refused so that p(missing | known) is kept, see `impute`.

    It starts from p(x) for the missing part. Of a conditional model all is given y.
    """
    to = given(model, y)

    def roam(x: Tensor) -> Tensor:
        return model.decode(model.encode(x, **to).sample(), **to).sample()

    def log_joint(x: Tensor, z: Tensor) -> Tensor:
        return model.prior.log_prob(z) + model.decode(z, **to).log_prob(x)

    x = torch.where(known, x, model.sample(len(x), **to).to(x))
    return impute(
        x, known, sweeps, roam, lambda x: model.encode(x, **to), log_joint, lambda z: model.decode(z, **to).sample()
    )
