"""Blocks that several families share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, Uniform, kl_divergence, register_kl
from torch.nn.functional import linear, relu

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.models.latent import Reparametrised

SMALLEST, LARGEST = 8, 64
"""Sides of the images that the convolutional networks take."""


def mlp(
    sizes: Sequence[int],
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    bias: bool = True,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: Sequence[float] = (),
) -> nn.Sequential:
    """Linear layers sizes[0] -> … -> sizes[-1] with `norm` of so many units, if any, and `activation` between them;
    `bias` is the last layer's, and `dropout` the share of each layer's inputs that is dropped, () for none.

    >>> mlp([4, 8, 2])
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): ReLU()
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """
    last = len(sizes) - 2
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(pairwise(sizes)):
        layers += [Dropout(dropout[i])] if dropout and dropout[i] else []
        layers.append(nn.Linear(d_in, d_out, bias=bias or i < last))
        if i < last:
            layers += [norm(d_out)] if norm else []
            layers.append(activation())
    return nn.Sequential(*layers)


class MaskedLinear(nn.Linear):
    """y = (M ∘ W) x + b with a fixed mask M of zeros and ones (Germain et al. 2015, arXiv:1502.03509, section 4.1).

    Args:
        mask: (outputs, inputs), bools.

    >>> layer = MaskedLinear(torch.tensor([[True, False]]))
    >>> torch.equal(layer(torch.tensor([[1.0, 2.0]])), layer(torch.tensor([[1.0, 3.0]])))
    True
    """

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight * self.mask, self.bias)


class MaskedMLP(nn.Module):
    """A network whose outputs for element d are functions of the elements before d (MADE, arXiv:1502.03509).

    Hidden units of degree m see elements 1…m; they are spread evenly over the degrees and sorted by them, so that
    what can be computed from the first elements is always the first units.

    Args:
        size: D, elements of x. hidden: units of each layer, at least one. outputs: P, numbers for each element.

    >>> MaskedMLP(3, [8], 2)(torch.zeros(5, 3)).shape
    torch.Size([5, 3, 2])
    """

    def __init__(self, size: int, hidden: Sequence[int], outputs: int):
        super().__init__()
        self.size, self.outputs = size, outputs
        degrees = [torch.arange(size) + 1]
        degrees += [torch.arange(width) * max(size - 1, 1) // width + 1 for width in hidden]
        masks = [b[:, None] >= a[None] for a, b in pairwise(degrees)]
        masks.append(degrees[0].repeat_interleave(outputs)[:, None] > degrees[-1][None])
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        self._ready = [[int((d <= known).sum()) for known in range(size + 1)] for d in degrees]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D, P)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = relu(layer(x))
        return last(x).view(-1, self.size, self.outputs)

    def generate(self, rows: int, element: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The x (rows, D) with x_d = element(d, outputs for d), element by element from d = 0.

        Each hidden unit is computed once, as soon as all that it sees is known: together the cost of one pass through
        the network, where D passes would serve too. `element` takes (rows, P) to (rows,).
        """
        layers = [layer for layer in self.layers if isinstance(layer, MaskedLinear)]
        known = [layers[0].weight.new_empty(rows, 0) for _ in layers]  # x, then the units of each hidden layer
        for d in range(self.size):
            own = slice(d * self.outputs, (d + 1) * self.outputs)
            last, ready = layers[-1], self._ready[-1][d] if len(layers) > 1 else d
            raw = linear(known[-1], last.weight[own, :ready], last.bias[own])
            known[0] = torch.cat([known[0], element(d, raw)[:, None]], 1)
            for i, layer in enumerate(layers[:-1]):
                new = slice(self._ready[i + 1][d], self._ready[i + 1][d + 1])
                if new.start < new.stop:
                    weight = layer.weight[new, : known[i].shape[1]]
                    known[i + 1] = torch.cat([known[i + 1], relu(linear(known[i], weight, layer.bias[new]))], 1)
        return known[0]


def halvings(side: int) -> list[int]:
    """The sides of a pyramid of stride-2 convolutions, down to a base of 4 to 7 pixels.

    >>> halvings(32), halvings(28), halvings(9)
    ([32, 16, 8, 4], [28, 14, 7], [9, 4])
    """
    sides = [side]
    while sides[-1] >= 8:
        sides.append(sides[-1] // 2)
    return sides


def halve(d_in: int, d_out: int, *, bias: bool = True) -> nn.Conv2d:
    """A learned down-sampling: side s -> s // 2."""
    return nn.Conv2d(d_in, d_out, kernel_size=4, stride=2, padding=1, bias=bias)


def double(d_in: int, d_out: int, size: tuple[int, int], *, bias: bool = True) -> nn.ConvTranspose2d:
    """Undoes `halve`: half of `size` (height, width) -> `size`, whose parity the halving forgot."""
    odd = (size[0] % 2, size[1] % 2)
    return nn.ConvTranspose2d(d_in, d_out, kernel_size=4, stride=2, padding=1, output_padding=odd, bias=bias)


def dropped(x: Tensor, p: float) -> Tensor:
    """x with each element 0 with probability p and divided by 1 - p else (Srivastava et al. 2014).

    Unlike torch's, its draws are those of `gentrain.noise`: several processes drop what one alone would.
    """
    return x * noise.uniform(*x.shape, device=x.device).ge_(p).div_(1 - p).to(x.dtype)


def every_layer(option: str, shares: Sequence[float], layers: int) -> list[float]:
    """A share of dropout for each of so many layers: the last one given is for all that follow, without any it is 0.

    Raises:
        UsageError: there are fewer layers.

    >>> every_layer("model.dropout", [0.2, 0.5], 3), every_layer("model.dropout", [], 2)
    ([0.2, 0.5, 0.5], [0.0, 0.0])
    """
    if len(shares) > layers:
        raise UsageError(f"{option}={[*shares]}: there are {layers} layers; give no more shares than that")
    return [*shares, *[shares[-1] if shares else 0.0] * (layers - len(shares))]


class Dropout(nn.Module):
    """`dropped` in training.

    Args:
        always: outside of training too, where what is drawn is the model's noise (Isola et al. 2017).
    """

    def __init__(self, p: float, always: bool = False):
        super().__init__()
        self.p, self.always = p, always

    def forward(self, x: Tensor) -> Tensor:
        if not ((self.training or self.always) and self.p > 0):
            return x
        return dropped(x, self.p)


class DiagonalNormal(Independent, Reparametrised):
    """N(loc, diag exp(log_variance)) over the last dimension.

    The same as torch's `Independent(Normal(…), 1)` with fewer operations on the way to an ELBO: the scale is at hand,
    and the divergence from N(0, I) is Kingma & Welling's formula (arXiv:1312.6114, appendix B).
    """

    def __init__(self, loc: Tensor, log_variance: Tensor):
        self.loc, self.log_variance = loc, log_variance
        self.scale = torch.exp(0.5 * log_variance)
        super().__init__(Normal(loc, self.scale, validate_args=False), 1, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return self.scale

    def draw(self, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc + self.scale * epsilon, _unit_log_prob(epsilon) - 0.5 * self.log_variance.sum(-1)


class UnitNormal(Independent, Reparametrised):
    """N(0, I) over the last dimension."""

    def __init__(self, zero: Tensor, one: Tensor):
        super().__init__(Normal(zero, one, validate_args=False), 1, validate_args=False)

    def draw(self, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        return epsilon, _unit_log_prob(epsilon)


def _unit_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) over the last dimension."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


@register_kl(DiagonalNormal, UnitNormal)
def _kl_from_unit(q: DiagonalNormal, p: UnitNormal) -> Tensor:
    return 0.5 * (q.loc.square() + q.scale.square() - q.log_variance - 1).sum(-1)


def _acquaint() -> None:
    """Look the divergence up once: torch then remembers it, and torch.compile, which the search would stop, goes on."""
    zero = torch.zeros(1)
    kl_divergence(DiagonalNormal(zero, zero), UnitNormal(zero, zero + 1))


_acquaint()


class StandardNormal(nn.Module):
    """N(0, I) in `dim` dimensions, on whatever device the model is.

    >>> StandardNormal(3)().event_shape
    torch.Size([3])
    """

    zero: Tensor
    one: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("zero", torch.zeros(dim), persistent=False)
        self.register_buffer("one", torch.ones(dim), persistent=False)

    def forward(self) -> UnitNormal:
        return UnitNormal(self.zero, self.one)


class StandardUniform(nn.Module):
    """U[-1, 1] in `dim` dimensions, independent, on whatever device the model is.

    >>> bool((StandardUniform(3)().sample((100,)).abs() <= 1).all())
    True
    """

    one: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("one", torch.ones(dim), persistent=False)

    def forward(self) -> Independent:
        return Independent(Uniform(-self.one, self.one, validate_args=False), 1, validate_args=False)
