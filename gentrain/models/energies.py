"""What models that are known up to a factor can do, as base classes: energies, their chains, paths to log Z.

As in `gentrain.models.base`, every `x` is shaped (B, *shape), per-example results are (B,), and energies are in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from gentrain import noise
from gentrain.models.base import Generative

State = TypeVar("State")


class Unnormalised(Generative):
    """p(x) ∝ exp(-F(x)) with a free energy F; the normaliser need not be known. How it is sampled is another matter."""

    @abstractmethod
    def free_energy(self, x: Tensor) -> Tensor:
        """F(x) in nats, (B,): the energy E(x) itself or, with hidden units, -log Σ_h exp(-E(x, h))."""


class MarkovChain(Generative):
    """Is sampled by a Markov chain. Its states may hold more than an example, hidden layers for instance."""

    @abstractmethod
    def chain_at(self, x: Tensor) -> Tensor:
        """States (n, …) of chains that are at examples (n, *shape)."""

    @abstractmethod
    def chain_step(self, state: Tensor, k: int) -> Tensor:
        """The states k full steps later, without gradient."""

    @abstractmethod
    def chain_example(self, state: Tensor) -> Tensor:
        """The examples (n, *shape) of states."""


class EnergyBased(Unnormalised, MarkovChain):
    """p(x) ∝ exp(-F(x)) and a Markov chain of that distribution, whose states are examples.

    A step of the chain keeps p(x): exactly, as Gibbs sampling in blocks or site by site and Metropolis-adjusted
    Langevin dynamics do, or in the limit of small steps, as Langevin dynamics without that does. Which, says the class.
    """

    @abstractmethod
    def gibbs(self, x: Tensor, k: int) -> Tensor:
        """Run k full steps of the chain from x; the new x, without gradient."""

    def chain_at(self, x: Tensor) -> Tensor:
        return x

    def chain_step(self, state: Tensor, k: int) -> Tensor:
        return self.gibbs(state, k)

    def chain_example(self, state: Tensor) -> Tensor:
        return state

    def start(self, n: int) -> Tensor:
        """States (n, *shape) at which chains may begin: fair coin tosses for bits, N(0, 1) for reals, in training
        from `gentrain.noise`."""
        if self.support == "binary":
            return noise.bernoulli(torch.full((n, *self.shape), 0.5, device=self.device))
        return noise.normal(n, *self.shape, device=self.device)


class Harmonium(EnergyBased):
    """An energy model in two layers: units of one are independent given the other (Welling et al. 2005).

    What contrastive divergence needs of an RBM, binary or Gaussian: both halves of a Gibbs step and ∂E in closed form.
    The visible units are those of x, unless a class has others, for labels say: then `units` gives their states, and
    the methods below take and return these where they say x.
    """

    def units(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The states of the visible units for examples (B, *shape) and, where some are for labels, their labels (B,).

        Raises:
            UsageError: some units are for labels, and there are none.
        """
        return x

    def examples(self, units: Tensor) -> Tensor:
        """The examples (B, *shape) among the visible units' states."""
        return units

    @abstractmethod
    def hidden_probability(self, x: Tensor) -> Tensor:
        """E[h | x], (B, hidden)."""

    @abstractmethod
    def sample_hidden(self, probability: Tensor) -> Tensor:
        """h given E[h | x], (B, hidden)."""

    @abstractmethod
    def sample_visible(self, h: Tensor) -> Tensor:
        """x ~ p(x | h), (B, *shape)."""

    @abstractmethod
    def energy_gradient(self, data: tuple[Tensor, Tensor], chain: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Parameter name -> mean of ∂E(x, h) over the data's pairs (x, h) minus that over the chain's.

        Linear in h, so that h may be its expectation. The two may differ in number.
        """


class Tempers(Harmonium):
    """A harmonium that can be run at inverse temperatures β: p_β(x, h) ∝ exp(-β E(x, h))."""

    @abstractmethod
    def step_at(self, h: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x ~ p_β(x | h), h' ~ p_β(h' | x) and E(x, h') in nats, (B,); β is (B, 1), of each chain its own."""


class Enumerable(EnergyBased):
    """An energy model whose partition function can be summed exactly where it is small enough."""

    limit: ClassVar[int] = 26

    @property
    @abstractmethod
    def enumeration_bits(self) -> int:
        """log2 of the number of states that `log_partition` sums over."""

    @property
    def enumerable(self) -> bool:
        return self.enumeration_bits <= self.limit

    @abstractmethod
    def log_partition(self) -> Tensor:
        """log Z in nats, float64. Raises UsageError unless `enumerable`."""

    @abstractmethod
    def exact_sample(self, n: int) -> Tensor:
        """n independent examples by enumeration, without a Markov chain. Raises UsageError unless `enumerable`."""

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) = -F(x) - log Z in nats, (B,), exact and without gradient. Raises UsageError unless `enumerable`."""
        return -self.free_energy(x) - self.log_partition().to(x.device, torch.float32)


class TemperedPath(ABC, Generic[State]):
    """Unnormalised distributions p*_β(x), 0 <= β <= 1, from a base whose normaliser is known to a model (Neal 2001).

    What annealed importance sampling needs. A state stands for n examples and whatever a path wants to keep of them
    from one β to the next, statistics that are dear to compute for instance. `start` and `state` make it, `transition`
    moves it.

    Attributes:
        log_partition: log of the normaliser at β = 0, in nats.
        categories: of the last so many units of a state one is on, a label; 0 if states have no such group.
    """

    log_partition: float
    categories: int = 0

    @abstractmethod
    def start(self, n: int) -> State:
        """n independent draws from the base."""

    @abstractmethod
    def state(self, x: Tensor) -> State:
        """The state of given examples, (n, *shape)."""

    @abstractmethod
    def example(self, state: State) -> Tensor:
        """The examples, (n, *shape)."""

    @abstractmethod
    def log_prob(self, state: State, beta: float) -> Tensor:
        """log p*_β in nats, (n,), float64."""

    @abstractmethod
    def transition(self, state: State, beta: float) -> State:
        """One step of a Markov chain in detailed balance with p_β: so the same step serves both directions."""


class Annealed(EnergyBased):
    """An energy model that a path of tempered distributions joins to one without interactions."""

    @abstractmethod
    def tempered(self, mean: Tensor, smoothing: float = 0.05) -> TemperedPath:
        """The path to log p* = -F from the factorial model of a mean example, (*shape).

        The nearer the base to the data the shorter the way; `smoothing` keeps it wide enough to cover the model.
        """


class Bounded(Generative):
    """p(x) = p*(x)/Z where log p*(x) is only known from below and Z is annealed to: deep Boltzmann and belief networks.

    The path to Z is over states of some layer, not over x: of the units between which the machine's couplings are.

    Attributes:
        bound_kind: of the numbers that come of it, as `dbn-bound`.
        bound_draws: whether `log_bound` takes draws, and differs from time to time.
    """

    bound_kind: ClassVar[str]
    bound_draws: ClassVar[bool] = True

    @abstractmethod
    def log_bound(self, x: Tensor) -> Tensor:
        """A lower bound of log p*(x) in nats, (B,); if it takes draws, one whose mean over them is such a bound."""

    @abstractmethod
    def tempered_units(self, x: Tensor) -> Tensor:
        """E[s | x] of the units s that the path is over, (B, units): their mean over data is where the path begins."""

    @abstractmethod
    def tempered(self, mean: Tensor, smoothing: float = 0.05) -> TemperedPath:
        """The path to the machine from the factorial one whose units s have this mean, (units,)."""

    @abstractmethod
    def log_partition(self) -> Tensor | None:
        """log Z in nats, a float64 scalar, where it can be summed exactly; None where that takes too many terms."""


class PseudoLikelihood(Generative):
    """Knows every bit's conditional given the others."""

    @abstractmethod
    def pseudo_log_likelihood(self, x: Tensor, bits: int | None = None) -> Tensor:
        """Σ_i log p(x_i | the rest) in nats, (B,), over all bits, or estimated without bias from `bits` random ones."""
