"""log p(x) of a model with a decoder by annealing its latent variables (Wu et al. 2017, arXiv:1611.04273).

A path joins the prior to the posterior of each example, p*_β(z) = p(z) p(x|z)^β, whose normaliser at β = 1 is p(x).
Hamiltonian Monte Carlo moves the chains. How far the estimate may be off shows on data simulated from the model, of
which an exact posterior sample is known: from there the same path runs backwards (bidirectional Monte Carlo, Grosse
et al. 2015, arXiv:1511.02543).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from gentrain.errors import UsageError
from gentrain.evaluation.ais import anneal
from gentrain.evaluation.codes import unit_scaled
from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.evaluation.inversion import discontinuous
from gentrain.evaluation.likelihood import findings, require_bits, require_support
from gentrain.models.base import Conditional, Decoder, LatentVariable
from gentrain.models.energies import TemperedPath
from gentrain.types import NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt

GRID = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
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


# --- the estimator --------------------------------------------------------------------------------------------------


class DecoderAIS(Estimator):
    """log p(x) of single examples by AIS over their codes, and how far the two directions differ on simulated data.

    The value of an example is the log of the mean weight of its chains: below log p(x) in expectation. `ais_gap` is the
    mean over examples drawn from the model of reverse minus forward AIS, both with their chains: the expected error
    of either is at most that, on data like the model's own.

    A latent-variable model has its own p(x|z). A deterministic decoder gets one: N(G(z), σ² I) on the scale where
    images lie in [0, 1], or bits of probability G(z). Gaussian densities grow without bound as σ shrinks if examples
    are repeated exactly, so σ is chosen on validation examples, unless given, and stands in the rows. One run at the
    smallest σ serves all: σ_min²/σ² is a β of its path.

    Args:
        images: examples of the split that are judged, at most: each costs chains * steps * leapfrog decodings.
        chains: an example. steps: of β. leapfrog: steps of a Hamiltonian trajectory.
        schedule: of β. first: the first β above 0 of a geometric one.
        step: size of a leapfrog step at first; adapted to `acceptance`.
        observation: `auto` is the model's own p(x|z), for a decoder of bits bernoulli, for other decoders gaussian.
        sigma: of a gaussian; null chooses one of `sigmas` on at most `validation` examples.
        simulated: examples drawn from the model for the gap; 0 leaves it out.
        chunk: chains of all examples that are held in memory at a time.
    """

    needs = (LatentVariable, Decoder)

    def __init__(
        self,
        images: PositiveInt = 100,
        chains: PositiveInt = 16,
        steps: PositiveInt = 200,
        leapfrog: PositiveInt = 10,
        schedule: Literal["geometric", "sigmoid", "linear"] = "geometric",
        first: PositiveFloat = 1e-5,
        step: PositiveFloat = 0.1,
        acceptance: OpenFraction = 0.65,
        observation: Literal["auto", "gaussian", "bernoulli"] = "auto",
        sigma: PositiveFloat | None = None,
        sigmas: Sequence[PositiveFloat] = GRID,
        validation: PositiveInt = 20,
        simulated: NonNegativeInt = 20,
        chunk: PositiveInt = 1600,
    ):
        if first >= 1:
            raise UsageError(f"first={first}: the first β lies below 1, e.g. 0.00001")
        if not sigmas:
            raise UsageError("sigmas=[]: give at least one")
        self.images, self.chains, self.leapfrog, self.step, self.acceptance = images, chains, leapfrog, step, acceptance
        self.observation, self.sigma, self.sigmas, self.validation = observation, sigma, sorted(sigmas), validation
        self.simulated, self.chunk = simulated, chunk
        self.betas = ladder(schedule, steps, first)

    def unfit(self, subject: Subject) -> str | None:
        model = subject.model
        if not isinstance(model, LatentVariable | Decoder):
            return super().unfit(subject)
        if isinstance(model, Conditional) and model.classes:
            bound = ": iwae bounds it" if isinstance(model, LatentVariable) else ""
            return f"is p(x|y), whose codes are annealed for no label here{bound}"
        if (reason := discontinuous(model.prior)) is not None:
            return reason
        if isinstance(model, LatentVariable):
            if self.observation != "auto":
                return (
                    f"has a p(x|z) of its own: observation={self.observation} is for deterministic decoders, use auto"
                )
        elif self._bits(model):
            if model.support not in ("binary", "unit"):
                return f"decodes to {model.support} data, which are no probabilities: use observation=gaussian"
        elif self.sigma is None and not subject.spec.sizes.get("validation"):
            return f"needs a validation split to choose sigma, and data={subject.spec.name} has none here: give sigma"
        return None

    def _bits(self, model: Decoder) -> bool:
        return self.observation == "bernoulli" or (self.observation == "auto" and model.support == "binary")

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        observation, settings = self.observe(subject)
        x = observation.prepare(self.examples(subject, None, self.images))
        values, effective, accepted = [], [], []
        for part in x.split(max(1, self.chunk // self.chains)):
            path = self.path(subject, observation, part)
            weights = self.run(subject, path, path.start(len(part) * self.chains), self.betas, "decoder-ais")
            values.append(_log_mean(weights))
            effective.append(_effective(weights))
            accepted.append(torch.stack(path.accepted).mean() if path.accepted else torch.tensor(math.nan))
        settings |= {
            "effective_chains": round(torch.cat(effective).mean().item(), 2),
            "acceptance_reached": round(torch.stack(accepted).mean().item(), 3) if len(self.betas) > 2 else None,
        }
        scaled = isinstance(subject.model, Decoder)
        yield from findings(
            subject, "log_likelihood", "decoder-ais", torch.cat(values), unit_interval=scaled, **settings
        )
        if self.simulated:
            mean, error = mean_and_error(self.gap(subject, observation))
            yield Finding("ais_gap", "decoder-ais", mean, error, "nats", self.simulated, settings)

    def examples(self, subject: Subject, split: str | None, limit: int) -> Tensor:
        """At most `limit` examples of a split.

        Raises:
            UsageError: bits are modelled and the examples are grey.
        """
        x = subject.examples(split, limit)
        require_support(subject, x)
        model = subject.model
        if not isinstance(model, LatentVariable) and isinstance(model, Decoder) and self._bits(model):
            require_bits(subject, x)
        return x

    def observe(self, subject: Subject) -> tuple[Observation, dict[str, Any]]:
        """p(x|z), and what a row must say of it."""
        model = subject.model
        if isinstance(model, LatentVariable):
            return own(model), {"observed": "p(x|z) of the model"}
        assert isinstance(model, Decoder)
        if self._bits(model):
            return bernoulli(model), {"observed": "bernoulli"}
        levels = subject.spec.levels
        settings: dict[str, Any] = {"observed": "gaussian", "sigma": self.sigma}
        if self.sigma is None:
            settings |= self.choose_sigma(subject, model)
        if levels is not None:
            settings["scale"] = "[0, 1]"
        return gaussian(model, levels, settings["sigma"]), settings

    def choose_sigma(self, subject: Subject, model: Decoder) -> dict[str, Any]:
        """The σ of the grid with the largest mean log-likelihood of validation examples.

        With σ_0 the smallest, N(x; G(z), σ²) ∝ N(x; G(z), σ_0²)^β at β = σ_0²/σ²: the log weights on the way to σ_0
        give the log-likelihoods for all others.
        """
        smallest = self.sigmas[0]
        observation = gaussian(model, subject.spec.levels, smallest)
        wanted = {(smallest / sigma) ** 2: sigma for sigma in self.sigmas}
        betas = sorted({*self.betas, *wanted})
        examples = observation.prepare(self.examples(subject, "validation", self.validation))
        size = examples[0].numel()
        found: dict[float, list[Tensor]] = {sigma: [] for sigma in self.sigmas}
        for part in examples.split(max(1, self.chunk // self.chains)):
            path = self.path(subject, observation, part)
            pairs = list(pairwise(betas))
            steps = subject.track(pairs, len(pairs), "sigma of decoder-ais")
            for beta, weights in zip(betas[1:], anneal(path, path.start(len(part) * self.chains), steps), strict=True):
                if beta in wanted:
                    sigma = wanted[beta]
                    normaliser = math.log(sigma) - beta * math.log(smallest) + 0.5 * (1 - beta) * math.log(2 * math.pi)
                    found[sigma].append(_log_mean(weights.view(-1, self.chains)) - size * normaliser)
        means = [torch.cat(found[sigma]).mean().item() for sigma in self.sigmas]
        best = max(range(len(means)), key=means.__getitem__)
        edge = len(means) > 1 and best in (0, len(means) - 1)  # the best σ may lie beyond
        return {"sigma": self.sigmas[best], "sigma_at_edge": edge, "validation_n": len(examples)}

    def gap(self, subject: Subject, observation: Observation) -> Tensor:
        """Reverse minus forward log-likelihood of examples drawn from the model, (simulated,)."""
        model = subject.model
        assert isinstance(model, LatentVariable | Decoder)
        gaps = []
        for part in torch.arange(self.simulated).split(max(1, self.chunk // self.chains)):
            z = model.prior.sample(torch.Size([len(part)]))
            path = self.path(subject, observation, observation.sample(z))
            forward = self.run(subject, path, path.start(len(part) * self.chains), self.betas, "gap, forward")
            exact = path.state(z.repeat_interleave(self.chains, 0))  # a posterior sample of each example
            backward = self.run(subject, path, exact, self.betas[::-1], "gap, reverse")
            gaps.append(-_log_mean(backward) - _log_mean(forward))
        return torch.cat(gaps)

    def path(self, subject: Subject, observation: Observation, x: Tensor) -> PosteriorPath:
        model = subject.model
        assert isinstance(model, LatentVariable | Decoder)
        return PosteriorPath(model.prior, observation, x, self.chains, self.leapfrog, self.step, self.acceptance)

    def run(self, subject: Subject, path: PosteriorPath, state: Chains, betas: list[float], label: str) -> Tensor:
        """The final log weights, (B, chains)."""
        pairs = list(pairwise(betas))
        *_, weights = anneal(path, state, subject.track(pairs, len(pairs), label))
        return weights.view(-1, self.chains)


def _log_mean(log_weights: Tensor) -> Tensor:
    """log of the mean weight over the last axis, (B, chains) -> (B,)."""
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])


def _effective(log_weights: Tensor) -> Tensor:
    """(Σw)²/Σw² over the last axis, (B, chains) -> (B,)."""
    return torch.exp(2 * torch.logsumexp(log_weights, -1) - torch.logsumexp(2 * log_weights, -1))
