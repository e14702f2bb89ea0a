"""The restricted Boltzmann machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.base import Codes, Filters, Reconstructs, StartsFromMean
from gentrain.models.energies import Annealed, Enumerable, PseudoLikelihood, TemperedPath
from gentrain.models.enumeration import Block, Remembered, draw_states, log_total, states
from gentrain.models.harmonium import Bilinear, BinaryHidden, BinaryVisible, Clamped
from gentrain.types import NonNegativeInt, PositiveInt, Shape


class RBM(
    BinaryVisible,
    BinaryHidden,
    Clamped,
    Enumerable,
    Annealed,
    PseudoLikelihood,
    Codes,
    Filters,
    Reconstructs,
    StartsFromMean,
):
    """p(v) = Σ_h exp(-E(v, h)) / Z with E(v, h) = -hᵀWv - bᵀv - cᵀh, v and h binary (Smolensky 1986; Hinton 2002).

    F(v) = -bᵀv - Σ_j softplus(c_j + W_j v), p(h_j = 1 | v) = σ(c_j + W_j v), p(v_i = 1 | h) = σ(b_i + Wᵀ_i h).

    Args:
        shape: of one example, any; it is flattened inside.
        hidden: number of hidden units.
        burn_in: Gibbs steps of `sample`.

    Parameters: `weight` W (hidden, visible), `visible_bias` b, `hidden_bias` c.

    >>> rbm = RBM((1, 3, 3), hidden=4)
    >>> v = rbm.sample(5, burn_in=10)
    >>> v.shape, rbm.free_energy(v).shape, rbm.hidden_probability(v).shape
    (torch.Size([5, 1, 3, 3]), torch.Size([5]), torch.Size([5, 4]))
    >>> rbm.log_prob(v).shape
    torch.Size([5])
    """

    support, sampling = "binary", ("burn_in",)

    def __init__(self, shape: Shape, hidden: PositiveInt = 500, burn_in: NonNegativeInt = 200):
        super().__init__(shape, hidden)
        self.burn_in = burn_in
        self._remembered = Remembered()

    def free_energy(self, x: Tensor) -> Tensor:
        return self.energy_of_units(x)

    @torch.no_grad()
    def sample(self, n: int, burn_in: int | None = None, start: Tensor | None = None) -> Tensor:
        """n independent chains after `burn_in` steps (None is the model's own).

        They begin at `start` (n, *shape), data for instance, or else at fair coin tosses.
        """
        if start is None:
            start = noise.bernoulli(torch.full((n, *self.shape), 0.5, device=self.device))
        elif len(start) != n:
            raise ValueError(f"{n} chains asked for and {len(start)} examples to start them from")
        return self.gibbs(start, self.burn_in if burn_in is None else burn_in)

    def codes(self, x: Tensor) -> Tensor:
        return self.hidden_probability(x)

    def filters(self) -> Tensor:
        """The rows of W, (hidden, *shape)."""
        return self.weight.view(-1, *self.shape)

    def reconstruct(self, x: Tensor) -> Tensor:
        """p(v | h) at h = p(h | v): one mean-field step."""
        return self.visible_probability(self.hidden_probability(x))

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self.visible_bias.copy_(torch.logit(mean.flatten().clamp(1e-3, 1 - 1e-3)))

    @property
    def enumeration_bits(self) -> int:
        return min(self.visible, self.hidden)

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """log Z in nats, exact, a float64 scalar: enumerates the states of the smaller layer.

        The result is kept until a parameter changes. With 25 units against 784 this takes ten seconds or so.

        Raises:
            UsageError: neither layer is small enough.
        """
        self._require_enumerable()
        host = "cpu" if self.device.type == "mps" else self.device  # Apple's GPUs have no float64
        parameters = [self.weight, self.visible_bias, self.hidden_bias]
        return self._remembered(parameters, lambda: log_partition(*(p.to(host).double() for p in parameters)))

    def _require_enumerable(self) -> None:
        if not self.enumerable:
            raise UsageError(
                f"the exact partition function of {self.visible} visible and {self.hidden} hidden units is a sum over "
                f"2^{self.enumeration_bits} states; the smaller layer may have {self.limit} units at most"
            )

    @torch.no_grad()
    def exact_sample(self, n: int) -> Tensor:
        """n independent examples: states of the smaller layer as the sum over them comes by, then v.

        Time is that of `log_partition`.

        Raises:
            UsageError: neither layer is small enough.
        """
        self._require_enumerable()
        host = "cpu" if self.device.type == "mps" else self.device
        W, b, c = (p.to(host).double() for p in (self.weight, self.visible_bias, self.hidden_bias))
        if swapped := self.hidden > self.visible:
            W, b, c = W.t(), c, b
        drawn = draw_states(_blocks(W, b, c), n, len(c), c)
        drawn = drawn.to(self.device, self.weight.dtype)
        return drawn.view(-1, *self.shape) if swapped else self.sample_visible(drawn)

    def tempered(self, mean: Tensor, smoothing: float = 0.05) -> TemperedPath:
        """The path of Salakhutdinov & Murray (2008) from independent bits of probability p = (mean + s)/(1 + s).

        log p*_β(v) = (1-β) b_Aᵀv + β bᵀv + Σ_j softplus(β (c_j + W_j v)), b_A = logit p, log Z_A = Σ_i softplus(b_A,i)
        + H log 2. Their p = (n + 5B)/(N + 5B) for n of N examples in B = N/100 mini-batches is s = 0.05, the default.
        Whatever s is, p is kept within [1e-5, 1 - 1e-5].
        """
        p = ((mean.flatten().cpu().double() + smoothing) / (1 + smoothing)).clamp(1e-5, 1 - 1e-5)
        return RBMPath(self, torch.logit(p))

    @torch.no_grad()
    def pseudo_log_likelihood(self, x: Tensor, bits: int | None = None) -> Tensor:
        """Σ_i log p(v_i | the rest) in nats, (B,) (Besag 1975).

        `bits=None` sums over every bit. Otherwise that many bits are drawn for each example, with replacement, and
        their mean is scaled to all of them: unbiased, and cheap.
        """
        v = x.flatten(1).to(self.weight.dtype)
        before = nn.functional.linear(v, self.weight, self.hidden_bias)
        rest = softplus(before).sum(-1)
        total = torch.zeros_like(rest)
        for i in range(self.visible if bits is None else bits):
            index = torch.full_like(rest, i).long() if bits is None else torch.randint_like(rest, self.visible).long()
            flip = 1 - 2 * v.gather(1, index[:, None])
            after = torch.addcmul(before, flip, self.weight.t()[index])
            # F(v) - F(v with bit i flipped): log p(v_i | rest) = log σ(F(flipped) - F(v))
            difference = flip[:, 0] * self.visible_bias[index] + softplus(after).sum(-1) - rest
            total += logsigmoid(-difference)
        return total if bits is None else total * (self.visible / bits)


class _Visible(NamedTuple):
    """n states of the visible units with what every β needs of them."""

    v: Tensor  # (n, visible)
    field: Tensor  # c + W v, (n, hidden)
    bias: Tensor  # bᵀv, (n,), float64
    base: Tensor  # b_Aᵀv, (n,), float64


class RBMPath(TemperedPath[_Visible]):
    """From independent bits to an RBM. One β costs two matrix products: W v is kept until v moves.

    Products are in the model's own precision. What log weights add up is float64: differences of log p* at one v, in
    which the rounding of W v, which both terms share, all but cancels.
    """

    def __init__(self, rbm: Bilinear, base: Tensor):
        host = torch.device("cpu") if rbm.device.type == "mps" else rbm.device  # Apple's GPUs have no float64
        self.shape, self.device = rbm.shape, rbm.device
        self.W, self.b, self.c = (p.detach().to(host) for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias))
        self.base = base.to(host, self.W.dtype)
        self.biases = torch.stack([self.b, self.base], 1).double()
        self.log_partition = self.log_states(self.base.double()).item() + rbm.hidden * math.log(2)

    def log_states(self, field: Tensor) -> Tensor:
        """log Σ_v exp(fieldᵀv), a scalar, for visible units that are independent: field (visible,)."""
        return softplus(field).sum()

    def draw(self, field: Tensor) -> Tensor:
        """v with p(v) ∝ exp(fieldᵀv), (n, visible)."""
        return noise.bernoulli(torch.sigmoid(field))

    def start(self, n: int) -> _Visible:
        return self._state(self.draw(self.base.expand(n, -1)))

    def state(self, x: Tensor) -> _Visible:
        return self._state(x.flatten(1).to(self.W))

    def _state(self, v: Tensor) -> _Visible:
        bias, base = (v.double() @ self.biases).unbind(1)
        return _Visible(v, nn.functional.linear(v, self.W, self.c), bias, base)

    def example(self, state: _Visible) -> Tensor:
        return state.v.view(-1, *self.shape).to(self.device)

    def log_prob(self, state: _Visible, beta: float) -> Tensor:
        hidden = softplus(beta * state.field).sum(-1, dtype=torch.float64)
        return (1 - beta) * state.base + beta * state.bias + hidden

    def transition(self, state: _Visible, beta: float) -> _Visible:
        h = noise.bernoulli(torch.sigmoid(beta * state.field))
        bias = (1 - beta) * self.base + beta * self.b
        return self._state(self.draw(torch.addmm(bias, h, self.W, alpha=beta)))


def log_partition(W: Tensor, b: Tensor, c: Tensor, *, inner: int = 10, outer: int = 7) -> Tensor:
    """log Σ_h exp(cᵀh) Π_i (1 + exp(b_i + Wᵀ_i h)) over the states of the smaller layer, in float64.

    Args:
        W: weights (hidden, visible), b: visible biases, c: hidden biases, all float64.
        inner, outer: 2^inner x 2^outer states are summed at a time.
    """
    if W.shape[0] > W.shape[1]:  # the roles of v and h are symmetric
        W, b, c = W.t(), c, b
    return log_total(_blocks(W, b, c, inner=inner, outer=outer), W)


def _blocks(W: Tensor, b: Tensor, c: Tensor, *, inner: int = 10, outer: int = 7) -> Iterator[Block]:
    """All states of the hidden units in blocks: the low units' states (I, low), some of the high units' (O, high), and
    the logarithms of exp(cᵀh) Π_i (1 + exp(b_i + Wᵀ_i h)) for every pair, (O, I).

    With h split in two, x_i = b_i + W_i h is a sum x'_i + x''_i, and the product over a few units i is a sum over
    their subsets T, Π_i (1 + exp x_i) = Σ_T exp(Σ_{i∈T} x'_i) exp(Σ_{i∈T} x''_i): a matrix product of two tables for
    all states of a block. So the inner loop takes no exponential, and a logarithm only before a product of such
    factors could overflow. All terms are positive: nothing cancels.
    """
    low = min(len(c), inner)
    h_low, h_high = states(low, W), states(len(c) - low, W)
    reach = b.abs() + W.abs().sum(0)  # a double holds e^±709; units beyond that are summed without any table
    tame, wild = torch.nonzero(reach <= LOG_RANGE).flatten(), torch.nonzero(reach > LOG_RANGE).flatten()
    size = max(1, min(4, int(LOG_RANGE / max(reach[tame].max().item(), 1.0)))) if len(tame) else 1
    W_sets, b_sets = _sets(W[:, tame], b[tame], size)
    subsets = states(size, W)
    right = torch.exp(subsets @ (W_sets[:, :, :low] @ h_low.t()))  # (sets, subsets, inner states)
    slices = _slices(softplus(b_sets + W_sets.clamp(min=0).sum(-1)).sum(-1).tolist())
    for h in h_high.split(1 << outer):
        term = (h @ c[low:])[:, None] + h_low @ c[:low]
        for i in wild.tolist():
            x = (b[i] + h @ W[low:, i])[:, None] + h_low @ W[:low, i]
            term += torch.logaddexp(torch.zeros_like(x), x)
        left = torch.exp((b_sets[:, None] + h @ W_sets[:, :, low:].mT) @ subsets.t())  # (sets, outer states, subsets)
        factor = torch.empty_like(term)
        for start, stop in slices:
            product = left[start] @ right[start]
            for s in range(start + 1, stop):
                product *= torch.mm(left[s], right[s], out=factor)
            term += product.log_()
        yield h_low, h, term


LOG_RANGE = 700.0
"""Exponents up to this are safe in a double."""


def _sets(W: Tensor, b: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Units in sets of `size`, (sets, size, hidden) and (sets, size); those that fill the last set are never on."""
    missing = -len(b) % size
    W = torch.nn.functional.pad(W, (0, missing))
    b = torch.nn.functional.pad(b, (0, missing), value=-1e4)
    return W.t().reshape(-1, size, len(W)), b.reshape(-1, size)


def _slices(needs: list[float]) -> list[tuple[int, int]]:
    """Ranges of consecutive factors, each with a logarithm of at most `needs`, whose product fits into a double.

    >>> _slices([300.0, 300.0, 300.0, 800.0])
    [(0, 2), (2, 3), (3, 4)]
    """
    starts, room = [], 0.0
    for i, need in enumerate(needs):
        if need > room:
            starts.append(i)
            room = LOG_RANGE
        room -= need
    return list(pairwise([*starts, len(needs)]))
