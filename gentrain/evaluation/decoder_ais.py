"""log p(x) of a model with a decoder by annealing its latent variables (Wu et al. 2017, arXiv:1611.04273).

A path joins the prior to the posterior of each example, p*_β(z) = p(z) p(x|z)^β, whose normaliser at β = 1 is p(x).
Hamiltonian Monte Carlo moves the chains. How far the estimate may be off shows on data simulated from the model, of
which an exact posterior sample is known: from there the same path runs backwards (bidirectional Monte Carlo, Grosse
et al. 2015, arXiv:1511.02543).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.evaluation.ais import anneal
from gentrain.evaluation.estimator import Estimator, Finding, Subject, mean_and_error
from gentrain.evaluation.inversion import discontinuous
from gentrain.evaluation.likelihood import findings, require_bits, require_support
from gentrain.evaluation.posterior_path import (
    Chains,
    Observation,
    PosteriorPath,
    bernoulli,
    gaussian,
    ladder,
    own,
)
from gentrain.models.base import Conditional, Decoder, LatentVariable
from gentrain.types import NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt

GRID = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)


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
