"""Order-agnostic NADE: one network for the conditionals of every order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gentrain.errors import UsageError
from gentrain.models.autoregressive import choose_likelihood, draw, log_prob, missing_log_prob, nothing_known
from gentrain.models.base import Autoregressive, Conditions, Filters, Law, OrderAgnostic, StartsFromMean
from gentrain.models.missing import masks_of
from gentrain.types import PositiveInt, Shape

Pair = tuple[Tensor, Tensor]
WORKING_SET = 1 << 22
"""First-layer units, over the batch and a chunk's places, that are in memory together."""


class EONADE(Autoregressive, OrderAgnostic, Conditions, Filters, StartsFromMean):
    """p(x_d | x where m = 1) from a network of (m ∘ x, m), whatever the mask m (Uria, Murray & Larochelle 2014,
    arXiv:1310.1757).

    Its conditionals along an order o make a distribution p_o; those of different orders needn't agree. The model is the
    ensemble over O `orderings`, drawn once and kept with the weights:

        p(x) = 1/O Σ_o p_o(x)

    an average of the probabilities of whole examples. `order` and `conditionals` are those of the first. The first
    layer is summed up along an order, as NADE's is, so p_o(x) costs D passes through the layers after it.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        hidden: units of each hidden layer.
        orderings: O. More cost more and are better: learning by objective=orderless doesn't depend on them.
        likelihood: of an element given those that are known. `auto` is gaussian_mixture for reals, bernoulli for one
            channel (binarized), else categorical.
        components: Gaussians of a gaussian_mixture; None is 10.

    Raises:
        UsageError: a likelihood that the data can't have, or `components` of what is no mixture.

    >>> model = EONADE((1, 8, 8), levels=17, hidden=[32, 32], orderings=2)
    >>> x = torch.zeros(5, 1, 8, 8)
    >>> model.log_prob(x).shape, model.log_conditionals(x, x == 1).shape
    (torch.Size([5]), torch.Size([5, 1, 8, 8]))
    """

    orders: Tensor

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        hidden: Sequence[PositiveInt] = (500, 500),
        orderings: PositiveInt = 2,
        likelihood: Literal[
            "auto", "bernoulli", "categorical", "discretized_logistic", "gaussian", "gaussian_mixture"
        ] = "auto",
        components: PositiveInt | None = None,
    ):
        super().__init__()
        if not hidden:
            raise UsageError("model.hidden=[]: eonade needs a hidden layer; use e.g. model.hidden=[500]")
        self.shape, size = tuple(shape), math.prod(shape)
        self.likelihood = choose_likelihood(likelihood, self.shape, levels, components)
        self.support = self.likelihood.support
        self.first = nn.Linear(2 * size, hidden[0])  # of the values, then of the mask
        later = (block for sizes in pairwise(hidden) for block in (nn.Linear(*sizes), nn.ReLU()))
        self.later = nn.Sequential(nn.ReLU(), *later)
        self.output = nn.Linear(hidden[-1], self.likelihood.per_element * size, bias=False)
        self.register_buffer("orders", torch.stack([torch.randperm(size) for _ in range(orderings)]))

    @property
    def order(self) -> Tensor:
        return self.orders[0]

    def log_conditionals(self, x: Tensor, known: Tensor) -> Tensor:
        u = torch.where(known, self.likelihood.network_input(x), 0)
        raw = self.output(self.later(self.first(torch.cat([u.flatten(1), known.flatten(1).to(u)], 1))))
        return self.likelihood(raw).base_dist.log_prob(x)

    def conditionals(self, x: Tensor) -> Tensor:
        return self.conditionals_of(x, self.order)

    def conditionals_of(self, x: Tensor, order: Tensor) -> Tensor:
        """`conditionals` along an order (D,), some places at a time; a backward pass computes these again."""
        u = self.likelihood.network_input(x).flatten(1)[:, order]
        values, marks, output = (weight[order] for weight in self._by_element())
        start, raw = self.first.bias.expand(len(x), -1), []
        chunk = max(1, WORKING_SET // max(1, start.numel()))
        for first in range(0, len(order), chunk):
            s = slice(first, first + chunk)
            given = u[:, s], values[s], marks[s], output[s], start
            if torch.is_grad_enabled():
                found, start = cast(
                    Pair, checkpoint(self._places, *given, use_reentrant=False, preserve_rng_state=False)
                )
            else:
                found, start = self._places(*given)
            raw.append(found)
        bias = self.likelihood.bias.view(-1, len(order)).t()
        return torch.cat(raw)[order.argsort()].transpose(0, 1) + bias

    def _by_element(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights from values (D, H) and marks (D, H) to the first layer, from the last to the outputs (D, P, H')."""
        values, marks = self.first.weight.t().chunk(2)
        return values, marks, self.output.weight.unflatten(0, (self.likelihood.per_element, -1)).transpose(0, 1)

    def _places(self, u: Tensor, values: Tensor, marks: Tensor, output: Tensor, start: Tensor) -> Pair:
        """Raw outputs (C, B, P) at C places, and the first layer's sum (B, H) after them, from that before them."""
        earlier = torch.ones(len(values), len(values), dtype=u.dtype, device=u.device).tril(-1)
        first = (u * earlier[:, None]) @ values + (earlier @ marks)[:, None] + start
        raw = torch.bmm(self.later(first), output.transpose(1, 2))
        return raw, torch.addmm(start, u, values) + marks.sum(0)

    def log_prob(self, x: Tensor) -> Tensor:
        members = [log_prob(self.likelihood, self.conditionals_of(x, order), x) for order in self.orders]
        return torch.logsumexp(torch.stack(members), 0) - math.log(len(members))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.complete(*nothing_known(self, n))

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """Draw the missing elements of each example given the known, along one of the orders, drawn for it, in which
        the known elements are moved to the front.

        That is an exact draw from p_o(missing | known) of the order o so made, for any `known`.
        """
        order = self.orders[torch.randint(len(self.orders), (len(x),), device=x.device)]
        front = known.flatten(1).gather(1, order).argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, front)
        values, marks, output = self._by_element()
        state = self.first.bias.repeat(len(x), 1)

        def raw_at(i: int) -> Tensor:
            return (output[order[:, i]] @ self.later(state)[..., None])[..., 0]

        def feed(i: int, value: Tensor) -> None:
            d = order[:, i]
            state.add_(value[:, None] * values[d] + marks[d])

        return draw(self.likelihood, x, known, order, raw_at, feed)

    def completion(self, known: Tensor) -> Law:
        return "exact"

    def log_conditional(self, x: Tensor, known: Tensor) -> Tensor:
        """log of the mean over the orders of p_o(missing | known), o with the known elements moved to its front: what
        `complete` draws from. Networks of different orders need not agree, so that this is not log p(x) - log p(known)
        of `log_prob`'s mixture."""
        total = torch.empty(len(x), device=x.device)
        for mask, rows in masks_of(known):
            part, members = x[rows], []
            for order in self.orders:
                order = order[mask[order].to(torch.uint8).argsort(descending=True, stable=True)]
                parameters = self.conditionals_of(part, order)
                members.append(missing_log_prob(self.likelihood, parameters, part, mask.view(self.shape)))
            total[rows] = torch.logsumexp(torch.stack(members), 0) - math.log(len(members))
        return total

    @torch.no_grad()
    def filters(self) -> Tensor:
        """What each unit of the first layer looks for among the values, (hidden, *shape)."""
        return self.first.weight.chunk(2, 1)[0].reshape(-1, *self.shape)

    def start_from_mean(self, mean: Tensor) -> None:
        self.likelihood.start_from_mean(mean)
