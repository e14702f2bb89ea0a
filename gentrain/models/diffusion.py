"""What diffusion models share: the contract, and the chain that turns data into noise.

Times are whole numbers from 1 to T, (B,); time 0 is the data. ᾱ_t is the share of the data's variance that is left.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from gentrain.models.base import Generative

Schedule = Literal["linear", "cosine"]
Variance = Literal["posterior", "beta"]

LARGEST_BETA = 0.999
"""A step that leaves nothing can't be undone."""
FIRST = 0.05


class Diffuses(Generative):
    """p(x) = ∫ p(x_T) Π_t p(x_{t-1}|x_t) dx_{1…T}, trained to undo a fixed chain q(x_t|x_{t-1}) that ends in noise.

    log p(x) >= -L_T - Σ_t L_{t-1} with L_T = KL(q(x_T|x) ‖ p(x_T)), L_{t-1} = E KL(q(x_{t-1}|x_t, x) ‖ p(x_{t-1}|x_t))
    and L_0 = -E log p(x|x_1) (Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5). For levels p(x) is a probability of
    the levels themselves, whatever the support; for reals a density.

    Attributes:
        steps: T.
        guidance: how far samples of p(x|y) lean on the label. Any but 1 takes a network that knows examples without.
    """

    steps: int
    guidance: float = 1.0

    @abstractmethod
    def noised(self, x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """The draw of x_t from q(x_t|x) that standard normal `epsilon` (B, *shape) gives, in the chain's own unit."""

    @abstractmethod
    def error(self, x: Tensor, t: Tensor, epsilon: Tensor, y: Tensor | None = None) -> Tensor:
        """The squared error of what the network predicts of `noised(x, t, epsilon)`, the mean over elements, (B,)."""

    @abstractmethod
    def share(self, t: Tensor) -> Tensor:
        """The squared error of x_0 itself that goes with an `error` of 1, (B,)."""

    @abstractmethod
    def snr(self, t: Tensor) -> Tensor:
        """ᾱ_t/(1 - ᾱ_t), the signal-to-noise ratio, (B,)."""

    @abstractmethod
    def term(self, x: Tensor, t: Tensor, epsilon: Tensor, y: Tensor | None = None, clip: bool = True) -> Tensor:
        """L_{t-1} in nats, (B,), an unbiased estimate by the one draw of x_t that `epsilon` gives. Without `clip` what
        is predicted for x_0 may leave the range of the data: gradients reach it there too, and it is a bound still."""

    @abstractmethod
    def prior_term(self, x: Tensor) -> Tensor:
        """L_T in nats, (B,). Nothing can be learned of it."""

    @abstractmethod
    def forth(self, x: Tensor, t: int) -> Distribution:
        """q(x_t|x_{t-1} = x), batch shape (B,); x_0 is an example in `support`, other x are in the chain's unit."""

    @abstractmethod
    def back(self, x: Tensor, t: int, y: Tensor | None = None) -> Distribution:
        """p(x_{t-1}|x_t = x), batch shape (B,); for t = 1 of examples in `support`."""

    @property
    @abstractmethod
    def proposal(self) -> Tensor:
        """Probabilities of times 1…T by which the sum of the terms is estimated with little variance, (T,)."""

    @torch.no_grad()
    def bound(self, x: Tensor, y: Tensor | None = None, draws: int | None = None) -> Tensor:
        """The lower bound of log p(x), or of log p(x|y), in nats, (B,), float64, estimated without bias.

        Args:
            draws: times, besides 1, at which terms are taken, evenly by `proposal`; None takes all, one draw of each.
        """
        rows = len(x)

        def term(t: Tensor) -> Tensor:
            return self.term(x, t, torch.randn(x.shape, device=x.device), y).double()

        total = self.prior_term(x).double() + term(torch.ones(rows, dtype=torch.int64, device=x.device))
        if draws is None:
            for t in range(2, self.steps + 1):
                total += term(torch.full((rows,), t, device=x.device))
        elif self.steps > 1:
            p = self.proposal[1:].double()
            p = p / p.sum()
            ends, u = p.cumsum(0), torch.rand(rows, dtype=torch.float64, device=x.device)
            for k in range(draws):
                i = torch.searchsorted(ends, (u + k) / draws, right=True).clamp_(max=len(p) - 1)
                total += term(i + 2) / (draws * p[i])
        return -total


def betas(schedule: Schedule, steps: int) -> Tensor:
    """β_1…β_T, float64, at most 0.999: the share of the variance that each step replaces by noise.

    `linear` rises from 0.1/T to 20/T: from 1e-4 to 0.02 for T = 1000 (Ho et al. 2020). `cosine` has
    ᾱ_t = f(t)/f(0), f(t) = cos²(π/2 (t/T + s)/(1 + s)), s = 0.008 (Nichol & Dhariwal 2021, eq. 17).

    >>> [f"{beta:.5f}" for beta in betas("linear", 1000)[[0, 1, -1]]]
    ['0.00010', '0.00012', '0.02000']
    """
    if schedule == "linear":
        return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64).clamp(max=LARGEST_BETA)
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos(math.pi / 2 * (t + 0.008) / 1.008).square()
    return (1 - f[1:] / f[:-1]).clamp(max=LARGEST_BETA)


class Chain(nn.Module):
    """q(x_t|x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I), its moments, and the terms of the bound that p(x_{t-1}|x_t) =
    N(μ, σ_t² I) makes with them, where μ is the posterior's mean for a predicted x̂_0 (Ho et al. 2020, section 2).

    Args:
        schedule, steps: of `betas`.
        variance: σ_t² is that of the posterior, β̃_t = β_t (1 - ᾱ_{t-1})/(1 - ᾱ_t), which would be right if x were
            known, or β_t, if x were N(0, I). At t = 1, where β̃ is 0, β̃_2 stands for it.

    Buffers, float32, (T + 1,), indexed by t:
        signal, noise: √ᾱ_t and √(1 - ᾱ_t): q(x_t|x) = N(√ᾱ_t x, (1 - ᾱ_t) I).
        snr: ᾱ_t/(1 - ᾱ_t).
        weight, constant: KL(q(x_{t-1}|x_t, x) ‖ p(x_{t-1}|x_t)) = weight |x - x̂_0|² + constant per element, t >= 2.
        deviation: σ_t.
        proposal: probabilities (T,) of times by which the terms' sum is estimated: about in proportion to the terms, as
            log SNR falls. A share of `FIRST` is for t = 1, whose term is of another kind.
    """

    signal: Tensor
    noise: Tensor
    snr: Tensor
    weight: Tensor
    constant: Tensor
    deviation: Tensor
    proposal: Tensor

    def __init__(self, schedule: Schedule, steps: int, variance: Variance):
        super().__init__()
        self.steps = steps
        self.variance: Variance = variance
        beta = torch.cat([torch.zeros(1, dtype=torch.float64), betas(schedule, steps)])
        left = (1 - beta).log().cumsum(0).exp()
        lost = -torch.expm1((-beta).log1p().cumsum(0))
        self.alpha_bar: list[float] = left.tolist()
        before = torch.cat([left[:1], left[:-1]])
        posterior = beta * torch.cat([lost[:1], lost[:-1]]) / lost.clamp(min=1e-300)
        of_x0 = before.sqrt() * beta / lost.clamp(min=1e-300)
        squared = beta.clone() if variance == "beta" else posterior.clone()
        if variance == "posterior":
            squared[1] = posterior[2] if steps > 1 else beta[1]
        ratio = posterior[2:] / squared[2:]
        weight, constant = torch.zeros(2, steps + 1, dtype=torch.float64)
        weight[2:] = of_x0[2:].square() / (2 * squared[2:])
        constant[2:] = (ratio - 1 - ratio.log()) / 2
        snr = left / lost
        # Where little of the signal is left, noise is nearly all there is to predict, and a network hardly errs.
        share = (snr[1:-1] / snr[2:]).log() * (0.05 + 0.95 * left[2:])
        proposal = (
            torch.cat([torch.full((1,), FIRST), (1 - FIRST) * share / share.sum()]) if steps > 1 else snr[1:] * 0 + 1
        )
        tables = {"signal": left.sqrt(), "noise": lost.sqrt(), "snr": snr, "weight": weight, "constant": constant}
        for name, table in (tables | {"deviation": squared.sqrt(), "proposal": proposal}).items():
            self.register_buffer(name, table.float(), persistent=False)

    def noised(self, x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        return over(self.signal[t], x) * x + over(self.noise[t], x) * epsilon

    def prior_term(self, x: Tensor) -> Tensor:
        """KL(q(x_T|x) ‖ N(0, I)), (B,)."""
        left = self.alpha_bar[-1]
        return 0.5 * (left * (x.square() - 1) - math.log1p(-left)).flatten(1).sum(1)

    def towards(self, x: Tensor, x0: Tensor, t: int, s: int, eta: float) -> Tensor:
        """The mean of x_s given x_t = x and x_0, s < t, in that chain of the same q(x_t|x_0) whose steps backward have
        the deviation η √β̃ (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16): 1 is q's own, 0 has no noise."""
        wanted, now = self.alpha_bar[s], self.alpha_bar[t]
        sigma = eta * self.backward_deviation(t, s, "posterior")
        epsilon = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
        return math.sqrt(wanted) * x0 + math.sqrt(max(1 - wanted - sigma**2, 0.0)) * epsilon

    def backward_deviation(self, t: int, s: int, variance: Variance) -> float:
        """That of q(x_s|x_t, x_0), √β̃; or √β, that of q(x_t|x_s)."""
        wanted, now = self.alpha_bar[s], self.alpha_bar[t]
        beta = 1 - now / wanted
        return math.sqrt(beta if variance == "beta" else beta * (1 - wanted) / (1 - now))

    def onwards(self, x: Tensor, s: int, t: int) -> tuple[Tensor, float]:
        """The mean and the deviation of q(x_t|x_s = x), s < t."""
        kept = self.alpha_bar[t] / self.alpha_bar[s]
        return math.sqrt(kept) * x, math.sqrt(1 - kept)


def over(values: Tensor, x: Tensor) -> Tensor:
    """One number an example, (B,), beside x (B, *shape)."""
    return values.view(-1, *(1 for _ in x.shape[1:]))


def independent_normal(mean: Tensor, deviation: Tensor | float) -> Independent:
    """N(mean, deviation² I) of examples, batch shape (B,)."""
    deviation = torch.as_tensor(deviation, dtype=mean.dtype, device=mean.device)
    return Independent(Normal(mean, deviation, validate_args=False), mean.dim() - 1, validate_args=False)


class DiscretizedNormal(Distribution):
    """K levels -1…1 with what N(mean, deviation²) has in their bins of width 2/(K-1), the outermost with the tails (Ho
    et al. 2020, eq. 13).

    Args:
        mean: any shape. deviation: a number of that shape or one for all. levels: K.

    >>> p = DiscretizedNormal(torch.tensor(0.3), torch.tensor(0.5), levels=3)
    >>> [round(p.log_prob(torch.tensor(x)).exp().item(), 4) for x in (-1.0, 0.0, 1.0)]
    [0.0548, 0.6006, 0.3446]
    """

    def __init__(self, mean: Tensor, deviation: Tensor, levels: int):
        self.loc, self.deviation, self.levels = mean, deviation, levels
        super().__init__(mean.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        half = 1 / (self.levels - 1)
        low, high = (value - half - self.loc) / self.deviation, (value + half - self.loc) / self.deviation
        # Φ(b) - Φ(a) = Φ(-a) - Φ(-b): on the left of the middle no difference is one of numbers near 1
        flip = low > 0
        a, b = torch.where(flip, -high, low), torch.where(flip, -low, high)
        log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
        inner = log_b + torch.log(-torch.expm1((log_a - log_b).clamp(max=-1e-7)))
        lowest, highest = value < -1 + half, value > 1 - half
        tail = torch.special.log_ndtr(torch.where(lowest, high, -low))
        return torch.where(lowest | highest, tail, inner)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        shape = (*sample_shape, *self.loc.shape)
        x = self.loc + self.deviation * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        top = self.levels - 1
        return ((x + 1) * top / 2).round().clamp(0, top) * (2 / top) - 1

    def expand(self, batch_shape: torch.Size, _instance: Distribution | None = None) -> DiscretizedNormal:
        return DiscretizedNormal(self.loc.expand(batch_shape), self.deviation, self.levels)
