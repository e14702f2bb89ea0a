"""The masked autoencoder for distribution estimation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from gentrain.errors import UsageError
from gentrain.models.autoregressive import (
    choose_likelihood,
    draw,
    law,
    log_prob,
    missing_log_prob,
    nothing_known,
    ordering,
    require_first,
)
from gentrain.models.base import Autoregressive, Conditions, Filters, Law, StartsFromMean
from gentrain.types import PositiveInt, Shape


class MADE(Autoregressive, Conditions, Filters, StartsFromMean):
    """An autoencoder whose weights are masked such that output d depends on what precedes x_d alone, so that one pass
    gives all conditionals (Germain et al. 2015, arXiv:1502.03509).

    Every hidden unit has a degree m: it sees the elements at places 0…m and units of at most its own degree, and is
    seen by outputs at places above m. With M `masks`, each with degrees of its own and, where the order is random, an
    order of its own, the model is the mixture of the M distributions that its shared weights make with them:

        p(x) = 1/M Σ_m p_m(x)

    an average of the probabilities of whole examples, not of conditionals or logits, which would be no distribution. In
    training mode `log_prob` is log p_m(x) of one mask, the next at each call; in eval mode it is log p(x). `order` and
    `conditionals` are those of the first mask.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        hidden: units of each hidden layer.
        masks: M.
        order: `raster`, or `random`: each mask has its own, kept with the weights as the degrees are.
        direct: whether inputs are also joined to outputs by a masked linear map.
        likelihood: of an element given those before it. `auto` is gaussian_mixture for reals, bernoulli for one channel
            (binarized), else categorical.
        components: Gaussians of a gaussian_mixture; None is 10.

    Raises:
        UsageError: more masks than differ, neither hidden units nor direct connections, a likelihood that the data
            can't have, or `components` of what is no mixture.

    >>> model = MADE((1, 8, 8), levels=17, hidden=[32, 32], masks=2, order="random")
    >>> model.log_prob(torch.zeros(5, 1, 8, 8)).shape, model.sample(3).shape
    (torch.Size([5]), torch.Size([3, 1, 8, 8]))
    """

    orders: Tensor
    degrees: Tensor
    turn: Tensor

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        hidden: Sequence[PositiveInt] = (500,),
        masks: PositiveInt = 1,
        order: Literal["raster", "random"] = "raster",
        direct: bool = True,
        likelihood: Literal[
            "auto", "bernoulli", "categorical", "discretized_logistic", "gaussian", "gaussian_mixture"
        ] = "auto",
        components: PositiveInt | None = None,
    ):
        super().__init__()
        self.shape, self.hidden, size = tuple(shape), list(hidden), math.prod(shape)
        _check(size, self.hidden, masks, order, direct)
        self.likelihood = choose_likelihood(likelihood, self.shape, levels, components)
        self.support = self.likelihood.support
        outputs = self.likelihood.per_element * size
        self.layers = nn.ModuleList(nn.Linear(d_in, d_out) for d_in, d_out in pairwise([size, *self.hidden]))
        self.output = nn.Linear(self.hidden[-1], outputs, bias=False) if self.hidden else None
        self.direct = nn.Linear(size, outputs, bias=False) if direct else None
        if self.direct is not None:
            nn.init.zeros_(self.direct.weight)
        self.register_buffer("orders", torch.stack([ordering(order, size) for _ in range(masks)]))
        self.register_buffer("degrees", torch.stack([_draw_degrees(size, self.hidden) for _ in range(masks)]))
        self.register_buffer("turn", torch.zeros(1, dtype=torch.int64))  # which mask's turn it is in training

    @property
    def order(self) -> Tensor:
        return self.orders[0]

    @property
    def linears(self) -> list[nn.Linear]:
        """The hidden layers."""
        return cast(list[nn.Linear], list(self.layers))

    def masks(self, index: Tensor) -> tuple[list[Tensor], Tensor]:
        """Masks of the layers from input to output, and that of the direct connections; of mask `index` (1,)."""
        places = self.orders.index_select(0, index)[0].argsort()
        degrees = [places, *self.degrees.index_select(0, index)[0].split(self.hidden)]
        layers = [above[:, None] >= below for below, above in pairwise(degrees)]
        parameters = self.likelihood.per_element
        layers.append((places[:, None] > degrees[-1]).repeat(parameters, 1))
        return layers, (places[:, None] > places).repeat(parameters, 1)

    def conditionals(self, x: Tensor) -> Tensor:
        return self.conditionals_of(x, torch.zeros_like(self.turn))

    def conditionals_of(self, x: Tensor, index: Tensor) -> Tensor:
        """`conditionals` of mask `index` (1,)."""
        u = self.likelihood.network_input(x).flatten(1)
        (*masks, last), direct = self.masks(index)
        h, raw = u, self.likelihood.bias
        for layer, mask in zip(self.linears, masks, strict=True):
            h = relu(linear(h, layer.weight * mask, layer.bias))
        if self.output is not None:
            raw = raw + linear(h, self.output.weight * last)
        if self.direct is not None:
            raw = raw + linear(u, self.direct.weight * direct)
        return raw.view(len(x), self.likelihood.per_element, -1).transpose(1, 2)

    def log_prob(self, x: Tensor) -> Tensor:
        if self.training:
            index = self.turn % len(self.orders)
            self.turn += 1
            return log_prob(self.likelihood, self.conditionals_of(x, index), x)
        members = [log_prob(self.likelihood, self.conditionals_of(x, index), x) for index in self._indices()]
        return torch.logsumexp(torch.stack(members), 0) - math.log(len(members))

    def _indices(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.orders), device=self.device).split(1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.complete(*nothing_known(self, n))

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """Draw the missing elements of each example by a mask that is drawn for it, in the order of that mask.

        With one mask and the known elements first in its order that is a draw from p(missing | known); elements known
        that come later don't tell on those drawn before them. With several the mask is drawn without regard to x.
        """
        drawn, chosen = torch.empty_like(x), torch.randint(len(self.orders), (len(x),), device=x.device)
        for index in chosen.unique().tolist():
            rows = chosen == index
            drawn[rows] = self._complete(x[rows], known[rows], index)
        return drawn

    def completion(self, known: Tensor) -> Law:
        return law(self.order, known) if len(self.orders) == 1 else "approximate"

    def log_conditional(self, x: Tensor, known: Tensor) -> Tensor:
        """Of one mask; with several, completions don't follow p(missing | known)."""
        require_first(self, known)
        return missing_log_prob(self.likelihood, self.conditionals(x), x, known)

    def _complete(self, x: Tensor, known: Tensor, index: int) -> Tensor:
        """By one mask, at the cost of one pass.

        A unit of degree m is final as soon as the element at place m is there, and what isn't final is left zero: so
        every unit is computed once, from all of the layer below.
        """
        size = math.prod(self.shape)
        order = self.orders[index]
        final = [_by_degree(degrees, size) for degrees in self.degrees[index].split(self.hidden)]
        u, *h = (torch.zeros(len(x), width, device=x.device) for width in (size, *self.hidden))

        def raw_at(i: int) -> Tensor:
            raw = torch.zeros(len(x), self.likelihood.per_element, device=x.device)
            for weights, below in ((self.output, h[-1] if h else u), (self.direct, u)):
                if weights is not None:
                    raw += linear(below, weights.weight[order[i] :: size])
            return raw

        def feed(i: int, value: Tensor) -> None:
            u[:, order[i]] = value
            for layer, units, below, above in zip(self.linears, final, [u, *h], h, strict=False):
                rows = units[i]
                above[:, rows] = relu(linear(below, layer.weight[rows], layer.bias[rows]))

        return draw(self.likelihood, x, known, order.expand(len(x), -1), raw_at, feed)

    @torch.no_grad()
    def filters(self) -> Tensor:
        """The first layer's weights with the first mask: what each hidden unit, or else each output, looks for."""
        (first, *_), direct = self.masks(torch.zeros_like(self.turn))
        if self.hidden:
            return (self.linears[0].weight * first).view(-1, *self.shape)
        assert self.direct is not None
        return (self.direct.weight * direct).view(-1, *self.shape)

    def start_from_mean(self, mean: Tensor) -> None:
        self.likelihood.start_from_mean(mean)


def _check(size: int, hidden: list[int], masks: int, order: str, direct: bool) -> None:
    if not hidden and not direct:
        raise UsageError(
            "model.hidden=[] with model.direct=false leaves no way from inputs to outputs: give one of them"
        )
    orders = math.factorial(min(size, 20)) if order == "random" else 1
    possible = orders if size <= 2 or not hidden else math.inf  # degrees of three elements and more differ
    if masks > possible:
        remedy = "" if order == "random" else ", or model.order=random"
        raise UsageError(
            f"model.masks={masks}: with model.order={order}, model.hidden={hidden} and {size} elements there are no"
            f" more than {possible}; use model.masks={possible}{remedy}"
        )


def _draw_degrees(size: int, hidden: list[int]) -> Tensor:
    """Degrees of all hidden units, one layer after the other, none below the lowest of the layer before it.

    Such a unit would see nothing; nor would anything see one of degree D - 1.
    """
    lowest, degrees = 0, [torch.empty(0, dtype=torch.int64)]
    for units in hidden:
        degrees.append(torch.randint(lowest, max(size - 1, lowest + 1), (units,)))
        lowest = int(degrees[-1].min())
    return torch.cat(degrees)


def _by_degree(degrees: Tensor, size: int) -> tuple[Tensor, ...]:
    """The units of each degree 0…D-1."""
    return degrees.argsort().split(degrees.bincount(minlength=size).tolist())
