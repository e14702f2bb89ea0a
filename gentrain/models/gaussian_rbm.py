"""The restricted Boltzmann machine with Gaussian visible units."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.base import Codes, Filters, Reconstructs
from gentrain.models.energies import Annealed, Enumerable, TemperedPath
from gentrain.models.enumeration import Remembered, draw_states, log_total, quadratic
from gentrain.models.harmonium import Clamped
from gentrain.models.standard import Standardised
from gentrain.types import NonNegativeInt, PositiveFloat, PositiveInt, Shape

LOG_2PI = math.log(2 * math.pi)


class GaussianRBM(Standardised, Clamped, Enumerable, Annealed, Codes, Filters, Reconstructs):
    """p(z) = Σ_h exp(-E(z, h)) / Z, z real and h binary, E(z, h) = Σ_i (z_i - b_i)²/(2σ_i²) - cᵀh - Σ_i z_i W_iᵀh/σ_i²
    (Hinton & Salakhutdinov 2006; in the parametrisation of Cho et al. 2011, ICANN, "Improved learning of Gaussian-
    Bernoulli restricted Boltzmann machines").

    z = (x - mean)/scale are the data, each element standardised by the training set's moments; log p(x) = log p(z) -
    Σ_i log scale_i, and F(x) has that sum too. p(z | h) = N(b + Wᵀh, diag σ²), from which samples are drawn with their
    noise, and p(h_j = 1 | z) = σ(c_j + W_j (z/σ²)): a mixture of 2^hidden Gaussians, whose weights are known up to Z.

    Args:
        shape: of one example, any; it is flattened inside.
        hidden: number of hidden units.
        std: σ, all alike, where training begins, in the data's standard deviations. At 1 nothing would draw W away
            from 0 in data without correlations, such as a ring.
        learn_std: whether every σ_i is learned, by its logarithm. Only then can the model be sharper than `std`.
        floor: the least σ_i: what hardly varies would otherwise be learned ever more sharply.
        burn_in: Gibbs steps of `sample` and `complete`.

    Parameters: `weight` W (hidden, visible), `visible_bias` b, `hidden_bias` c, `log_std` log σ.

    Raises:
        UsageError: std is below floor.

    >>> rbm = GaussianRBM((2,), hidden=3, burn_in=10)
    >>> x = rbm.sample(5)
    >>> x.shape, rbm.free_energy(x).shape, rbm.hidden_probability(x).shape, rbm.log_prob(x).shape
    (torch.Size([5, 2]), torch.Size([5]), torch.Size([5, 3]), torch.Size([5]))
    """

    support, sampling = "real", ("burn_in",)

    def __init__(
        self,
        shape: Shape,
        hidden: PositiveInt = 100,
        std: PositiveFloat = 0.5,
        learn_std: bool = True,
        floor: PositiveFloat = 0.01,
        burn_in: NonNegativeInt = 200,
    ):
        super().__init__(shape, each=True)
        if std < floor:
            raise UsageError(f"model.std={std:g}: lies below model.floor={floor:g}")
        self.visible, self.hidden = math.prod(shape), hidden
        self.floor, self.burn_in = floor, burn_in
        self.weight = nn.Parameter(0.01 * torch.randn(hidden, self.visible))
        self.visible_bias = nn.Parameter(torch.zeros(self.visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.log_std = nn.Parameter(torch.full((self.visible,), math.log(std)), requires_grad=learn_std)
        self._remembered = Remembered()

    @property
    def _log_std(self) -> Tensor:
        return self.log_std.clamp(min=math.log(self.floor))

    @property
    def std(self) -> Tensor:
        """σ, (visible,)."""
        return self._log_std.exp()

    def hidden_field(self, z: Tensor) -> Tensor:
        """c + W (z/σ²) of z (B, visible), (B, hidden)."""
        return linear(z * torch.exp(-2 * self._log_std), self.weight, self.hidden_bias)

    def hidden_probability(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.hidden_field(self.inward(x)))

    def sample_hidden(self, probability: Tensor) -> Tensor:
        return noise.bernoulli(probability)

    def _centre(self, h: Tensor) -> Tensor:
        """b + Wᵀh, (B, visible)."""
        return torch.addmm(self.visible_bias, h, self.weight)

    def sample_visible(self, h: Tensor) -> Tensor:
        centre = self._centre(h)
        return self.outward(centre + self.std * noise.normal(*centre.shape, device=centre.device))

    def free_energy(self, x: Tensor) -> Tensor:
        z = self.inward(x)
        square = ((z - self.visible_bias) / self.std).square().sum(-1)
        return 0.5 * square - softplus(self.hidden_field(z)).sum(-1) + self.log_scale

    def energy_gradient(self, data: tuple[Tensor, Tensor], chain: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        means = [self._energy_gradient(self.inward(x), h) for x, h in (data, chain)]
        return {name: mean - means[1][name] for name, mean in means[0].items()}

    def _energy_gradient(self, z: Tensor, h: Tensor) -> dict[str, Tensor]:
        """The mean of ∂E(z, h) over pairs."""
        precision, n = torch.exp(-2 * self._log_std), len(z)
        zh = (h.t() @ z).float() / n
        away = z - self.visible_bias
        found = {
            "weight": -zh * precision,
            "visible_bias": -away.mean(0, dtype=torch.float32) * precision,
            "hidden_bias": -h.mean(0, dtype=torch.float32),
        }
        if self.log_std.requires_grad:
            # of Σ (z-b)²/(2σ²) - Σ z Wᵀh/σ²; a σ that lies at the floor stays there
            slope = (2 * (zh * self.weight).sum(0) - away.square().mean(0, dtype=torch.float32)) * precision
            found["log_std"] = torch.where(self.log_std >= math.log(self.floor), slope, torch.zeros_like(slope))
        return found

    @torch.no_grad()
    def gibbs(self, x: Tensor, k: int) -> Tensor:
        for _ in range(k):
            x = self.sample_visible(self.sample_hidden(self.hidden_probability(x)))
        return x

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n independent chains after `burn_in` steps from N(mean, scale²); with their noise."""
        return self.gibbs(self.start(n), self.burn_in)

    def codes(self, x: Tensor) -> Tensor:
        return self.hidden_probability(x)

    def filters(self) -> Tensor:
        """The rows of W, in the data's unit, (hidden, *shape)."""
        return (self.weight * self.scale).view(-1, *self.shape)

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | h] at h = p(h | x): one mean-field step."""
        return self.outward(self._centre(self.hidden_probability(x)))

    # --- exactly, by the states of the hidden units ---

    @property
    def enumeration_bits(self) -> int:
        return self.hidden

    def _marginal(self) -> tuple[Tensor, Tensor, Tensor]:
        """∫ exp(-E(z, h)) dz = exp(aᵀh + hᵀGh/2 + e): a and G, and e, in float64."""
        if not self.enumerable:
            raise UsageError(
                f"the exact partition function of {self.hidden} hidden units is a sum over 2^{self.hidden} Gaussians;"
                f" {self.limit} units are the most; metrics=[ais] estimates it"
            )
        host = "cpu" if self.device.type == "mps" else self.device  # Apple's GPUs have no float64
        W, b, c, log_std = (
            p.detach().to(host).double() for p in (self.weight, self.visible_bias, self.hidden_bias, self._log_std)
        )
        scaled = W * torch.exp(-2 * log_std)
        return c + scaled @ b, scaled @ W.t(), 0.5 * self.visible * LOG_2PI + log_std.sum()

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """log Z in nats, exact, a float64 scalar: the sum over the states of the hidden units of the integral over z.
        Kept until a parameter changes.

        Raises:
            UsageError: there are too many.
        """
        bias, coupling, constant = self._marginal()
        parameters = [self.weight, self.visible_bias, self.hidden_bias, self.log_std]
        return self._remembered(parameters, lambda: log_total(quadratic(bias, coupling), bias) + constant)

    @torch.no_grad()
    def exact_sample(self, n: int) -> Tensor:
        bias, coupling, _ = self._marginal()
        drawn = draw_states(quadratic(bias, coupling), n, self.hidden, bias)
        return self.sample_visible(drawn.to(self.weight))

    def tempered(self, mean: Tensor, smoothing: float = 0.05) -> TemperedPath:
        """The path from independent Gaussians N(m, (1 + s)²) around the standardised mean example m, and h of fair
        coins: E_β(z, h) = (1-β) Σ_i (z_i - m_i)²/(2(1+s)²) + β E(z, h)."""
        return _Path(self, mean, 1 + smoothing)


class _Visible(NamedTuple):
    """n states of the visible units with what every β needs of them."""

    z: Tensor  # (n, visible)
    field: Tensor  # c + W (z/σ²), (n, hidden)
    own: Tensor  # Σ (z-b)²/(2σ²), (n,), float64
    base: Tensor  # Σ (z-m)²/(2 width²), (n,), float64


class _Path(TemperedPath[_Visible]):
    """Given h, and given z, each β's units are independent: one transition is a step of Gibbs sampling."""

    def __init__(self, rbm: GaussianRBM, mean: Tensor, width: float):
        self.rbm = rbm
        self.host = torch.device("cpu") if rbm.device.type == "mps" else rbm.device  # Apple's GPUs have no float64
        with torch.no_grad():
            self.mean = rbm.inward(mean.to(rbm.device)[None])[0].to(self.host)
            self.W, self.b, self.c, self.precision = (
                p.to(self.host) for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias, torch.exp(-2 * rbm._log_std))
            )
        self.width = width
        self.log_scale = float(rbm.log_scale)
        # of x: z's unit is part of its volume, as it is of F's
        self.log_partition = rbm.visible * (0.5 * LOG_2PI + math.log(width)) + rbm.hidden * math.log(2)

    def start(self, n: int) -> _Visible:
        return self._state(self.mean + self.width * torch.randn(n, len(self.b), device=self.host))

    def state(self, x: Tensor) -> _Visible:
        return self._state(self.rbm.inward(x).to(self.host))

    def _state(self, z: Tensor) -> _Visible:
        own = 0.5 * ((z - self.b).double().square() * self.precision).sum(-1)
        base = 0.5 * ((z - self.mean).double() / self.width).square().sum(-1)
        return _Visible(z, linear(z * self.precision, self.W, self.c), own, base)

    def example(self, state: _Visible) -> Tensor:
        return self.rbm.outward(state.z.to(self.rbm.device))

    def log_prob(self, state: _Visible, beta: float) -> Tensor:
        hidden = softplus(beta * state.field).sum(-1, dtype=torch.float64)
        return hidden - (1 - beta) * state.base - beta * state.own - self.log_scale

    def transition(self, state: _Visible, beta: float) -> _Visible:
        h = noise.bernoulli(torch.sigmoid(beta * state.field))
        before, here = (1 - beta) / self.width**2, beta * self.precision
        centre = (before * self.mean + here * torch.addmm(self.b, h, self.W)) / (before + here)
        return self._state(centre + torch.randn_like(centre) / (before + here).sqrt())
