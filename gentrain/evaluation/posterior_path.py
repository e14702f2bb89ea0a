"""From a decoder's prior to the posterior of examples: p*_β(z) = p(z) p(x|z)^β, and the chains that move along it.

Hamiltonian Monte Carlo moves them, in the reals, through the bijection onto the prior's support.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from gentrain.evaluation.codes import unit_scaled
from gentrain.models.base import Decoder, LatentVariable
from gentrain.models.energies import TemperedPath

MARGIN = 1e-6
"""A deterministic decoder's probabilities are moved into [MARGIN, 1 - MARGIN]."""


# --- what p(x|z) is -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observation:
    """p(x|z) around a decoder: its log-density and draws from it.

    Attributes:
        log_prob: (z, x) -> log p(x|z), (n,), differentiable in z.
        sample: z -> x, (n, *shape).
        prepare: examples in the model's support -> the space that p(x|z) is a density of.
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]
    sample: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor] = lambda x: x


def own(model: LatentVariable) -> Observation:
    """The model's own p(x|z)."""
    return Observation(lambda z, x: model.decode(z).log_prob(x), lambda z: model.decode(z).sample())


def gaussian(model: Decoder, levels: int | None, sigma: float) -> Observation:
    """N(x; G(z), σ² I) on the scale where images lie in [0, 1]."""

    def log_prob(z: Tensor, x: Tensor) -> Tensor:
        error = (x - unit_scaled(model.decode(z), model.support, levels)).flatten(1)
        return -0.5 * error.square().sum(1) / sigma**2 - error.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))

    def sample(z: Tensor) -> Tensor:
        mean = unit_scaled(model.decode(z), model.support, levels)
        return mean + sigma * torch.randn_like(mean)

    return Observation(log_prob, sample, lambda x: unit_scaled(x, model.support, levels))


def bernoulli(model: Decoder) -> Observation:
    """Independent bits of probability G(z), kept within [MARGIN, 1 - MARGIN]."""

    def probability(z: Tensor) -> Tensor:
        return model.decode(z).clamp(MARGIN, 1 - MARGIN)

    def log_prob(z: Tensor, x: Tensor) -> Tensor:
        p = probability(z)
        return torch.where(x > 0.5, p, 1 - p).log().flatten(1).sum(1)

    return Observation(log_prob, lambda z: torch.bernoulli(probability(z)))


# --- the path -------------------------------------------------------------------------------------------------------


class Chains(NamedTuple):
    """n chains in unconstrained coordinates u with z = T(u), and what a leapfrog step needs there."""

    u: Tensor  # (n, *code)
    log_prior: Tensor  # log p(z) + log |dT/du|, (n,)
    log_likelihood: Tensor  # log p(x|z), (n,)
    prior_gradient: Tensor  # of log_prior, like u
    likelihood_gradient: Tensor  # of log_likelihood, like u


class PosteriorPath(TemperedPath[Chains]):
    """From the prior to the posterior of each of B examples, `chains` chains an example, image after image.

    log p*_β(u) = log p(T(u)) + log |dT/du| + β log p(x | T(u)). T maps the reals onto the prior's support: it is the
    identity for a normal prior and a scaled sigmoid for a uniform one, so no chain can leave.

    `transition` is Hamiltonian Monte Carlo with unit masses. Each example has a step size; after a transition it grows
    by 2 % if a running mean of its chains' acceptance probabilities is above `target` and shrinks by 2 % if below, as
    Wu et al. have it. That the kernel so depends on the chains' past is a small liberty, which the gap on simulated
    data would show. The adapted sizes stay with the path: its way back begins with them. Each chain takes that size
    times a draw from U(0.5, 1.5): trajectories of one length may go round a Gaussian posterior and never change their
    potential energy.

    Args:
        x: examples as `observation` takes them, (B, *shape).
        step: size of a leapfrog step at first. leapfrog: their number in a transition.
        rate: of its growth, 0.02 for the 2 %; 0 leaves it as it is.
    """

    log_partition = 0.0
    smallest, largest = 1e-4, 1.0

    def __init__(
        self,
        prior: Distribution,
        observation: Observation,
        x: Tensor,
        chains: int,
        leapfrog: int = 10,
        step: float = 0.1,
        target: float = 0.65,
        rate: float = 0.02,
    ):
        self.prior, self.observation, self.chains = prior, observation, chains
        self.leapfrog, self.target, self.rate = leapfrog, target, rate
        self.map = biject_to(prior.support)
        self.x = x.repeat_interleave(chains, 0)
        self.step = torch.full((len(x),), step, device=x.device)
        self.acceptance = torch.full_like(self.step, target)  # a running mean for each example
        self.accepted: list[Tensor] = []

    def start(self, n: int) -> Chains:
        return self.state(self.prior.sample(torch.Size([n])))

    def state(self, x: Tensor) -> Chains:
        """The state of codes z, (B * chains, *code): the latent variable is what is annealed here."""
        return self._at(self.map.inv(x))

    def example(self, state: Chains) -> Tensor:
        return self.map(state.u)

    def log_prob(self, state: Chains, beta: float) -> Tensor:
        return _wide(state.log_prior) + beta * _wide(state.log_likelihood)

    @torch.enable_grad()
    def _at(self, u: Tensor) -> Chains:
        u = u.detach().requires_grad_()
        z = self.map(u)
        volume = self.map.log_abs_det_jacobian(u, z)
        log_prior = self.prior.log_prob(z) + volume.reshape(len(u), -1).sum(1)
        log_likelihood = self.observation.log_prob(z, self.x)
        (prior_gradient,) = torch.autograd.grad(log_prior.sum(), u, retain_graph=True)
        (likelihood_gradient,) = torch.autograd.grad(log_likelihood.sum(), u)
        return Chains(u.detach(), log_prior.detach(), log_likelihood.detach(), prior_gradient, likelihood_gradient)

    def transition(self, state: Chains, beta: float) -> Chains:
        each = (-1, *[1] * (state.u.dim() - 1))
        step = self.step.repeat_interleave(self.chains).view(each)
        step = step * (0.5 + torch.rand_like(step))
        momentum = torch.randn_like(state.u)
        before = self.log_prob(state, beta) - _kinetic(momentum)
        new = state
        momentum = momentum + 0.5 * step * _force(new, beta)
        for i in range(self.leapfrog):
            new = self._at(new.u + step * momentum)
            momentum = momentum + (step if i < self.leapfrog - 1 else 0.5 * step) * _force(new, beta)
        change = self.log_prob(new, beta) - _kinetic(momentum) - before
        # A trajectory that ran off to infinity has no energy: it is refused.
        probability = torch.nan_to_num(change.clamp(max=0).exp(), nan=0.0).float().to(state.u.device)
        accept = torch.rand_like(probability) < probability
        self._adapt(probability)
        return Chains(
            *(torch.where(accept.view(-1, *[1] * (a.dim() - 1)), b, a) for a, b in zip(state, new, strict=True))
        )

    def _adapt(self, probability: Tensor) -> None:
        mean = probability.view(-1, self.chains).mean(1)
        self.accepted.append(mean.mean())
        self.acceptance = 0.9 * self.acceptance + 0.1 * mean
        factor = torch.where(self.acceptance > self.target, 1 + self.rate, 1 - self.rate)
        self.step = (self.step * factor).clamp(self.smallest, self.largest)


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * _wide(momentum).square().flatten(1).sum(1)


def _wide(x: Tensor) -> Tensor:
    return x.to("cpu" if x.device.type == "mps" else x.device).double()  # Apple's GPUs have no float64


def _force(chains: Chains, beta: float) -> Tensor:
    return chains.prior_gradient + beta * chains.likelihood_gradient


def ladder(kind: str, steps: int, first: float) -> list[float]:
    """β from 0 to 1 in `steps`.

    geometric: from `first` in equal ratios. A posterior that shrinks with β as a Gaussian's would changes evenly so.
    sigmoid: σ(4 (2t/T - 1)), rescaled (Wu et al. 2017). linear: t/T.

    >>> ladder("geometric", 3, 0.01)
    [0.0, 0.01, 0.1, 1.0]
    >>> [round(beta, 3) for beta in ladder("sigmoid", 4, 0.01)]
    [0.0, 0.105, 0.5, 0.895, 1.0]
    """
    if kind == "linear":
        return [t / steps for t in range(steps + 1)]
    if kind == "geometric":
        return [0.0, *(first ** ((steps - t) / max(steps - 1, 1)) for t in range(1, steps + 1))]
    low, high = _sigmoid(-4), _sigmoid(4)
    inner = [(_sigmoid(4 * (2 * t / steps - 1)) - low) / (high - low) for t in range(1, steps)]
    return [0.0, *inner, 1.0]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
