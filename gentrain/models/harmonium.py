"""Energy models in two layers: what an RBM and its relatives share."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gentrain import noise
from gentrain.models.base import Completes, Law
from gentrain.models.energies import Harmonium, Tempers
from gentrain.types import NonNegativeInt, PositiveInt, Shape


class Bilinear(Harmonium):
    """E(v, h) = e(h) - hᵀWv - bᵀv, whatever kinds of units v and h are.

    A family's e(h) holds the hidden biases c, such that E[h | v] is a function of the field c + Wv, and the gradient
    of the log-likelihood with respect to c is the difference of E[h] as it is that of E[v] with respect to b.

    Args:
        visible, hidden: units of either layer.

    Parameters: `weight` W (hidden, visible), `visible_bias` b, `hidden_bias` c.
    """

    def __init__(self, visible: PositiveInt, hidden: PositiveInt):
        super().__init__()
        self.visible, self.hidden = visible, hidden
        self.weight = nn.Parameter(0.01 * torch.randn(hidden, visible))  # Hinton 2010, section 8
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    # Both products name `self.weight` itself: autocast converts a parameter once a step, a view of it every time.
    def hidden_field(self, x: Tensor) -> Tensor:
        """c + Wv, (B, hidden)."""
        return nn.functional.linear(x.flatten(1), self.weight, self.hidden_bias)

    def visible_field(self, h: Tensor) -> Tensor:
        """b + Wᵀh, (B, visible)."""
        return torch.addmm(self.visible_bias, h, self.weight)

    def energy_gradient(self, data: tuple[Tensor, Tensor], chain: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        (v, h), (v_chain, h_chain) = ((x.flatten(1), h) for x, h in (data, chain))
        share, share_chain = 1 / len(h), 1 / len(h_chain)
        if torch.is_autocast_enabled(v.device.type):
            # One product for both means: it is then their difference that is rounded, not each of them.
            signed = torch.cat([h * -share, h_chain * share_chain])
            weight = (signed.t() @ torch.cat([v.to(v_chain.dtype), v_chain])).float()
        else:
            weight = torch.mm(h.t(), v).addmm_(h_chain.t(), v_chain, beta=-share, alpha=share_chain)
        return {
            "weight": weight,  # ∂E/∂W = -h vᵀ
            "visible_bias": _mean(v_chain) - _mean(v),
            "hidden_bias": _mean(h_chain) - _mean(h),
        }


def _mean(x: Tensor) -> Tensor:
    return x.sum(0, dtype=torch.float32) / len(x)


class BinaryVisible(Bilinear):
    """Binary v: p(v_i = 1 | h) = σ(b_i + Wᵀ_i h), whatever kind of units h is.

    Args:
        shape: of one example, any; it is flattened inside.
        hidden: number of hidden units.
    """

    support = "binary"

    def __init__(self, shape: Shape, hidden: PositiveInt):
        super().__init__(math.prod(shape), hidden)
        self.shape = tuple(shape)

    def visible_probability(self, h: Tensor) -> Tensor:
        """p(v = 1 | h), (B, *shape)."""
        return torch.sigmoid(self.visible_field(h)).view(-1, *self.shape)

    def draw_visible(self, field: Tensor) -> Tensor:
        """v ~ p(v | h) given b + Wᵀh, (B, *shape)."""
        return noise.bernoulli(torch.sigmoid(field)).view(-1, *self.shape)

    def sample_visible(self, h: Tensor) -> Tensor:
        return self.draw_visible(self.visible_field(h))

    @torch.no_grad()
    def gibbs(self, x: Tensor, k: int) -> Tensor:
        for _ in range(k):
            x = self.sample_visible(self.sample_hidden(self.hidden_probability(x)))
        return x


class BinaryHidden(Bilinear, Tempers):
    """Binary h, e(h) = -cᵀh: p(h_j = 1 | v) = σ(c_j + W_j v), whatever kind of units v is."""

    @abstractmethod
    def draw_visible(self, field: Tensor) -> Tensor:
        """v ~ p(v | h) given b + Wᵀh, (B, visible)."""

    def hidden_probability(self, x: Tensor) -> Tensor:
        """p(h = 1 | v), (B, hidden)."""
        return torch.sigmoid(self.hidden_field(x))

    def sample_hidden(self, probability: Tensor) -> Tensor:
        return noise.bernoulli(probability)

    def step_at(self, h: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = self.draw_visible(beta * self.visible_field(h))
        field = self.hidden_field(v)
        h = noise.bernoulli(torch.sigmoid(beta * field))
        energy = -(h * field).sum(-1, dtype=torch.float32)
        return v, h, energy - (v.flatten(1) * self.visible_bias).sum(-1, dtype=torch.float32)

    def energy_of_units(self, v: Tensor) -> Tensor:
        """-bᵀv - Σ_j softplus(c_j + W_j v) in nats, (B,): the free energy of the visible units' states."""
        v = v.flatten(1).to(self.weight.dtype)
        return -(v @ self.visible_bias) - softplus(nn.functional.linear(v, self.weight, self.hidden_bias)).sum(-1)


class Clamped(Harmonium, Completes):
    """Completes by its own chain, with the known units clamped: the visible units are independent given h, so that the
    chain's law is p(missing | known)."""

    burn_in: int

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        """By `burn_in` Gibbs steps from where chains start."""
        x = torch.where(known, x, self.start(len(x)))
        for _ in range(self.burn_in):
            x = torch.where(known, x, self.gibbs(x, 1))
        return x

    def completion(self, known: Tensor) -> Law:
        return "chain"


class LinearRBM(BinaryVisible):
    """An RBM whose hidden units are real: E(v, h) = ‖h - c‖²/2 - hᵀWv - bᵀv (Hinton & Salakhutdinov 2006).

    p(h | v) = N(c + Wv, I), F(v) = -bᵀv - cᵀWv - ‖Wv‖²/2 + a constant. It makes the codes of deep autoencoders, which
    shall not be confined to [0, 1]. The reals have no bound, so it wants a smaller learning rate than an RBM.

    Args:
        shape: of one example. hidden: units. burn_in: Gibbs steps of `sample`.

    >>> rbm = LinearRBM((4,), hidden=2)
    >>> rbm.hidden_probability(torch.ones(3, 4)).shape, rbm.sample(3).shape
    (torch.Size([3, 2]), torch.Size([3, 4]))
    """

    def __init__(self, shape: Shape, hidden: PositiveInt, burn_in: NonNegativeInt = 200):
        super().__init__(shape, hidden)
        self.burn_in = burn_in

    def hidden_probability(self, x: Tensor) -> Tensor:
        """E[h | v], (B, hidden): no probability, but what takes its place."""
        return self.hidden_field(x)

    def sample_hidden(self, probability: Tensor) -> Tensor:
        return probability + noise.normal(*probability.shape, device=probability.device, dtype=probability.dtype)

    def free_energy(self, x: Tensor) -> Tensor:
        v = x.flatten(1).to(self.weight.dtype)
        product = nn.functional.linear(v, self.weight)
        return -(v @ self.visible_bias) - product @ self.hidden_bias - 0.5 * product.square().sum(-1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n independent chains from fair coin tosses, after `burn_in` steps."""
        return self.gibbs(noise.bernoulli(torch.full((n, *self.shape), 0.5, device=self.device)), self.burn_in)
