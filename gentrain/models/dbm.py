"""Deep Boltzmann machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.base import Codes, Completes, Filters, Law, Reconstructs, StartsFromMean
from gentrain.models.classifier import Discriminative
from gentrain.models.doubled import DoubledRBM, Sweep
from gentrain.models.energies import Bounded, MarkovChain, TemperedPath
from gentrain.models.enumeration import states
from gentrain.models.rbm import RBM
from gentrain.models.stack import Stack
from gentrain.types import NonNegativeFloat, NonNegativeInt, PositiveInt, Shape

CHECK = 5
"""Sweeps of mean field between two looks at how far it has come: a GPU has to be waited for at each."""


class DBM(Stack, Bounded, MarkovChain, Discriminative, Codes, Completes, Filters, Reconstructs, StartsFromMean):
    """p(v) = Σ_h exp(-E(v, h)) / Z, E = -Σ_l h_lᵀ W_l h_{l-1} - Σ_l c_lᵀ h_l with h_0 = v, all units binary
    (Salakhutdinov & Hinton 2009, AISTATS).

    Layers are independent given their neighbours: p(h_l = 1 | rest) = σ(c_l + W_l h_{l-1} + W_{l+1}ᵀ h_{l+1}). Neither
    Z nor p(h | v) is known. Mean field, q(h) = Π Bernoulli(μ), gives the bound log p(v) >= E_q[-E] + H(q) - log Z. The
    layers with odd numbers are independent of each other given the even ones, v among them, and conversely: seen so,
    the machine is an RBM, by whose path Z is annealed to, with v and the other even layers summed out.

    Layer l of the stack is a `DoubledRBM` between h_{l-1} and h_l whose weights are W_l: there is no other copy. A bias
    is the sum of what the two RBMs of its layer have of it, c_l = `layer<l>.hidden_bias` + `layer<l+1>.visible_bias`.
    So RBMs that were trained by themselves are the machine that the paper composes of them, with the weights of those
    in the middle halved, and nothing has to be done between pretraining and joint training.

    The classifier that it can be unrolled into is `Sweep`, whose further inputs are mean field's.

    Args:
        shape: of one example, any; it is flattened inside.
        hidden: units of the layers, from the lowest.
        classes: labels in the data, None where there are none: for the classifier.
        grey: values in [0, 1] are taken for probabilities of bits, and samples are such probabilities. There is then
            no likelihood, and no bound of one.
        burn_in: Gibbs sweeps of `sample` and `complete`.
        sweeps: of mean field, at most. tolerance: it ends when no unit's μ moves by more in a sweep.

    Raises:
        UsageError: there are fewer than two layers.

    >>> dbm = DBM((1, 3, 3), hidden=[4, 5])
    >>> v = dbm.sample(6)
    >>> [mu.shape for mu in dbm.mean_field(v)], dbm.log_bound(v).shape
    ([torch.Size([6, 4]), torch.Size([6, 5])], torch.Size([6]))
    >>> bool((dbm.log_bound(v) - dbm.log_partition() <= dbm.log_prob(v) + 1e-4).all())
    True
    """

    bound_kind = "dbm-bound"
    bound_draws = False
    sampling = ("burn_in",)
    limit = 20
    """Units of the odd layers up to which `log_prob` sums over their states."""

    def __init__(
        self,
        shape: Shape,
        hidden: Sequence[PositiveInt] = (200, 200),
        classes: PositiveInt | None = None,
        grey: bool = False,
        burn_in: NonNegativeInt = 200,
        sweeps: PositiveInt = 50,
        tolerance: NonNegativeFloat = 1e-5,
    ):
        super().__init__()
        if len(hidden) < 2:
            raise UsageError(
                f"model.hidden={list(hidden)}: a deep Boltzmann machine has two layers at least; model=rbm has one"
            )
        self.shape, self.support, self.grey = tuple(shape), "unit" if grey else "binary", grey
        self.burn_in = burn_in
        self.sweeps, self.tolerance = sweeps, tolerance
        self.sizes = [math.prod(shape), *hidden]
        shapes = [self.shape, *((units,) for units in hidden[:-1])]
        top = len(hidden) - 1
        self.stack(
            [
                DoubledRBM(s, n, up=2 - (i == top), down=2 - (i == 0))
                for i, (s, n) in enumerate(zip(shapes, hidden, strict=True))
            ]
        )
        self._set_classifier(None if classes is None else Sweep(self.sizes, classes))

    # --- the machine ---

    def up(self, i: int, x: Tensor) -> Tensor:
        return self.rbm(i).hidden_probability(x)

    def rbm(self, i: int) -> DoubledRBM:
        return cast(DoubledRBM, self.layer(i))

    def bias(self, i: int) -> Tensor:
        """c_i, of v for i = 0, (units,)."""
        if i == 0:
            return self.rbm(1).visible_bias
        own = self.rbm(i).hidden_bias
        return own if i == self.depth else own + self.rbm(i + 1).visible_bias

    def probability(self, h: Sequence[Tensor], i: int) -> Tensor:
        """p(h_i = 1 | h_{i-1}, h_{i+1}), (B, units), for layers `h`, v first, of which it reads these two."""
        field = self.bias(i)
        if i > 0:
            field = nn.functional.linear(h[i - 1], self.rbm(i).weight, field)
        if i < self.depth:
            field = torch.addmm(field, h[i + 1], self.rbm(i + 1).weight)
        return torch.sigmoid(field)

    def negative_energy(self, h: Sequence[Tensor]) -> Tensor:
        """-E(v, h) in nats, (B,), for layers `h`, v first; at means of independent units, its mean."""
        total = (h[0] @ self.bias(0)).float()
        for i in range(1, self.depth + 1):
            total = total + (nn.functional.linear(h[i - 1], self.rbm(i).weight, self.bias(i)) * h[i]).sum(-1)
        return total

    def energy_gradient(self, data: Sequence[Tensor], chain: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Mean of ∂E over the data's states less that over the chain's, with respect to W_1 … W_L and to c_0 … c_L.

        States are those of the layers, v first, of which means will do for units that are independent given the rest.
        """
        found = [
            self.rbm(i).energy_gradient((data[i - 1], data[i]), (chain[i - 1], chain[i]))
            for i in range(1, self.depth + 1)
        ]
        biases = [found[0]["visible_bias"], *(g["hidden_bias"] for g in found)]
        return [g["weight"] for g in found], biases

    def by_name(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> dict[str, Tensor]:
        """Gradients with respect to W_1 … W_L and c_0 … c_L as those of the parameters.

        A bias that stands in two layers of the stack takes half of its step in either.
        """
        grads: dict[str, Tensor] = {}
        for i, (weight, below, above) in enumerate(zip(weights, biases, biases[1:], strict=False), 1):
            grads[f"layer{i}.weight"] = weight
            grads[f"layer{i}.visible_bias"] = below if i == 1 else below / 2
            grads[f"layer{i}.hidden_bias"] = above if i == self.depth else above / 2
        return grads

    def bipartite(self) -> RBM:
        """The same machine as an RBM: its visible units are the odd layers, its hidden ones the even layers.

        It has copies of the parameters. Layers that aren't neighbours are joined by zeros, so of the products with
        three hidden layers a part is idle.
        """
        even, odd = range(0, self.depth + 1, 2), range(1, self.depth + 1, 2)
        rbm = RBM((sum(self.sizes[i] for i in odd),), sum(self.sizes[i] for i in even)).to(self.device)
        with torch.no_grad():
            rbm.weight.copy_(torch.cat([torch.cat([self._coupling(i, j) for j in odd], 1) for i in even]))
            rbm.visible_bias.copy_(torch.cat([self.bias(i) for i in odd]))
            rbm.hidden_bias.copy_(torch.cat([self.bias(i) for i in even]))
        return rbm

    def _coupling(self, i: int, j: int) -> Tensor:
        """What joins layer j to layer i, (units of i, units of j)."""
        if abs(i - j) != 1:
            return self.bias(0).new_zeros(self.sizes[i], self.sizes[j])
        weight = self.rbm(max(i, j)).weight
        return weight if i > j else weight.t()

    # --- mean field ---

    @torch.no_grad()
    def mean_field(self, x: Tensor, sweeps: int | None = None, tolerance: float | None = None) -> list[Tensor]:
        """μ_1 … μ_L, (B, units) each: a fixed point of μ_l = σ(c_l + W_l μ_{l-1} + W_{l+1}ᵀ μ_{l+1}), μ_0 = v.

        It begins with a pass up with doubled weights. Then every sweep updates the layers from the lowest to the
        highest, none of which lowers the bound.

        Args:
            sweeps: at most; None is the model's own.
            tolerance: ends when no μ has moved by more in a sweep, looked at in every fifth; 0 never looks.
        """
        sweeps = self.sweeps if sweeps is None else sweeps
        tolerance = self.tolerance if tolerance is None else tolerance
        v = x.flatten(1).to(self.bias(0).dtype)
        product = nn.functional.linear(v, self.rbm(1).weight)
        mu = [torch.sigmoid(2 * product + self.bias(1))]
        for i in range(2, self.depth + 1):
            product_above = nn.functional.linear(mu[-1], self.rbm(i).weight)
            mu.append(torch.sigmoid((1 + (i < self.depth)) * product_above + self.bias(i)))
        bottom = product + self.bias(1)  # v stands still
        for sweep in range(1, sweeps + 1):
            before = mu
            mu = [torch.sigmoid(torch.addmm(bottom, mu[1], self.rbm(2).weight)), *mu[1:]]
            for i in range(2, self.depth + 1):
                mu[i - 1] = self.probability([v, *mu], i)
            if tolerance > 0 and sweep % CHECK == 0:
                moved = torch.stack([(a - b).abs().max() for a, b in zip(mu, before, strict=True)]).max()
                if moved <= tolerance:
                    break
        return mu

    def log_bound(self, x: Tensor) -> Tensor:
        mu = self.mean_field(x)
        entropy = sum((torch.special.entr(m) + torch.special.entr(1 - m)).sum(-1) for m in mu)
        return self.negative_energy([x.flatten(1).to(mu[0].dtype), *mu]) + entropy

    def codes(self, x: Tensor) -> Tensor:
        """μ_L, (B, units of the top layer)."""
        return self.mean_field(x)[-1]

    def reconstruct(self, x: Tensor) -> Tensor:
        """p(v | h_1 = μ_1)."""
        mu = self.mean_field(x)
        return self.probability([x, *mu], 0).view(-1, *self.shape)

    def filters(self) -> Tensor:
        """The rows of W_1, (units of the first layer, *shape)."""
        return self.rbm(1).weight.view(-1, *self.shape)

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self.rbm(1).visible_bias.copy_(torch.logit(mean.flatten().clamp(1e-3, 1 - 1e-3)))

    # --- samples ---

    def layers_of(self, state: Tensor) -> list[Tensor]:
        """States of all units, (n, units), as those of the layers, v first."""
        return list(state.split(self.sizes, 1))

    @torch.no_grad()
    def gibbs(self, h: Sequence[Tensor], known: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """A Gibbs sweep from layers `h`, v first: the even ones given the odd ones, then the odd ones given these.

        The new layers; and the same with the odd ones at the probabilities that they were drawn from. Units of v where
        `known`, (n, visible), of bools, is true stay as they are.
        """
        h = list(h)
        for i in range(0, self.depth + 1, 2):
            drawn = noise.bernoulli(self.probability(h, i))
            h[i] = drawn if i > 0 or known is None else torch.where(known, h[0], drawn)
        p = list(h)
        for i in range(1, self.depth + 1, 2):
            p[i] = self.probability(h, i)
            h[i] = noise.bernoulli(p[i])
        return h, p

    def chain_at(self, x: Tensor) -> Tensor:
        """States of all units, (n, units): v = x, and the hidden ones drawn by their mean field."""
        h = [x.flatten(1).to(self.bias(0).dtype), *map(noise.bernoulli, self.mean_field(x))]
        return torch.cat(h, 1)

    def chain_step(self, state: Tensor, k: int) -> Tensor:
        h = self.layers_of(state)
        for _ in range(k):
            h, _ = self.gibbs(h)
        return torch.cat(h, 1)

    @torch.no_grad()
    def chain_example(self, state: Tensor) -> Tensor:
        return self._example(self.layers_of(state))

    def _example(self, h: Sequence[Tensor]) -> Tensor:
        v = self.probability(h, 0) if self.grey else h[0]
        return v.reshape(-1, *self.shape)

    def _tossed(self, n: int) -> list[Tensor]:
        half = torch.full((n, sum(self.sizes)), 0.5, device=self.device, dtype=self.bias(0).dtype)
        return self.layers_of(noise.bernoulli(half))

    @torch.no_grad()
    def sample(self, n: int, burn_in: int | None = None) -> Tensor:
        """v of n independent chains from fair coin tosses, after `burn_in` sweeps (None is the model's own)."""
        h = self._tossed(n)
        for _ in range(self.burn_in if burn_in is None else burn_in):
            h, _ = self.gibbs(h)
        return self._example(h)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """By `burn_in` Gibbs sweeps with the known units clamped, from fair coin tosses: the chain's law is
        p(missing | known)."""
        h, known = self._tossed(len(x)), known.flatten(1)
        h[0] = torch.where(known, x.flatten(1).to(h[0].dtype), h[0])
        for _ in range(self.burn_in):
            h, _ = self.gibbs(h, known)
        return torch.where(known.view_as(x), x, self._example(h))

    def completion(self, known: Tensor) -> Law:
        return "approximate" if self.grey else "chain"

    # --- its classifier ---

    @property
    def knows_labels(self) -> bool:
        return self._is_classifier

    def own_log_class(self, x: Tensor) -> Tensor | None:
        return None

    def features(self, x: Tensor) -> Tensor:
        """v, μ_2, …, μ_L, (B, units)."""
        return torch.cat([x.flatten(1), *self.mean_field(x)[1:]], 1)

    def start_classifier(self) -> None:
        """From the couplings; the softmax is not the machine's, and stays as it is."""
        assert isinstance(self.classifier, Sweep)
        layers = range(1, self.depth + 1)
        self.classifier.begin([self.rbm(i).weight for i in layers], [self.bias(i) for i in layers])

    # --- the partition function ---

    def tempered_units(self, x: Tensor) -> Tensor:
        """Mean field of the odd layers, (B, units)."""
        return torch.cat(self.mean_field(x)[::2], 1)

    def tempered(self, mean: Tensor, smoothing: float = 0.05) -> TemperedPath:
        """The path of `RBM.tempered` to the machine as an RBM over the odd layers."""
        return self.bipartite().tempered(mean, smoothing)

    @torch.no_grad()
    def log_partition(self) -> Tensor | None:
        """log Z in nats, exact, float64, where the odd or the even layers have few units; else None."""
        machine = self.bipartite()
        return machine.log_partition() if machine.enumerable else None

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B,), exact: a sum over the states of the odd layers with the even ones summed out.

        Raises:
            UsageError: the odd layers have more than `limit` units.
        """
        machine = self.bipartite()
        if machine.visible > self.limit:
            raise UsageError(
                f"the exact likelihood is a sum over 2^{machine.visible} states of the layers with odd numbers, which"
                f" may have {self.limit} units at most; the metric `bound` bounds it"
            )
        v, size = x.flatten(1).double(), self.sizes[0]
        W, odd, even = (p.double() for p in (machine.weight, machine.visible_bias, machine.hidden_bias))
        joint = []
        for s in states(machine.visible, W).split(1 << 12):
            above = s @ odd + softplus(s @ W[size:].t() + even[size:]).sum(-1)
            joint.append(torch.logsumexp(v @ (W[:size] @ s.t()) + above, 1))
        total = torch.logsumexp(torch.stack(joint), 0) + v @ even[:size]
        return (total - machine.log_partition().to(total)).float()
