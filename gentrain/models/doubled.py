"""What a deep Boltzmann machine is made of: the RBMs that its layers are trained as, and the network they become."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gentrain import noise
from gentrain.models.harmonium import BinaryHidden, BinaryVisible
from gentrain.types import NonNegativeInt, PositiveInt, Shape


class DoubledRBM(BinaryVisible, BinaryHidden):
    """An RBM of two layers of a deep Boltzmann machine, in which either may hear the other twice as loudly.

    p(h_j = 1 | v) = σ(u (c_j + W_j v)), p(v_i = 1 | h) = σ(d (b_i + Wᵀ_i h)). A factor of 2 stands in for the neighbour
    that the layer will have on its other side (Salakhutdinov & Hinton 2009, section 3.1): with u = 2, d = 1 hidden
    units see two copies of v, with u = 1, d = 2 visible ones two copies of h, and u = d = 2 doubles the RBM's weights.

    Its chain takes both copies to be the same, so exp(-F), F of two equal copies, is not its stationary distribution.
    `energy_gradient` is ∂F/max(u, d): the doubling is left to the learning rate.

    Args:
        shape: of one example. hidden: units.
        up: u. down: d, both 1 or 2.
        burn_in: steps of `sample`.

    >>> rbm = DoubledRBM((4,), hidden=2, up=2)
    >>> rbm.hidden_field(torch.ones(1, 4)).allclose(2 * rbm.weight.sum(1))
    True
    """

    def __init__(
        self,
        shape: Shape,
        hidden: PositiveInt,
        up: PositiveInt = 1,
        down: PositiveInt = 1,
        burn_in: NonNegativeInt = 200,
    ):
        super().__init__(shape, hidden)
        self.up, self.down, self.burn_in = up, down, burn_in

    def hidden_field(self, x: Tensor) -> Tensor:
        return self.up * super().hidden_field(x)

    def visible_field(self, h: Tensor) -> Tensor:
        return self.down * super().visible_field(h)

    def free_energy(self, x: Tensor) -> Tensor:
        """-max(u, d) bᵀv - max(1, d/u) Σ_j softplus(u (c_j + W_j v)) in nats, (B,)."""
        v = x.flatten(1).to(self.weight.dtype)
        hidden = softplus(self.hidden_field(v)).sum(-1)
        return -max(self.up, self.down) * (v @ self.visible_bias) - max(1.0, self.down / self.up) * hidden

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n independent chains from fair coin tosses, after `burn_in` steps."""
        return self.gibbs(noise.bernoulli(torch.full((n, *self.shape), 0.5, device=self.device)), self.burn_in)


class Sweep(nn.Module):
    """A sweep of mean field as a network: a pass up in which layers also hear from the mean field of those above.

    h_l = σ(W_l h_{l-1} + V_l μ_{l+1} + c_l), h_0 = v, μ given, with a softmax on top of h_L. It begins at V_l =
    W_{l+1}ᵀ, where h_l is about μ_l (Salakhutdinov & Hinton 2009, section 3.3).

    Args:
        sizes: units of v, h_1, …, h_L. classes: labels.
    """

    def __init__(self, sizes: Sequence[int], classes: int):
        super().__init__()
        self.inputs = [sizes[0], *sizes[2:]]
        self.up = nn.ModuleList([nn.Linear(below, units) for below, units in pairwise(sizes)])
        self.down = nn.ModuleList([nn.Linear(above, units, bias=False) for units, above in pairwise(sizes[1:])])
        self.top = nn.Linear(sizes[-1], classes)

    @torch.no_grad()
    def begin(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        """Take up W_1 … W_L and c_1 … c_L; the softmax is no machine's, and stays as it is."""
        for layer, weight, bias in zip(self.up.children(), weights, biases, strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})
        for layer, weight in zip(self.down.children(), weights[1:], strict=True):
            layer.load_state_dict({"weight": weight.t()})

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of v, μ_2, …, μ_L, (B, units)."""
        h, *above = x.split(self.inputs, 1)
        *up, last = self.up
        for below, down, mu in zip(up, self.down, above, strict=True):
            h = torch.sigmoid(below(h) + down(mu))
        return self.top(torch.sigmoid(last(h)))
