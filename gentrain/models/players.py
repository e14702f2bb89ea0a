"""Generators and critics, fully connected and convolutional, with the layers that are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gentrain.models.layers import Dropout, double, halve, halvings
from gentrain.models.minibatch import Minibatch
from gentrain.models.normalisation import AFFINE, Norm

leaky = partial(nn.LeakyReLU, 0.2)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"leaky": leaky, "relu": nn.ReLU, "tanh": nn.Tanh}


class Scale(nn.Module):
    """x times a number."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


class Network(nn.Sequential):
    """Layers in a row, through which a reference batch goes behind each batch, where there is one.

    Args:
        layers: the first one first.
        reference: rows (R, …) of what the first layer takes, kept as a buffer; see `refer`.
    """

    reference: Tensor | None

    def __init__(self, layers: Sequence[nn.Module], reference: Tensor | None = None):
        super().__init__(*layers)
        self.register_buffer("reference", reference)

    def forward(self, x: Tensor) -> Tensor:
        if self.reference is None:
            return super().forward(x)
        return super().forward(self._with_reference(x))[: len(x)]

    def outputs(self, x: Tensor) -> list[Tensor]:
        """What each layer makes of x, (B, …), the first layer's first."""
        found, rows = [self._with_reference(x)], len(x)
        for layer in self:
            found.append(layer(found[-1]))
        return [h[:rows] for h in found[1:]]

    def refer(self, x: Tensor) -> None:
        """Let x (R, …) be the reference from now on."""
        assert self.reference is not None
        self.reference.copy_(x)

    def _with_reference(self, x: Tensor) -> Tensor:
        return x if self.reference is None else torch.cat([x, self.reference.to(x.dtype)])


def dense_generator(
    latent: int,
    hidden: Sequence[int],
    shape: tuple[int, ...],
    norm: Norm,
    *,
    bounded: bool,
    activation: Callable[[], nn.Module] = leaky,
) -> Network:
    """(B, latent) -> (B, *shape), in [-1, 1] if `bounded`; every hidden layer is normalised."""
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise([latent, *hidden]):
        layers += [nn.Linear(d_in, d_out, bias=norm.bias), *norm.layers(d_out, 0), activation()]
    layers += [nn.Linear([latent, *hidden][-1], math.prod(shape)), *([nn.Tanh()] if bounded else [])]
    return Network([*layers, nn.Unflatten(1, shape)], _codes(latent, norm))


def dense_critic(
    shape: tuple[int, ...],
    hidden: Sequence[int],
    norm: Norm,
    minibatch: Minibatch,
    *,
    activation: Callable[[], nn.Module] = leaky,
    scale: float = 1.0,
    dropout: Sequence[float] = (),
) -> Network:
    """(B, *shape), which is scaled first, -> (B, 1); every hidden layer but the first is normalised, as in DCGAN, and
    `dropout` is the share of each layer's inputs that is dropped, () for none."""
    sizes = [math.prod(shape), *hidden]
    drops = [[Dropout(share)] if share else [] for share in dropout or [0.0] * len(sizes)]
    layers: list[nn.Module] = [nn.Flatten(), *([] if scale == 1 else [Scale(scale)])]
    for i, (d_in, d_out) in enumerate(pairwise(sizes)):
        layers += [
            *drops[i],
            nn.Linear(d_in, d_out, bias=i == 0 or norm.bias),
            *(norm.layers(d_out, 0) if i else []),
            activation(),
        ]
    return Network([*layers, *drops[-1], *minibatch.last(sizes[-1], 0, norm.rows)], _examples(shape, norm))


def conv_generator(
    latent: int, shape: tuple[int, ...], channels: int, norm: Norm, dense: Sequence[int] = ()
) -> Network:
    """(B, latent) -> (B, *shape), square images in [-1, 1], by DCGAN's guidelines, but for `dense`, the units of fully
    connected layers before the first convolution."""
    sides = halvings(shape[1])
    depth = len(sides) - 1
    widths = [channels << i for i in range(depth)]
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise([latent, *dense]):
        layers += [nn.Linear(d_in, d_out, bias=norm.bias), *norm.layers(d_out, 0), nn.ReLU()]
    layers += [
        nn.Unflatten(1, ([latent, *dense][-1], 1, 1)),
        nn.ConvTranspose2d([latent, *dense][-1], widths[-1], sides[-1], bias=norm.bias),  # 1x1 -> the pyramid's base
    ]
    for i in reversed(range(1, depth)):
        up = double(widths[i], widths[i - 1], (sides[i], sides[i]), bias=norm.bias)
        layers += [*norm.layers(widths[i], 2), nn.ReLU(), up]
    layers += [*norm.layers(widths[0], 2), nn.ReLU(), double(widths[0], shape[0], (shape[1], shape[2])), nn.Tanh()]
    return Network(layers, _codes(latent, norm))


def conv_critic(
    shape: tuple[int, ...], channels: int, norm: Norm, minibatch: Minibatch, dense: Sequence[int] = ()
) -> Network:
    """(B, *shape), square images -> one number an example, by DCGAN's guidelines, but for `dense`, the units of fully
    connected layers after the last convolution."""
    sides = halvings(shape[1])
    layers: list[nn.Module] = [halve(shape[0], channels), leaky()]
    for i in range(1, len(sides) - 1):
        width = channels << i
        layers += [halve(width // 2, width, bias=norm.bias), *norm.layers(width, 2), leaky()]
    width, side = channels << (len(sides) - 2), sides[-1]
    if dense:
        layers.append(nn.Flatten())
        for d_in, d_out in pairwise([width * side**2, *dense]):
            layers += [nn.Linear(d_in, d_out, bias=norm.bias), *norm.layers(d_out, 0), leaky()]
        width, side = dense[-1], 0
    return Network([*layers, *minibatch.last(width, side, norm.rows)], _examples(shape, norm))


def metz_generator(latent: int, shape: tuple[int, ...], channels: int, norm: Norm) -> Network:
    """(B, latent) -> (B, *shape), images in [-1, 1], as in Metz et al.'s stacked MNIST: a linear layer, three doublings
    with kernels of 3x3, and a convolution at full size."""
    sides = _thrice_halved(shape[1:])
    widths = [channels << i for i in range(4)]
    base = (widths[3], *sides[3])
    layers: list[nn.Module] = [nn.Linear(latent, math.prod(base), bias=norm.bias), nn.Unflatten(1, base)]
    for i in reversed(range(3)):
        even = (1 - sides[i][0] % 2, 1 - sides[i][1] % 2)  # s -> 2s - 1, or 2s
        up = nn.ConvTranspose2d(widths[i + 1], widths[i], 3, 2, padding=1, output_padding=even, bias=norm.bias)
        layers += [*norm.layers(widths[i + 1], 2), nn.ReLU(), up]
    last = nn.Conv2d(channels, shape[0], 3, padding=1)
    return Network([*layers, *norm.layers(channels, 2), nn.ReLU(), last, nn.Tanh()], _codes(latent, norm))


def metz_critic(shape: tuple[int, ...], channels: int, norm: Norm, minibatch: Minibatch) -> Network:
    """(B, *shape), images -> one number an example, as there: three halvings with kernels of 3x3, all normalised, and
    leaky rectifiers of slope 0.3."""
    layers: list[nn.Module] = []
    widths = [shape[0], *(channels << i for i in range(3))]
    for d_in, d_out in pairwise(widths):
        halving = nn.Conv2d(d_in, d_out, 3, 2, padding=1, bias=norm.bias)
        layers += [halving, *norm.layers(d_out, 2), nn.LeakyReLU(0.3)]
    last = minibatch.last(widths[-1], _thrice_halved(shape[1:])[-1][0], norm.rows)
    return Network([*layers, *last], _examples(shape, norm))


def _thrice_halved(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """(height, width) and what three halvings that round up make of it.

    >>> _thrice_halved((28, 28))
    [(28, 28), (14, 14), (7, 7), (4, 4)]
    """
    sizes = [size]
    for _ in range(3):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return sizes


def _codes(latent: int, norm: Norm) -> Tensor | None:
    """A generator's reference: codes drawn once from N(0, I)."""
    return torch.randn(norm.rows, latent) if norm.rows else None


def _examples(shape: tuple[int, ...], norm: Norm) -> Tensor | None:
    """A place for a critic's reference, real examples: NaN until they are there, so that none can be overlooked."""
    return torch.full((norm.rows, *shape), math.nan) if norm.rows else None


def radford(module: nn.Module) -> None:
    """DCGAN's start, of one layer: weights from N(0, 0.02²), γ from N(1, 0.02²)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, AFFINE):
        nn.init.normal_(module.weight, 1.0, 0.02)  # and eps 1e-5, momentum 0.1: torch's defaults


def start_orthogonal(module: nn.Module, gain: float) -> None:
    """Let every layer's weight, as a matrix of outputs, start as `gain` times an orthogonal one, and biases at 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def bound_spectrum(network: nn.Module) -> None:
    """Divide each layer's weight, as a matrix of outputs, by its largest singular value, in place and from now on
    (spectral normalisation, Miyato et al. 2018, arXiv:1802.05957).

    The value comes of one step of the power iteration at each pass in training; its vectors are buffers. Whatever sets
    weights, as `radford`, goes before.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            parametrizations.spectral_norm(module)
