"""What a model can do, as base classes: a method is there or the class does not have it.

Tasks, objectives and estimators ask `isinstance(model, Density)` and nothing else. Every `x` is shaped (B, *shape)
and lives in `model.support`; every per-example result is shaped (B,); densities are in nats. What energies, chains and
annealed paths have stands in `gentrain.models.energies`, what games need in `critics`, of two domains in `domains`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.types import Support


class Generative(nn.Module, ABC):
    """A distribution over x that can be sampled. `shape` and `support` say what x is.

    Attributes:
        sampling: arguments of the constructor that say how it draws, and that no weight depends on: `load` and `sample`
            may give others than those of the training.
        models_levels: whether p(x) is a probability of the stored levels though the support is continuous.
    """

    shape: tuple[int, ...]
    support: Support
    sampling: ClassVar[tuple[str, ...]] = ()
    models_levels: bool = False

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Draw n examples, (n, *shape), in `support`."""

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device


class Density(Generative):
    """A normalised density or mass function that can be evaluated exactly."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B,)."""


class Autoregressive(Density):
    """p(x) = Π_i p(x_o(i) | x_o(1), …, x_o(i-1)) for an order o of the D elements of x, flattened.

    A model that averages over several orders gives its first here.
    """

    @property
    @abstractmethod
    def order(self) -> Tensor:
        """o: flat indices of the elements, first one first, (D,), int64."""

    @abstractmethod
    def conditionals(self, x: Tensor) -> Tensor:
        """Parameters of every element's conditional, (B, D, P).

        Those of element o(i), at [:, o(i)], are functions of x_o(1), …, x_o(i-1) alone.
        """


class OrderAgnostic(Density):
    """Knows every element's conditional given any set of others, and so a p(x) for each order (Uria et al. 2014)."""

    @abstractmethod
    def log_conditionals(self, x: Tensor, known: Tensor) -> Tensor:
        """log p(x_d | x where `known`) in nats for every element d, (B, *shape); `known` is (B, *shape), of bools."""


class Conditional(ABC):
    """p(x | y) for a label y: what the model's other base classes promise takes y (B,) as a further keyword argument.

    So a conditional density has `log_prob(x, y=…)` and `sample(n, y=…)`, a conditional VAE `encode(x, y=…)` and
    `decode(z, y=…)`. Without y, `sample` draws the labels evenly and a density's `log_prob` is that of the even
    mixture, log 1/K Σ_y p(x|y), at K times the work; a model of p(x, y) does both by its own p(y), and its
    `free_energy(x, y=…)` is that of x and y together.

    Attributes:
        classes: K, the number of labels, or None of an instance that was built to know nothing of labels.
    """

    classes: int | None


def given(model: object, y: Tensor | None) -> dict[str, Tensor]:
    """The keyword arguments that put labels y (B,) to a conditional model; none for a model that knows no labels.

    Raises:
        UsageError: the model is conditional and there are no labels.
    """
    if not (isinstance(model, Conditional) and model.classes):
        return {}
    if y is None:
        raise UsageError(f"{type(model).__name__} is conditional and these data have no labels: use data with labels")
    return {"y": y}


def evenly(model: object, n: int) -> dict[str, Tensor]:
    """The keyword arguments that put n labels, drawn evenly, to a conditional model; none for others."""
    if not (isinstance(model, Conditional) and model.classes):
        return {}
    device = model.device if isinstance(model, Generative) else None
    return {"y": torch.randint(model.classes, (n,), device=device)}


def each_label(model: object, n: int) -> tuple[dict[str, Tensor], int | None]:
    """The keyword arguments that put every label in turn to a conditional model, as many of each and about n together,
    and how many of each; for others none, and None."""
    if not (isinstance(model, Conditional) and model.classes):
        return {}, None
    each = max(1, n // model.classes)
    device = model.device if isinstance(model, Generative) else None
    return {"y": torch.arange(model.classes, device=device).repeat_interleave(each)}, each


def kind_given(model: object, kind: str) -> str:
    """The kind of a number of p(x|y), which is never ranked with one of p(x): "exact" becomes "exact given y"."""
    return f"{kind} given y" if isinstance(model, Conditional) and model.classes else kind


class Classifies(ABC):
    """Knows the probabilities of an example's label, p(y|x), by itself."""

    @property
    def knows_labels(self) -> bool:
        """Whether this instance does: one that was built, or trained, without labels doesn't."""
        return True

    @abstractmethod
    def log_class(self, x: Tensor) -> Tensor:
        """log p(y | x) in nats for every label, (B, K)."""


class Categorises(ABC):
    """Sorts examples into categories of its own making, whose numbers mean nothing to anybody else: a mixture's
    components, say. Which label a category goes with is for `clusters` to find."""

    @property
    @abstractmethod
    def categories(self) -> int:
        """K; 0 of an instance that was built without any."""

    @abstractmethod
    def log_category(self, x: Tensor) -> Tensor:
        """The log of the probability that x belongs to each category, in nats, (B, K)."""


Law = Literal["exact", "chain", "approximate"]
"""What completions follow: p(missing | known); that in the limit, by a Markov chain that keeps it; or what is near."""


class Completes(ABC):
    """Fills in the missing part of an example."""

    @abstractmethod
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """x (B, *shape) where `known` (B, *shape), of bools, is true; elsewhere drawn given what is known.

        What is drawn from, p(missing | known) or an approximation of it, is said by the class and by `completion`.
        Values of x that aren't known are not read.
        """

    def completion(self, known: Tensor) -> Law:
        """What the completions of examples of which so much is `known` (B, *shape) follow."""
        return "approximate"


Onto = Callable[[Tensor, Tensor], Tensor]
"""(z, x) -> z + A⁺ (A x - A z), all (B, *shape): the nearest to z of which a linear map A shows what it shows of x."""


class Restores(Completes):
    """Fills in what any linear map y = A x leaves open, of which hiding elements is one."""

    @abstractmethod
    def restore(self, x: Tensor, onto: Onto) -> Tensor:
        """Examples (B, *shape) in `support`, drawn given what A shows of x (B, *shape): nothing else of x is read."""

    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        return self.restore(torch.where(known, x, torch.zeros_like(x)), lambda z, x: torch.where(known, x, z))


class Conditions(Completes):
    """Knows the density of its completions too, where they are exact."""

    @abstractmethod
    def log_conditional(self, x: Tensor, known: Tensor) -> Tensor:
        """log p(missing | known) in nats, (B,), of examples (B, *shape), `known` as of `complete`.

        Raises:
            UsageError: `completion(known)` isn't exact.
        """


class Accumulates(Generative):
    """Learns by taking examples in, without gradients: counts, sums, or the examples themselves, in its buffers."""

    @abstractmethod
    def accumulate(self, x: Tensor) -> None:
        """Take in a batch (B, *shape), in place. The order of examples and batches doesn't matter."""


class ExpectationMaximisation(Density):
    """A density with a hidden cause z whose posterior p(z|x) is exact: it learns by EM (Dempster et al. 1977).

    What its M-step needs of examples are the statistics S = Σ_x E[s(x, z) | x]. They stand in the model's buffers, as
    sums over examples, in whatever form keeps them accurate.
    """

    @abstractmethod
    def start(self, x: Tensor) -> None:
        """Set the parameters from some examples (B, *shape), in place: where EM begins.

        Raises:
            UsageError: these are too few.
        """

    @abstractmethod
    def expect(self, x: Tensor, keep: float = 1.0) -> Tensor:
        """The E-step: S <- keep S + Σ_x E[s(x, z) | x], in place; log p(x) on the way, in nats, (B,)."""

    @abstractmethod
    def maximise(self) -> None:
        """The M-step: the parameters that are likeliest given S, in place. Only ratios of S count, but for a prior."""


class Reparametrised(Density):
    """A density whose samples are a differentiable function of noise: E_p[f(x)] has gradients by them."""

    @abstractmethod
    def rsample(self, n: int) -> Tensor:
        """n draws (n, *shape), with gradients to the parameters; in training the noise is `gentrain.noise`'s."""


class LatentVariable(Generative):
    """p(x) = ∫ p(x|z) p(z) dz with an approximate posterior q(z|x)."""

    @property
    @abstractmethod
    def prior(self) -> Distribution:
        """p(z); its event shape is that of one code."""

    @abstractmethod
    def encode(self, x: Tensor) -> Distribution:
        """q(z|x), batch shape (B,), event shape of one code."""

    @abstractmethod
    def decode(self, z: Tensor) -> Distribution:
        """p(x|z), batch shape (B,), event shape `shape`."""


class Decoder(Generative):
    """x = G(z), z ~ prior: a deterministic map from a simple distribution."""

    @property
    @abstractmethod
    def prior(self) -> Distribution:
        """p(z); its event shape is that of one code."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """G(z), (B, *shape) in `support`."""


class Factors(Decoder):
    """A decoder some elements of whose code stand for something each: a category, and numbers that walk a scale."""

    @property
    @abstractmethod
    def factors(self) -> Sequence[int]:
        """The code's elements that are such numbers, even between about -√3 and √3 standard deviations."""

    @abstractmethod
    def starts(self) -> Tensor:
        """Codes (K, d) to walk from, the numbers and all noise at the prior's mean: one for each category, or one."""


class Codes(ABC):
    """Gives a vector for each example: probes, retrieval and pictures of the code space build on it."""

    @abstractmethod
    def codes(self, x: Tensor) -> Tensor:
        """(B, d)."""


class Encodes(Codes):
    """Codes that the model's own `decode` takes: x -> codes(x) -> decode leads back to about x."""


class Invertible(Density, Decoder, Encodes):
    """x <-> z by an invertible map f: log p(x) = log p(z) + log |det dz/dx| with z = f(x), a normalizing flow.

    So z is the code, and `prior` its density. `decode` gives x in `support`, into which it brings what rounding, or a
    density that reaches a little beyond, puts outside.
    """

    @abstractmethod
    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z = f(x), (B, D), and log |det dz/dx| in nats, (B,)."""

    @abstractmethod
    def invert(self, z: Tensor) -> Tensor:
        """f⁻¹(z), (B, *shape)."""


class Reconstructs(ABC):
    """Maps x to its reconstruction: the picture of what the model keeps of an example."""

    @abstractmethod
    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, *shape), expected values in `support`."""


class Denoises(ABC):
    """Knows what is behind Gaussian noise, whatever its deviation: that is what it has learned."""

    @abstractmethod
    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x_0 | x_0 + σ N(0, I) = x] for σ > 0 in the unit of `support`, (B, *shape), in `support`."""


class Filters(ABC):
    """Has weight vectors that live in data space and are worth looking at."""

    @abstractmethod
    def filters(self) -> Tensor:
        """(n, *shape)."""


class StartsFromMean(ABC):
    """Begins training at the data's mean: output biases that would otherwise take thousands of steps to find."""

    @abstractmethod
    def start_from_mean(self, mean: Tensor) -> None:
        """Set the biases from the training set's mean example, (*shape), in `support`. Called once before step 0."""


class Standardises(ABC):
    """Sees each element of x in a unit of its own, z = (x - mean)/scale: what is fixed about its steps and widths then
    suits any data. Its densities are of x all the same."""

    @abstractmethod
    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Take up the mean and the standard deviation of the training examples' elements, (*shape), in `support`.

        Called once before step 0; afterwards they stand in the model's buffers.
        """


class TakesReference(ABC):
    """Keeps some training examples, the same throughout, by which its layers go: a reference batch.

    Attributes:
        reference_option: the option that says how many.
    """

    reference_option: ClassVar[str] = "model.reference"

    @property
    @abstractmethod
    def reference_size(self) -> int:
        """How many; 0 of an instance whose layers need none."""

    @abstractmethod
    def take_reference(self, batch: Batch) -> None:
        """Keep so many training examples (R, *shape), with their labels and partners as far as there are any.

        Called once before step 0, if it is more than none; afterwards they stand in the model's buffers.
        """
