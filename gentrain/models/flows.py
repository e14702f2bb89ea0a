"""Invertible layers with log-determinants, of which normalizing flows are made.

Every layer is a `Bijection`: `layer(x)` is (z, log |det dz/dx|), `layer.inverse(z)` is (x, log |det dx/dz|), the second
of each in nats, (B,). Networks may run in a shorter precision; the rest is done in x's own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from gentrain.errors import UsageError
from gentrain.models.base import Invertible
from gentrain.models.layers import MaskedMLP

LIMIT = 3.0
"""What |log scale| of one element by one layer stays below."""


class Bijection(nn.Module, ABC):
    """An invertible map of examples, x (B, *shape) <-> z (B, *shape')."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z = f(x) and log |det df/dx| of each example, (B,)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = f⁻¹(z) and log |det df⁻¹/dz| of each example, (B,)."""


class Chain(Bijection):
    """One layer after the other.

    >>> flow = Chain(Flatten((1, 2, 2)), Logit(0.05))
    >>> z, log_det = flow(torch.full((3, 1, 2, 2), 0.3))
    >>> x, back = flow.inverse(z)
    >>> z.shape, torch.allclose(x, torch.tensor(0.3)), torch.allclose(back, -log_det)
    (torch.Size([3, 4]), True, True)
    """

    def __init__(self, *layers: Bijection):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(len(z))
        for layer in reversed(self.layers):
            assert isinstance(layer, Bijection)
            z, log_det = layer.inverse(z)
            total = total + log_det
        return z, total


def bounded(raw: Tensor, limit: float = LIMIT) -> Tensor:
    """A log-scale from a network's output: itself where it is small, and never beyond ±limit.

    >>> bounded(torch.tensor([0.0, 3.0, -1e9]))
    tensor([ 0.0000,  1.5000, -3.0000])
    """
    return raw / (1 + raw.abs() / limit)


# --- couplings --------------------------------------------------------------------------------------------------------


class Coupling(Bijection):
    """z = x where the mask is on; z = x exp(s) + t elsewhere, s and t functions of what the mask keeps.

    Dinh et al. 2017 (arXiv:1605.08803, eq. 7 and 9). log |det dz/dx| = Σ s.

    Args:
        mask: of what is kept, (*shape), bools.
        network: (B, C, …) -> (B, 2 C, …), of which the first half are raw log-scales and the second are shifts.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, network: nn.Module):
        super().__init__()
        self.register_buffer("mask", mask)
        self.network = network

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.network(x * self.mask).to(x.dtype).chunk(2, 1)
        free = ~self.mask
        return bounded(raw) * free, shift * free

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(x)
        return x * s.exp() + t, s.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(z)
        return (z - t) * (-s).exp(), -s.flatten(1).sum(1)


def alternating(shape: tuple[int, ...], parity: int) -> Tensor:
    """Every other element of a vector, or a checkerboard over the pixels of an image, (*shape).

    >>> alternating((1, 2, 3), 0).int()
    tensor([[[1, 0, 1],
             [0, 1, 0]]], dtype=torch.int32)
    """
    axes = shape if len(shape) == 1 else shape[1:]
    total = torch.stack(torch.meshgrid(*[torch.arange(side) for side in axes], indexing="ij")).sum(0)
    return ((total + parity) % 2 == 0).expand(shape).clone()


def channel_halves(shape: tuple[int, ...], parity: int) -> Tensor:
    """The first (even parity) or the second half of the channels of an image, (C, H, W)."""
    first = torch.arange(shape[0]) < (shape[0] + 1) // 2
    return (first if parity % 2 == 0 else ~first).view(-1, 1, 1).expand(shape).clone()


# --- autoregressive layers --------------------------------------------------------------------------------------------


class MaskedAffine(Bijection):
    """z_d = (x_d - μ_d) exp(-α_d) with μ_d and α_d functions of the elements before d in an order.

    Papamakarios et al. 2017 (arXiv:1705.07057, eq. 4 and 5). log |det dz/dx| = -Σ α. Forward takes one pass, the
    inverse goes element by element.

    Args:
        size: D; x is (B, D). hidden: units of each layer of the network.
        reverse: go from the last element to the first.

    >>> layer = MaskedAffine(3, [8], reverse=True)
    >>> x, _ = layer.inverse(torch.ones(2, 3))
    >>> torch.allclose(layer(x)[0], torch.ones(2, 3))
    True
    """

    def __init__(self, size: int, hidden: Sequence[int], reverse: bool = False):
        super().__init__()
        self.reverse = reverse
        self.network = MaskedMLP(size, hidden, 2)
        start_as_identity(self.network.layers[-1])

    def _ordered(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.reverse else x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self._ordered(x)
        shift, raw = self.network(x).to(x.dtype).unbind(-1)
        alpha = bounded(raw)
        return self._ordered((x - shift) * (-alpha).exp()), -alpha.sum(1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z, alphas = self._ordered(z), []

        def element(d: int, raw: Tensor) -> Tensor:
            alphas.append(bounded(raw[:, 1].to(z.dtype)))
            return z[:, d] * alphas[-1].exp() + raw[:, 0].to(z.dtype)

        x = self.network.generate(len(z), element)
        return self._ordered(x), torch.stack(alphas, 1).sum(1)


@torch.no_grad()
def start_as_identity(last: nn.Module) -> None:
    """Zero a network's last layer: shifts and log-scales begin at nought."""
    for p in last.parameters():
        p.zero_()


# --- normalisation, shapes and ranges ---------------------------------------------------------------------------------


class BatchNormFlow(Bijection):
    """z = (x - m) exp(γ) / √(v + ε) + β for each channel, or each element of a vector.

    m and v are those of the batch in training, with gradients, over the whole batch where several processes share it;
    in eval mode their running averages. log |det dz/dx| = Σ γ - log(v + ε)/2 over elements, with m and v as they are,
    constants (Dinh et al. 2017, arXiv:1605.08803, section 3.7; Papamakarios et al. 2017, arXiv:1705.07057, appendix B).
    So -log p is in training that of a density which depends on the batch, and only in eval mode one of the example.
    The inverse takes the running averages in both modes. The mean of a batch of B wanders by √(v/B), which blurs all
    that is finer, such as narrow modes of points in the plane.

    The first batches are averaged evenly, until 1/their number falls to `momentum`.

    Args:
        shape: of x. momentum: weight of a new batch in the running averages. eps: ε.

    Raises:
        UsageError: a batch of one value a channel in training.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, shape: tuple[int, ...], momentum: float = 0.02, eps: float = 1e-5):
        super().__init__()
        self.pixels = math.prod(shape[1:])
        self.momentum, self.eps = momentum, eps
        self.log_scale = nn.Parameter(torch.zeros(shape[0]))
        self.shift = nn.Parameter(torch.zeros(shape[0]))
        self.register_buffer("mean", torch.zeros(shape[0]))
        self.register_buffer("variance", torch.ones(shape[0]))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = self._of_batch(x) if self.training else (self.mean, self.variance)
        log_scale = self.log_scale - 0.5 * (variance + self.eps).log()
        z = (x - self._along(mean, x)) * self._along(log_scale, x).exp() + self._along(self.shift, x)
        return z, (log_scale.sum() * self.pixels).expand(len(x))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = self.log_scale - 0.5 * (self.variance + self.eps).log()
        x = (z - self._along(self.shift, z)) * self._along(-log_scale, z).exp() + self._along(self.mean, z)
        return x, (-log_scale.sum() * self.pixels).expand(len(z))

    @staticmethod
    def _along(v: Tensor, x: Tensor) -> Tensor:
        return v.view(-1, *[1] * (x.dim() - 2))

    def _of_batch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = [0, *range(2, x.dim())]
        if len(x) * self.pixels * _processes() < 2:
            raise UsageError("data.batch_size=1: batch normalisation has no variance there; use 2 or more")
        mean = _over_processes(x.mean(axes))
        variance = _over_processes((x - self._along(mean, x)).square().mean(axes))
        with torch.no_grad():
            self.batches += 1
            weight = (1 / self.batches).clamp(min=self.momentum)
            self.mean.lerp_(mean.detach(), weight)
            self.variance.lerp_(variance.detach(), weight)
        return mean, variance


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _over_processes(value: Tensor) -> Tensor:
    """The mean over the processes that share a batch, with gradients."""
    return value if _processes() == 1 else cast(Tensor, _MeanOverProcesses.apply(value))


class _MeanOverProcesses(torch.autograd.Function):
    """Each process has a loss of its own, and gradients of parameters are averaged: so is what comes back here."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _averaged(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _averaged(gradients[0])


def _averaged(value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total / _processes()


class Logit(Bijection):
    """y = logit(λ + (1 - 2λ) x), which takes [0, 1] to the reals.

    log |det dy/dx| = Σ log(1 - 2λ) - log p - log(1 - p) with p = λ + (1 - 2λ) x.

    Args:
        margin: λ in (0, 1/2): how far x = 0 and x = 1 stay from infinity.

    >>> Logit(0.05)(torch.tensor([[0.5]]))[0]
    tensor([[0.]])
    """

    def __init__(self, margin: float):
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # both ends in their own coordinate: 1 - p has few digits left where p is near 1
        low, high = self.margin + (1 - 2 * self.margin) * x, self.margin + (1 - 2 * self.margin) * (1 - x)
        low, high = low.log(), high.log()
        return low - high, (math.log1p(-2 * self.margin) - low - high).flatten(1).sum(1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(z) - self.margin) / (1 - 2 * self.margin)
        log_det = -softplus(z) - softplus(-z) - math.log1p(-2 * self.margin)
        return x, log_det.flatten(1).sum(1)


class Flatten(Bijection):
    """An example of `shape` as a vector."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.view(-1, *self.shape), z.new_zeros(len(z))


class Squeeze(Bijection):
    """Blocks of 2x2 pixels become 4 channels: (C, H, W) -> (4 C, H/2, W/2) (arXiv:1605.08803, section 3.6)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.pixel_shuffle(z, 2), z.new_zeros(len(z))


class FactorOut(Bijection):
    """The first half of the channels is done; the second goes on through `inner` (arXiv:1605.08803, eq. 14 to 16).

    Args:
        shape: of x, (C, H, W) with even C. inner: (C/2, H, W) -> vectors, as what comes out here is.
    """

    def __init__(self, shape: tuple[int, ...], inner: Bijection):
        super().__init__()
        self.done = (shape[0] // 2, *shape[1:])
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        done, on = x.chunk(2, 1)
        z, log_det = self.inner(on)
        return torch.cat([done.flatten(1), z], 1), log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        size = math.prod(self.done)
        on, log_det = self.inner.inverse(z[:, size:])
        return torch.cat([z[:, :size].view(-1, *self.done), on], 1), log_det


# --- the model --------------------------------------------------------------------------------------------------------


class Flow(Invertible):
    """log p(x) = log p(f(x)) + log |det df/dx| in nats for a chain f of bijections.

    Levels are modelled dequantized, as x = (level + u)/K in [0, 1) (`support` unit), and the chain begins with
    y = logit(λ + (1 - 2λ) x), so `log_prob` is the density of x, from which bits/dim follow. Some papers give that of y
    (`evaluate metrics=[logit]`): log p(y) = log p(x) - Σ log dy/dx. A density over all y is one over
    -λ/(1 - 2λ) < x < 1 + λ/(1 - 2λ): what little it has outside of [0, 1] is drawn as 0 or 1.

    Args:
        shape: of one example. levels: None for reals, which are modelled as they are.
        logit: λ. body: (*shape) -> vectors. prior: calling it gives p(z), over vectors.

    Raises:
        UsageError: λ is no margin within [0, 1].
    """

    def __init__(self, shape: tuple[int, ...], levels: int | None, logit: float, body: Bijection, prior: nn.Module):
        super().__init__()
        if logit >= 0.5:
            raise UsageError(f"model.logit={logit:g}: the margin on either side of [0, 1] must be below 0.5")
        self.shape, self.support = tuple(shape), "real" if levels is None else "unit"
        self.body = body if levels is None else Chain(Logit(logit), body)
        self._prior = prior

    @property
    def prior(self) -> Distribution:
        return self._prior()

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x)

    def log_prob(self, x: Tensor) -> Tensor:
        z, log_det = self.transform(x)
        return self.prior.log_prob(z) + log_det

    def invert(self, z: Tensor) -> Tensor:
        return self.body.inverse(z)[0]

    def decode(self, z: Tensor) -> Tensor:
        x = self.invert(z)
        return x.clamp(0, 1) if self.support == "unit" else x

    def codes(self, x: Tensor) -> Tensor:
        return self.transform(x)[0]

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior.sample(torch.Size([n])))
