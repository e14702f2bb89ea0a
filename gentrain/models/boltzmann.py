"""The general Boltzmann machine, all of whose units may be connected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.base import Completes, Law, StartsFromMean
from gentrain.models.energies import Annealed, Enumerable, PseudoLikelihood, TemperedPath
from gentrain.models.enumeration import (
    Remembered,
    draw_states,
    log_total,
    log_weight,
    quadratic,
    states,
)
from gentrain.types import NonNegativeInt, Shape

MOST = 12
"""Hidden units that may be connected to each other: F(v) sums over 2^MOST states for every example."""

Connections = Literal["full", "semi_restricted", "restricted"]


class Boltzmann(Enumerable, Annealed, PseudoLikelihood, Completes, StartsFromMean):
    """p(s) = exp(-E(s)) / Z with E(s) = -aᵀs - sᵀSs/2 over binary units s = (v, h), S symmetric with a zero diagonal
    (Ackley, Hinton & Sejnowski 1985, Cognitive Science 9:147).

    With S in blocks, F(v) = -bᵀv - vᵀS_vv v/2 - log Σ_h exp((c + S_hv v)ᵀh + hᵀS_hh h/2), a sum over all states of
    the hidden units, or without S_hh a product; p(s_i = 1 | the rest) = σ(a_i + S_i s). A step of the chain draws h
    from p(h | v) itself, then the visible units one after the other: it keeps p(v) exactly. So it takes a small product
    for every visible unit, and many times as long as an RBM's step.

    Args:
        shape: of one example, any; it is flattened inside.
        hidden: number of hidden units, 0 for none.
        connections: `full` joins all pairs of units; `semi_restricted` all but pairs of hidden ones (Osindero & Hinton
            2008); `restricted` visible with hidden ones alone, which is an RBM.
        sweep: visible units in their own order (`fixed`), or in a new one at every step, the same for all chains.
        burn_in: steps of `sample` and `complete`.

    Parameters: `weight` (units, units), of which what stands above the diagonal counts, visible units first; `bias` a.

    Raises:
        UsageError: more than 12 hidden units that are connected to each other.

    >>> machine = Boltzmann((1, 2, 2), hidden=3, burn_in=5)
    >>> v = machine.sample(6)
    >>> v.shape, machine.free_energy(v).shape, machine.log_prob(v).shape
    (torch.Size([6, 1, 2, 2]), torch.Size([6]), torch.Size([6]))
    """

    support, sampling = "binary", ("burn_in",)
    mask: Tensor

    def __init__(
        self,
        shape: Shape,
        hidden: NonNegativeInt = 4,
        connections: Connections = "full",
        sweep: Literal["fixed", "random"] = "fixed",
        burn_in: NonNegativeInt = 200,
    ):
        super().__init__()
        if connections == "full" and hidden > MOST:
            raise UsageError(
                f"model.hidden={hidden}: the free energy sums over the states of hidden units that are connected to"
                f" each other, {MOST} at most; say model.connections=semi_restricted, or model=rbm"
            )
        self.shape, self.visible, self.hidden = tuple(shape), math.prod(shape), hidden
        self.connections, self.sweep, self.burn_in = connections, sweep, burn_in
        units = self.visible + hidden
        self.weight = nn.Parameter(0.01 * torch.randn(units, units))
        self.bias = nn.Parameter(torch.zeros(units))
        mask = torch.ones(units, units).triu(1)
        mask[: self.visible, : self.visible] *= connections != "restricted"
        mask[self.visible :, self.visible :] *= connections == "full"
        self.register_buffer("mask", mask, persistent=False)
        self.independent = connections != "full"  # hidden units, given the visible ones
        self._remembered = Remembered()

    @property
    def coupling(self) -> Tensor:
        """S, (units, units)."""
        upper = self.weight * self.mask
        return upper + upper.t()

    # --- the hidden units ---

    def hidden_field(self, v: Tensor) -> Tensor:
        """c + S_hv v of v (B, visible), (B, hidden)."""
        return torch.addmm(self.bias[self.visible :], v, self.coupling[: self.visible, self.visible :])

    def _log_joint(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """All states (2^hidden, hidden), and fieldᵀh + hᵀS_hh h/2 of each of them, (B, 2^hidden)."""
        h = states(self.hidden, field)
        own = log_weight(h, torch.zeros_like(field[0]), self.coupling[self.visible :, self.visible :])
        return h, torch.addmm(own, field, h.t())

    def _log_hidden(self, field: Tensor) -> Tensor:
        """log Σ_h exp(fieldᵀh + hᵀS_hh h/2), (B,)."""
        if self.independent or not self.hidden:
            return softplus(field).sum(-1)
        return torch.logsumexp(self._log_joint(field)[1], 1)

    def sample_hidden(self, v: Tensor) -> Tensor:
        """h ~ p(h | v) of v (B, visible), (B, hidden)."""
        field = self.hidden_field(v)
        if self.independent or not self.hidden:
            return noise.bernoulli(torch.sigmoid(field))
        h, log_joint = self._log_joint(field)
        return h[noise.categorical(log_joint)]

    def free_energy(self, x: Tensor) -> Tensor:
        v = x.flatten(1).to(self.weight.dtype)
        own = log_weight(v, self.bias[: self.visible], self.coupling[: self.visible, : self.visible])
        return -own - self._log_hidden(self.hidden_field(v))

    # --- the chain ---

    @torch.no_grad()
    def _run(self, x: Tensor, k: int, known: Tensor | None = None) -> Tensor:
        """k steps from x (B, *shape), units where `known` is true held."""
        S, b = self.coupling, self.bias[: self.visible]
        across, held = S[self.visible :, : self.visible], None if known is None else known.flatten(1).t()
        v = x.flatten(1).to(self.weight.dtype)
        for _ in range(k):
            field = torch.addmm(b, self.sample_hidden(v), across)
            v = sweep(v, field, S[: self.visible, : self.visible], self._order(), held)
        return v.view(-1, *self.shape).to(x.dtype)

    def _order(self) -> Iterable[int]:
        return range(self.visible) if self.sweep == "fixed" else torch.randperm(self.visible).tolist()

    def gibbs(self, x: Tensor, k: int) -> Tensor:
        return self._run(x, k)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n independent chains from fair coin tosses, after `burn_in` steps."""
        return self._run(self.start(n), self.burn_in)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """By `burn_in` steps with the known units held, from fair coin tosses: this chain keeps p(missing | known)."""
        return self._run(torch.where(known, x, self.start(len(x)).to(x.dtype)), self.burn_in, known)

    def completion(self, known: Tensor) -> Law:
        return "chain"

    # --- what is known exactly ---

    @property
    def enumeration_bits(self) -> int:
        return self.visible + self.hidden

    def _double(self) -> tuple[Tensor, Tensor]:
        """Bias and coupling in float64, which Apple's GPUs don't have."""
        self._require_enumerable()
        host = "cpu" if self.device.type == "mps" else self.device
        return self.bias.detach().to(host).double(), self.coupling.detach().to(host).double()

    def _require_enumerable(self) -> None:
        if not self.enumerable:
            raise UsageError(
                f"the exact partition function of {self.visible} visible and {self.hidden} hidden units is a sum over"
                f" 2^{self.enumeration_bits} states; {self.limit} units are the most; metrics=[ais] estimates it"
            )

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """log Z in nats, exact, a float64 scalar: the sum over the states of all units. Kept until a parameter changes.

        Raises:
            UsageError: there are too many.
        """
        bias, coupling = self._double()
        return self._remembered([self.weight, self.bias], lambda: log_total(quadratic(bias, coupling), bias))

    @torch.no_grad()
    def exact_sample(self, n: int) -> Tensor:
        bias, coupling = self._double()
        drawn = draw_states(quadratic(bias, coupling), n, len(bias), bias)
        return drawn[:, : self.visible].to(self.weight).view(-1, *self.shape)

    @torch.no_grad()
    def pseudo_log_likelihood(self, x: Tensor, bits: int | None = None) -> Tensor:
        v = x.flatten(1).to(self.weight.dtype)
        S, field = self.coupling, self.hidden_field(v)
        visible_field = torch.addmm(self.bias[: self.visible], v, S[: self.visible, : self.visible])
        before = self._log_hidden(field)
        total = torch.zeros_like(before)
        for i in range(self.visible if bits is None else bits):
            index = (
                torch.full_like(before, i).long() if bits is None else torch.randint_like(before, self.visible).long()
            )
            flip = 1 - 2 * v.gather(1, index[:, None])
            after = self._log_hidden(torch.addcmul(field, flip, S[self.visible :, : self.visible].t()[index]))
            # F(v) - F(v with bit i flipped): log p(v_i | rest) = log σ(F(flipped) - F(v))
            difference = (flip * visible_field.gather(1, index[:, None]))[:, 0] + after - before
            total += logsigmoid(-difference)
        return total if bits is None else total * (self.visible / bits)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self.bias[: self.visible] = torch.logit(mean.flatten().clamp(1e-3, 1 - 1e-3))

    def tempered(self, mean: Tensor, smoothing: float = 0.05) -> TemperedPath:
        """The path over all units from independent ones: visible ones on with probability (mean + s)/(1 + s), kept
        within [1e-5, 1 - 1e-5], hidden ones with 1/2. log p*_β(s) = (1-β) b_Aᵀv - β E(s)."""
        p = ((mean.flatten().cpu().double() + smoothing) / (1 + smoothing)).clamp(1e-5, 1 - 1e-5)
        return _Path(self, torch.logit(p))


def sweep(s: Tensor, field: Tensor, coupling: Tensor, order: Iterable[int], held: Tensor | None = None) -> Tensor:
    """One Gibbs sweep: the units of s (B, n) in `order`, each from σ(field_i + S_i s), field (B, n) or (n,).

    Units where `held` (n, B) is true stay as they are.
    """
    limit = torch.logit(noise.uniform(*s.shape, device=s.device)).t()  # u < σ(f) where logit(u) < f
    field = field.expand_as(s).t()
    now = s.t().clone(memory_format=torch.contiguous_format)  # rows are units; the argument stays as it is
    for i in order:
        on = (torch.addmv(field[i], now.t(), coupling[i]) > limit[i]).to(s.dtype)
        now[i] = on if held is None else torch.where(held[i], now[i], on)
    return now.t()


class _Path(TemperedPath[Tensor]):
    """A state is one of all units: F need not be summed for every β."""

    def __init__(self, machine: Boltzmann, base: Tensor):
        host = torch.device("cpu") if machine.device.type == "mps" else machine.device  # Apple's GPUs have no float64
        self.machine = machine
        self.bias, self.coupling = machine.bias.detach().to(host), machine.coupling.detach().to(host)
        self.base = torch.cat([base.to(self.bias), torch.zeros_like(self.bias[machine.visible :])])
        self.log_partition = softplus(self.base.double()).sum().item()

    def start(self, n: int) -> Tensor:
        return noise.bernoulli(torch.sigmoid(self.base).expand(n, -1))

    def state(self, x: Tensor) -> Tensor:
        v = x.flatten(1).to(self.machine.weight)
        with torch.no_grad():
            return torch.cat([v, self.machine.sample_hidden(v)], 1).to(self.bias)

    def example(self, state: Tensor) -> Tensor:
        return state[:, : self.machine.visible].view(-1, *self.machine.shape).to(self.machine.device)

    def log_prob(self, state: Tensor, beta: float) -> Tensor:
        s = state.double()
        own = log_weight(s, self.bias.double(), self.coupling.double())
        return (1 - beta) * (s @ self.base.double()) + beta * own

    def transition(self, state: Tensor, beta: float) -> Tensor:
        # in a new order each time: then the step is its own reversal
        order = torch.randperm(state.shape[1]).tolist()
        return sweep(state, (1 - beta) * self.base + beta * self.bias, beta * self.coupling, order)
