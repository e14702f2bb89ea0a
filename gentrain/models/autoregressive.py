"""What models share that take the elements of x one by one, in an order of their own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal
from torch.nn.functional import softplus

from gentrain.errors import UsageError
from gentrain.models import likelihoods
from gentrain.models.base import Autoregressive, Conditions, Law, StartsFromMean
from gentrain.models.likelihoods import Likelihood


def ordering(name: Literal["raster", "random"], size: int) -> Tensor:
    """Flat indices of the elements, first one first: as they lie in memory, or drawn from torch's generator."""
    return torch.arange(size) if name == "raster" else torch.randperm(size)


class GaussianMixtureLikelihood(Likelihood):
    """x real; raw = the logit, mean and log-scale of each of M Gaussians, 3 M numbers an element.

    The outputs of a mixture density network (Bishop 1994), as Uria et al. (2013, arXiv:1306.0186) have them. Scales
    stay above exp(-7), as those of `GaussianLikelihood`: the density of what never varies has no upper bound.
    """

    support = "real"
    floor = likelihoods.GaussianLikelihood.floor

    def __init__(self, shape: tuple[int, ...], components: int):
        super().__init__(shape, 3 * components)
        self.components = components
        self.start_from_mean(torch.zeros(shape))

    def elements(self, raw: Tensor) -> Distribution:
        logits, mean, log_scale = raw.movedim(1, -1).chunk(3, -1)
        scale = torch.exp(self.floor + softplus(log_scale - self.floor))
        weights = Categorical(logits=logits, validate_args=False)
        return MixtureSameFamily(weights, Normal(mean, scale, validate_args=False), validate_args=False)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        """Means around `mean`, a standard deviation of the start apart at most: equal ones would never part."""
        offsets = torch.linspace(-1, 1, self.components) if self.components > 1 else torch.zeros(1)
        self.bias.view(3, self.components, -1)[1] = mean.flatten() + offsets.to(mean)[:, None]


def choose_likelihood(name: str, shape: tuple[int, ...], levels: int | None, components: int | None) -> Likelihood:
    """The likelihood of an element given others; `auto` goes by the data.

    auto: reals are gaussian_mixture; two levels, or one channel (grey images, binarized), bernoulli; else categorical.

    Args:
        components: of a gaussian_mixture; None is 10.

    Raises:
        UsageError: data without levels and a likelihood over levels, or bits; components of what is no mixture.
    """
    if name == "auto" and levels is None:
        name = "gaussian_mixture"
    elif name == "auto":
        name = "bernoulli" if levels == 2 or shape[0] == 1 else "categorical"
    if name == "gaussian_mixture":
        return GaussianMixtureLikelihood(shape, components or 10)
    if components is not None:
        raise UsageError(f"model.components={components} is for model.likelihood=gaussian_mixture, not {name}")
    return likelihoods.choose(name, shape, levels)


def log_prob(likelihood: Likelihood, parameters: Tensor, x: Tensor) -> Tensor:
    """log p(x), (B,), from the parameters of its conditionals (B, D, P), output biases included."""
    raw = parameters.transpose(1, 2).unflatten(2, likelihood.shape)
    return likelihood.independent(likelihood.elements(raw)).log_prob(x)


def first(order: Tensor, known: Tensor) -> bool:
    """Whether in every example the elements that are `known` (B, *shape) come before all others in the order (D,).

    >>> first(torch.tensor([1, 0, 2]), torch.tensor([[False, True, False]]))
    True
    """
    placed = known.flatten(1)[:, order]
    return not bool((placed[:, 1:] & ~placed[:, :-1]).any())


def law(order: Tensor, known: Tensor) -> Law:
    """What completion in this order follows where so much is known."""
    return "exact" if first(order, known) else "approximate"


def require_first(model: Conditions, known: Tensor) -> None:
    """Raises UsageError unless the model completes exactly what is missing where so much is known."""
    if model.completion(known) != "exact":
        raise UsageError(
            f"{type(model).__name__} knows p(missing | known) only where the known elements come first in its order"
        )


def missing_log_prob(likelihood: Likelihood, parameters: Tensor, x: Tensor, known: Tensor) -> Tensor:
    """As `log_prob`, of the elements alone that aren't known, (B,)."""
    elements = likelihood.elements(parameters.transpose(1, 2).unflatten(2, likelihood.shape)).log_prob(x)
    return elements.masked_fill(known, 0).flatten(1).sum(1)


def nothing_known(model: Autoregressive, n: int) -> tuple[Tensor, Tensor]:
    """`x` and `known` of n examples of which nothing is known, as `complete` takes them."""
    dtype = torch.int64 if model.support == "levels" else torch.float32
    x = torch.zeros(n, *model.shape, dtype=dtype, device=model.device)
    return x, torch.zeros_like(x, dtype=torch.bool)


@torch.no_grad()
def draw(
    likelihood: Likelihood,
    x: Tensor,
    known: Tensor,
    order: Tensor,
    raw_at: Callable[[int], Tensor],
    feed: Callable[[int, Tensor], None],
) -> Tensor:
    """x (B, *shape) where `known`; elsewhere drawn element by element, each given all those before it in its order.

    Args:
        order: of each example's elements, (B, D).
        raw_at: parameters (B, P) of the elements at place i, without output biases, given what was fed.
        feed: takes the elements at place i, (B,), as network input, once they are known or drawn.
    """
    drawn, known = x.flatten(1).clone(), known.flatten(1)
    bias = likelihood.bias.view(likelihood.per_element, -1)
    for i, d in enumerate(order.t()[:, :, None]):
        elements = likelihood.elements((raw_at(i) + bias[:, d[:, 0]].t())[..., None])
        value = torch.where(known.gather(1, d), drawn.gather(1, d), elements.sample().to(drawn.dtype))
        drawn.scatter_(1, d, value)
        feed(i, likelihood.network_input(value[:, 0]))
    return drawn.view_as(x)


class Ancestral(Autoregressive, Conditions, StartsFromMean):
    """p(x) = Π_i p(x_o(i) | x_o(<i)), each factor an element of `likelihood`; sampled element by element.

    A class gives the raw parameters of all conditionals at once (`raw`), for learning, and one by one from a state that
    takes in each element as it becomes known (`start`, `raw_at`, `feed`), for sampling. To these, elements are already
    in the order: place i of theirs is element o(i) of x.

    Args:
        shape: of one example.
        likelihood: of one element given those before it.
        order: flat indices of the elements, first one first, (D,). Kept with the weights.
    """

    ordering: Tensor

    def __init__(self, shape: tuple[int, ...], likelihood: Likelihood, order: Tensor):
        super().__init__()
        self.shape, self.likelihood = tuple(shape), likelihood
        self.support = likelihood.support
        self.register_buffer("ordering", order)

    @property
    def order(self) -> Tensor:
        return self.ordering

    @property
    def size(self) -> int:
        """D, the number of elements."""
        return math.prod(self.shape)

    @abstractmethod
    def raw(self, u: Tensor) -> Tensor:
        """`conditionals` in the order and without the output biases, (B, D, P), from u (B, D), x as network input."""

    @abstractmethod
    def start(self, n: int) -> Tensor:
        """The state in which nothing is known of n examples, leading axis n."""

    @abstractmethod
    def raw_at(self, state: Tensor, i: int) -> Tensor:
        """`raw` at place i given what the state has been fed, (n, P)."""

    @abstractmethod
    def feed(self, state: Tensor, i: int, value: Tensor) -> None:
        """Let the state know the element at place i of each example, as network input, (n,). In place."""

    def conditionals(self, x: Tensor) -> Tensor:
        u = self.likelihood.network_input(x).flatten(1)[:, self.order]
        bias = self.likelihood.bias.view(-1, self.size).t()
        return self.raw(u)[:, self.order.argsort()] + bias

    def log_prob(self, x: Tensor) -> Tensor:
        return log_prob(self.likelihood, self.conditionals(x), x)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.complete(*nothing_known(self, n))

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """Draw each missing element given all that come before it in the order, known or drawn.

        That is a draw from p(missing | known) where the known elements come first in the order; where some come later,
        what is drawn before them knows nothing of them.
        """
        state, order = self.start(len(x)), self.order.expand(len(x), -1)
        return draw(self.likelihood, x, known, order, partial(self.raw_at, state), partial(self.feed, state))

    def completion(self, known: Tensor) -> Law:
        return law(self.order, known)

    def log_conditional(self, x: Tensor, known: Tensor) -> Tensor:
        require_first(self, known)
        return missing_log_prob(self.likelihood, self.conditionals(x), x, known)

    def start_from_mean(self, mean: Tensor) -> None:
        self.likelihood.start_from_mean(mean)
