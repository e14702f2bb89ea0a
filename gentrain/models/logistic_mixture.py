"""Heads of image models whose channels are conditioned linearly: a mixture of logistics over levels, and bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentrain.models.likelihoods import MARGIN, DiscretizedLogistic
from gentrain.models.raster import Head


def pairs(channels: int) -> int:
    """How many channels each channel has before it, in all."""
    return channels * (channels - 1) // 2


def shifts(coefficients: Tensor, x: Tensor) -> Tensor:
    """Σ_{j<c} a_cj x_j for each channel c: a (B, C (C-1) / 2, M, h, w), x (B, C, h, w) -> (B, C, M, h, w)."""
    b, channels, *sides = x.shape
    found, used = [coefficients.new_zeros(b, coefficients.shape[2], *sides)], 0
    for c in range(1, channels):
        found.append((coefficients[:, used : used + c] * x[:, :c, None]).sum(1))
        used += c
    return torch.stack(found, 1)


class LogisticMixture(Head):
    """p(x) = Σ_m π_m Π_c P(x_c; μ_mc + Σ_{j<c} a_mcj x_j, s_mc), each P a logistic rounded to the levels 0…K-1.

    The channels x_c of one pixel share the choice of m (Salimans et al. 2017, arXiv:1701.05517, section 2.2). π is a
    softmax, a the tanh of a raw number, and levels lie in [-1, 1] where they are multiplied. As a product of
    conditionals, channel c is the mixture with weights π_m Π_{j<c} P(x_j | m), normalised: for it `parameters_of` gives
    their logarithms, M means and M log-scales.

    Args:
        shape: of one image, (C, H, W). levels: K. mixtures: M.

    >>> head = LogisticMixture((1, 1, 1), levels=4, mixtures=2)
    >>> x, raw = torch.arange(4).view(4, 1, 1, 1), torch.randn(1, head.outputs, 1, 1).expand(4, -1, 1, 1)
    >>> p = head.log_prob(head.parameters_of(raw, x, (slice(None), slice(None))), x).exp()
    >>> round(p.sum().item(), 5)
    1.0
    """

    tolerance = 1e-9  # for draws in float64
    support = "levels"
    floor = -7.0

    def __init__(self, shape: tuple[int, int, int], levels: int, mixtures: int):
        super().__init__()
        self.shape, self.levels, self.mixtures, self.pairs = shape, levels, mixtures, pairs(shape[0])
        self.outputs = mixtures * (1 + 2 * shape[0] + self.pairs)
        self.bias = nn.Parameter(torch.zeros(self.outputs))
        with torch.no_grad():  # the means begin spread over the levels, where each finds its own
            _, means, log_scales, _ = self._split(self.bias.view(1, -1, 1, 1))
            means += torch.linspace(-1, 1, mixtures + 2)[1:-1].view(-1, 1, 1)
            log_scales -= 1.5

    def network_input(self, x: Tensor) -> Tensor:
        return x.to(self.bias.dtype) * (2 / (self.levels - 1)) - 1

    def parameters_of(self, raw: Tensor, x: Tensor, at: tuple[slice, slice]) -> Tensor:
        # the sum of a bfloat16 map and a float32 bias is float32: what follows is exact under autocast too
        logits, means, log_scales, coefficients = self._split(raw + self.bias.view(-1, 1, 1))
        means = means + shifts(torch.tanh(coefficients), self.network_input(x))
        log_scales = self.floor + F.softplus(log_scales - self.floor)
        each = DiscretizedLogistic(means, log_scales, self.levels).log_prob(x[:, :, None])
        before = torch.cat([torch.zeros_like(each[:, :1]), each[:, :-1].cumsum(1)], 1)
        log_weights = F.log_softmax(logits[:, None] + before, 2)
        return torch.cat([log_weights, means, log_scales], 2).transpose(1, 2)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        log_weights, means, log_scales = parameters.chunk(3, 1)
        each = DiscretizedLogistic(means, log_scales, self.levels).log_prob(x[:, None])
        return torch.logsumexp(log_weights + each, 1)

    def noise(self, parameters: Tensor) -> Tensor:
        """M Gumbel variables, and a logistic one."""
        shape = (len(parameters), self.mixtures + 2)
        gumbel = -torch.empty(shape, dtype=parameters.dtype, device=parameters.device).exponential_().log_()
        return torch.cat([gumbel[:, :-2], gumbel[:, -2:-1] - gumbel[:, -1:]], 1)

    def draw(self, parameters: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        log_weights, means, log_scales = parameters.chunk(3, 1)
        score = log_weights + noise[:, :-1]
        chosen = score.argmax(1, keepdim=True)
        mean, log_scale = (v.gather(1, chosen)[:, 0] for v in (means, log_scales))
        spread = log_scale.exp() * noise[:, -1]
        level = (mean + spread + 1) * (self.levels - 1) / 2
        value = level.round().clamp(0, self.levels - 1)
        # to the nearest boundary between two levels, of which those beyond the outermost are none
        nearest = (level.floor() + 0.5).clamp(0.5, self.levels - 1.5)
        margin = (level - nearest).abs() * 2 / (self.levels - 1) / (1 + spread.abs())
        if self.mixtures > 1:
            best = score.topk(2, 1).values
            margin = torch.minimum(margin, best[:, 0] - best[:, 1])
        return value, margin

    def start_from_mean(self, mean: Tensor) -> None:
        """The means begin spread over the levels: nothing of the mean image."""

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (B, M, h, w); means and log-scales (B, C, M, h, w); coefficients (B, pairs, M, h, w)."""
        b, _, *sides = raw.shape
        parts = raw.split([self.mixtures * k for k in (1, self.shape[0], self.shape[0], self.pairs)], 1)
        means, log_scales, coefficients = (p.reshape(b, -1, self.mixtures, *sides) for p in parts[1:])
        return parts[0], means, log_scales, coefficients


class ChainedBits(Head):
    """p(x) = Π_c Bernoulli(x_c; σ(l_c + Σ_{j<c} a_cj (2 x_j - 1))): the bits of one pixel's channels."""

    tolerance = 1e-9  # for draws in float64
    support = "binary"

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape, self.pairs = shape, pairs(shape[0])
        self.outputs = shape[0] + self.pairs
        self.bias = nn.Parameter(torch.zeros(shape))  # one for each element: training starts at the mean image

    def network_input(self, x: Tensor) -> Tensor:
        return 2 * x.to(self.bias.dtype) - 1

    def parameters_of(self, raw: Tensor, x: Tensor, at: tuple[slice, slice]) -> Tensor:
        logits, coefficients = raw.split([self.shape[0], self.pairs], 1)
        logits = logits + self.bias[:, at[0], at[1]]
        return (logits + shifts(coefficients[:, :, None], self.network_input(x))[:, :, 0])[:, None]

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return F.logsigmoid(parameters[:, 0] * self.network_input(x))

    def noise(self, parameters: Tensor) -> Tensor:
        """A logistic variable, as the difference of two of Gumbel's."""
        shape = (len(parameters), 2)
        gumbel = -torch.empty(shape, dtype=parameters.dtype, device=parameters.device).exponential_().log_()
        return gumbel[:, :1] - gumbel[:, 1:]

    def draw(self, parameters: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        score = (parameters + noise)[:, 0]
        return score > 0, score.abs()

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        self.bias.copy_(torch.logit(mean.clamp(MARGIN, 1 - MARGIN)))
