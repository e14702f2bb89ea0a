"""The neural autoregressive distribution estimator."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gentrain.models.autoregressive import Ancestral, choose_likelihood, ordering
from gentrain.models.base import Filters
from gentrain.types import PositiveInt, Shape

CHUNK = (8, 32)
"""Fewest and most places that are computed together."""
WORKING_SET = {"cpu": 1 << 19}
"""Hidden units, over the batch and a chunk's places, that are worked on together: what a core's cache holds."""
WORKING_SET_ELSEWHERE = 1 << 24


class NADE(Ancestral, Filters):
    """p(x_o(i) | x_o(<i)) from h_i = s(c + Σ_{j<i} W_j x_o(j)) as b_o(i) + V_i h_i (Larochelle & Murray 2011).

    The hidden units of all places share one matrix, so that each place costs O(H) after the one before: O(DH) for all.
    V_i h_i is the logit of a bit. With `categorical` it is the K logits of a level, with `gaussian_mixture` the
    parameters of a mixture over the reals: RNADE (Uria et al. 2013, arXiv:1306.0186), without its scaling of the
    hidden units by place.

    Args:
        shape: of one example.
        levels: number of values an element can take in the data, None for reals.
        hidden: H, hidden units of each place.
        activation: s, `sigmoid` or `relu`.
        likelihood: of an element given those before it. `auto` is gaussian_mixture for reals, bernoulli for one channel
            (binarized), else categorical.
        components: Gaussians of a gaussian_mixture; None is 10.
        order: `raster`, or `random`: drawn once, and kept with the weights.

    Raises:
        UsageError: a likelihood that the data can't have, `components` of what is no mixture.

    >>> model = NADE((1, 8, 8), levels=17, hidden=16)
    >>> model.log_prob(torch.zeros(5, 1, 8, 8)).shape, model.sample(3).shape
    (torch.Size([5]), torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        hidden: PositiveInt = 500,
        activation: Literal["sigmoid", "relu"] = "sigmoid",
        likelihood: Literal[
            "auto", "bernoulli", "categorical", "discretized_logistic", "gaussian", "gaussian_mixture"
        ] = "auto",
        components: PositiveInt | None = None,
        order: Literal["raster", "random"] = "raster",
    ):
        size = math.prod(shape)
        chosen = choose_likelihood(likelihood, tuple(shape), levels, components)
        super().__init__(shape, chosen, ordering(order, size))
        self.activation = activation
        # in the order, as V is: place by place
        self.weight = nn.Parameter(torch.randn(size, hidden) * 0.05)
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.output_weight = nn.Parameter(torch.randn(size, chosen.per_element, hidden) * 0.05)

    def raw(self, u: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):  # sums over hundreds of places need float32
            raw = _Accumulate.apply(
                u, self.weight, self.output_weight, self.hidden_bias, self.activation, torch.is_grad_enabled()
            )
        return raw.transpose(0, 1)

    def start(self, n: int) -> Tensor:
        return self.hidden_bias.repeat(n, 1)

    def raw_at(self, state: Tensor, i: int) -> Tensor:
        hidden = state.sigmoid() if self.activation == "sigmoid" else state.relu()
        return hidden @ self.output_weight[i].t()

    def feed(self, state: Tensor, i: int, value: Tensor) -> None:
        state.addcmul_(value[:, None], self.weight[i])

    @torch.no_grad()
    def filters(self) -> Tensor:
        """What each hidden unit looks for: the columns of W, (hidden, *shape)."""
        return self.weight[self.order.argsort()].t().reshape(-1, *self.shape)


class _Accumulate(torch.autograd.Function):
    """V_i s(c + Σ_{j<i} u_j W_j) at every place i, (D, B, P), a chunk of C places at a time.

    Within a chunk the sums are one product with U, u_j where j < i and else zero; from one to the next runs the sum
    of all before, which is all that is kept, D/C times (B, H). Backward computes each chunk's hidden units again.

    u (B, D), W (D, H), V (D, P, H), c (H). `keep`: whether there will be a backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, weight: Tensor, output: Tensor, bias: Tensor, activation: str, keep: bool
    ) -> Tensor:
        chunk = _chunk(u, weight)
        starts, start = [], bias.expand(len(u), -1)
        raw = output.new_empty(len(weight), len(u), output.shape[1])
        work = weight.new_empty(chunk, len(u), weight.shape[1])
        for first in range(0, len(weight), chunk):
            s = slice(first, first + chunk)
            hidden = _hidden(u[:, s], weight[s], start, activation, work)[0]
            torch.bmm(hidden, output[s].transpose(1, 2), out=raw[s])
            if keep:
                starts.append(start)
            start = torch.addmm(start, u[:, s], weight[s])
        ctx.save_for_backward(u, weight, output, *starts)
        ctx.chunk, ctx.activation = chunk, activation
        return raw

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        u, weight, output, *starts = ctx.saved_tensors
        d_weight, d_output = torch.empty_like(weight), torch.empty_like(output)
        d_u = torch.empty_like(u) if ctx.needs_input_grad[0] else None
        work, other = (weight.new_empty(ctx.chunk, len(u), weight.shape[1]) for _ in range(2))
        after = torch.zeros_like(starts[0])  # gradient by the sums of all later places
        for k in reversed(range(len(starts))):
            s = slice(k * ctx.chunk, (k + 1) * ctx.chunk)
            hidden, before = _hidden(u[:, s], weight[s], starts[k], ctx.activation, work)
            torch.bmm(gradient[s].transpose(1, 2), hidden, out=d_output[s])
            d_sum = other[: len(hidden)]
            torch.bmm(gradient[s], output[s], out=d_sum)
            if ctx.activation == "sigmoid":
                torch.ops.aten.sigmoid_backward.grad_input(d_sum, hidden, grad_input=d_sum)
            else:
                d_sum.mul_(hidden > 0)
            torch.mm(before.t(), d_sum.flatten(0, 1), out=d_weight[s])
            d_weight[s].addmm_(u[:, s].t(), after)
            if d_u is not None:
                by_place = (d_sum @ weight[s].t()) * _earlier(len(hidden), u)[:, None]
                torch.addmm(by_place.sum(0), after, weight[s].t(), out=d_u[:, s])
            after += d_sum.sum(0)
        return d_u, d_weight, d_output, after.sum(0), None, None


def _chunk(u: Tensor, weight: Tensor) -> int:
    """Places a chunk."""
    fitting = WORKING_SET.get(u.device.type, WORKING_SET_ELSEWHERE) // max(1, len(u) * weight.shape[1])
    return min(max(fitting, CHUNK[0]), CHUNK[1])


def _earlier(places: int, like: Tensor) -> Tensor:
    """[i, j] is one where j < i, else zero."""
    return torch.ones(places, places, dtype=like.dtype, device=like.device).tril(-1)


def _hidden(u: Tensor, weight: Tensor, start: Tensor, activation: str, out: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden units of a chunk's places (C, B, H), written to `out`, and U (C B, C)."""
    places = len(weight)
    before = (u * _earlier(places, u)[:, None]).flatten(0, 1)
    hidden = out[:places]
    torch.mm(before, weight, out=hidden.flatten(0, 1))
    hidden += start
    return (hidden.sigmoid_() if activation == "sigmoid" else hidden.relu_()), before
