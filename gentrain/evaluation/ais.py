"""Annealed importance sampling (Neal 2001, Stat. Comput. 11:125): log Z of an energy model from both sides.

Forward from a tractable base, log Ẑ lies below log Z in expectation, so the likelihood looks too good; backwards from
samples of the model it lies above. Where the two meet, the number can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Estimator, Finding, Subject
from gentrain.evaluation.likelihood import findings, require_support
from gentrain.models.energies import Annealed, Enumerable, TemperedPath
from gentrain.types import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt

State = TypeVar("State")

MURRAY = ((0.5, 500), (0.9, 4000), (1.0, 10_000))
"""The 14,500 steps of Salakhutdinov & Murray 2008: β = 0:1/1000:0.5, 0.5:1/10000:0.9, 0.9:1/100000:1."""


def betas(schedule: Sequence[tuple[float, int]]) -> list[float]:
    """β from 0 to 1 by segments (end, steps), evenly spaced within each.

    Raises:
        UsageError: the ends don't rise to 1.

    >>> betas([(0.5, 1), (1.0, 2)])
    [0.0, 0.5, 0.75, 1.0]
    """
    ends = [end for end, _ in schedule]
    if not ends or ends[-1] != 1 or any(b <= a for a, b in pairwise([0.0, *ends])):
        raise UsageError(
            f"schedule={[list(s) for s in schedule]}: the first numbers must rise to 1, e.g. [[1.0, 1000]]"
        )
    values, start = [0.0], 0.0
    for end, steps in schedule:
        values += [start + (end - start) * i / steps for i in range(1, steps)] + [end]
        start = end
    return values


def anneal(path: TemperedPath[State], state: State, steps: Iterable[tuple[float, float]]) -> Iterator[Tensor]:
    """The log weights (n,) of `state`'s chains, float64, after each of `steps`, pairs of successive β.

    For pairs that rise from 0 to 1 and a state of the base, the mean weight is Z₁/Z₀ in expectation; for pairs that
    fall from 1 to 0 and a state of the model, it is Z₀/Z₁. A weight takes log p*_after - log p*_before where its chain
    is; then, unless that was the last, the chain moves at `after`.
    """
    total: Tensor | None = None
    for before, after in steps:
        if total is not None:
            state = path.transition(state, before)
        step = path.log_prob(state, after) - path.log_prob(state, before)
        total = step if total is None else total + step
        yield total


@dataclass(frozen=True)
class Mean:
    """log of a mean of weights with its ±3σ interval, and the effective sample size (Σw)²/Σw² of the weights.

    `low` is None where the interval reaches 0, whose logarithm is -∞. `relative` is σ/mean.
    """

    value: float
    low: float | None
    high: float
    relative: float
    effective: float


def log_mean(log_weights: Tensor) -> Mean:
    """log(1/M Σ w) of (M,) log weights; log(ŵ ± 3σ̂) with σ̂ = std(w)/√M, all relative to the largest weight.

    >>> m = log_mean(torch.tensor([1000.0, 1000.0]))
    >>> m.value, m.low, m.high, m.effective
    (1000.0, 1000.0, 1000.0, 2.0)
    """
    log_weights = log_weights.double().cpu()
    top = log_weights.max()
    w = torch.exp(log_weights - top)
    mean = w.mean()
    relative = (w.std() / mean).item() / math.sqrt(len(w)) if len(w) > 1 else 0.0
    value = (top + mean.log()).item()
    low = value + math.log1p(-3 * relative) if 3 * relative < 1 else None
    effective = (w.sum().square() / w.square().sum()).item()
    return Mean(value, low, value + math.log1p(3 * relative), relative, effective)


class Annealing(Estimator):
    """What all that anneal take."""

    def __init__(
        self,
        chains: PositiveInt = 100,
        schedule: Sequence[tuple[Fraction, PositiveInt]] = MURRAY,
        smoothing: NonNegativeFloat = 0.05,
        chunk: PositiveInt = 1000,
    ):
        self.chains, self.schedule, self.smoothing, self.chunk = chains, schedule, smoothing, chunk
        self.betas = betas(schedule)

    def forward(self, subject: Subject, path: TemperedPath[Any]) -> Partition:
        """log Ẑ of the path's end, from draws of its base."""
        states = (path.start(n) for n in sizes(self.chains, self.chunk))
        w = log_mean(run(subject, path, states, self.betas, "ais"))
        base = path.log_partition
        return Partition(base + w.value, None if w.low is None else base + w.low, base + w.high, w)

    def backward(self, subject: Subject, path: TemperedPath[State], states: Iterable[State]) -> Partition:
        """log Ẑ from the path's end to its base, from `states` at the end, which come in parts."""
        w = log_mean(run(subject, path, states, self.betas[::-1], "reverse-ais"))
        base = path.log_partition
        return Partition(base - w.value, base - w.high, None if w.low is None else base - w.low, w)


class AIS(Annealing):
    """log Z by annealing from the base-rate model, and log p(x) = -F(x) - log Ẑ (Salakhutdinov & Murray 2008).

    Ẑ is unbiased, so log Ẑ is too low and log p(x) too high in expectation, more so the fewer chains and steps.
    The rows' standard errors: of the likelihood over examples alone, of log Ẑ over chains, σ̂/Ẑ; `log_partition_low` and
    `_high` are log(Ẑ ± 3σ̂), the lower one null where that reaches zero.

    Args:
        chains: M, independent runs. chunk: of them at a time.
        schedule: [end, steps] of each segment of β; the last ends at 1.
        smoothing: of the base rates, towards 1, as in `RBM.tempered`.
    """

    needs = (Annealed,)

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        z = self.forward(subject, tempered(subject, self.smoothing))
        yield from report(subject, "ais", z, self.chains, self.betas)


class ReverseAIS(Annealing):
    """The same from the other end: chains start at samples of the model and anneal to the base-rate model.

    E[w] = Z_A/Z there, so log Z_A - log(mean w) is too high and log p(x) too low in expectation (as in Burda et al.
    2015, arXiv:1412.8566), provided the starts are samples of the model. They are exact if the smaller layer has at
    most `exact` units; otherwise chains begin at random training examples and take `burn_in` Gibbs steps. The rows say
    which in `starts`: what a chain that doesn't mix starts from makes the second kind a hint, not a bound.

    Args:
        chains: M, independent runs. chunk: of them at a time.
        schedule: as of AIS, run backwards.
        smoothing: of the base rates, towards 1.
        burn_in: Gibbs steps from training examples to a start.
        exact: starts are drawn by enumeration where 2^exact states are enough.
    """

    needs = (Annealed,)

    def __init__(
        self,
        chains: PositiveInt = 100,
        schedule: Sequence[tuple[Fraction, PositiveInt]] = MURRAY,
        smoothing: NonNegativeFloat = 0.05,
        burn_in: NonNegativeInt = 1000,
        exact: NonNegativeInt = 25,
        chunk: PositiveInt = 1000,
    ):
        super().__init__(chains, schedule, smoothing, chunk)
        self.burn_in, self.exact = burn_in, exact

    def __call__(self, subject: Subject) -> Iterator[Finding]:
        path = tempered(subject, self.smoothing)
        x, how = self.starts(subject)
        states = (path.state(part) for part in x.split(self.chunk))
        found = self.backward(subject, path, states)
        yield from report(subject, "reverse-ais", found, self.chains, self.betas, starts=how)

    def starts(self, subject: Subject) -> tuple[Tensor, str]:
        """Samples of the model, (chains, *shape), and how they were made."""
        model = subject.model
        assert isinstance(model, Annealed)
        if isinstance(model, Enumerable) and model.enumeration_bits <= self.exact:
            return model.exact_sample(self.chains), "exact"
        pool = subject.examples("train", max(self.chains, 10_000))
        chosen = torch.randperm(len(pool)) if len(pool) >= self.chains else torch.randint(len(pool), (self.chains,))
        x = pool[chosen[: self.chains].to(pool.device)]
        for _ in subject.track(range(self.burn_in), self.burn_in, "burn-in of reverse-ais"):
            x = model.gibbs(x, 1)
        return x, f"training examples, {self.burn_in} Gibbs steps"


@dataclass(frozen=True)
class Partition:
    """log Ẑ with its interval, whose open end is None, and the weights' mean that it came from."""

    value: float
    low: float | None
    high: float | None
    weights: Mean


def tempered(subject: Subject, smoothing: float) -> TemperedPath[Any]:
    """The model's path from the base rates of the training split."""
    assert isinstance(subject.model, Annealed)
    return subject.model.tempered(subject.pipeline.mean(), smoothing)


def sizes(total: int, chunk: int) -> list[int]:
    """Parts of at most `chunk`.

    >>> sizes(5, 2)
    [2, 2, 1]
    """
    return [min(chunk, total - start) for start in range(0, total, chunk)]


def run(
    subject: Subject, path: TemperedPath[State], states: Iterable[State], betas: Sequence[float], label: str
) -> Tensor:
    """The final log weights of all chains, which come in parts."""
    pairs = list(pairwise(betas))
    found = []
    for state in states:
        *_, weights = anneal(path, state, subject.track(pairs, len(pairs), label))
        found.append(weights)
    return torch.cat(found)


def found_on_the_way(z: Partition, betas: Sequence[float], **settings: Any) -> dict[str, Any]:
    """What belongs to a number that log Ẑ went into."""
    return settings | {
        "log_partition": z.value,
        "log_partition_low": z.low,
        "log_partition_high": z.high,
        "steps": len(betas) - 1,
        "effective_chains": round(z.weights.effective, 2),
    }


def report(
    subject: Subject, kind: str, z: Partition, chains: int, betas: Sequence[float], **settings: Any
) -> Iterator[Finding]:
    """log p of the split given log Ẑ, and log Ẑ itself."""
    model = subject.model
    assert isinstance(model, Annealed)
    settings = found_on_the_way(z, betas, **settings)
    values = []
    for batch in subject.batches():
        require_support(subject, batch.x)
        values.append(-model.free_energy(batch.x).cpu().double() - z.value)
    yield from findings(subject, "log_likelihood", kind, torch.cat(values), **settings)
    yield Finding("log_partition", kind, z.value, z.weights.relative, "nats", chains, settings)
