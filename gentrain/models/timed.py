"""Networks of an example and a time: what diffusion models and flows in continuous time learn.

`network` builds the one that fits the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from gentrain.errors import UsageError
from gentrain.models.layers import mlp
from gentrain.models.unet import UNet, zero

Kind = Literal["auto", "mlp", "unet"]
SMALLEST = 8
"""Side of the smallest images that `auto` gives a U-Net."""


class TimeFeatures(nn.Module):
    """cos(ω_i t), sin(ω_i t) for frequencies ω_i from `fastest` to 0.1 in equal ratios. With 1000 they are those of Ho
    et al. (2020), which are Vaswani et al.'s (2017), for a time in [0, 1] that is counted in thousandths.

    >>> TimeFeatures(4)(torch.tensor([0.0]))
    tensor([[1., 1., 0., 0.]])
    """

    frequencies: Tensor

    def __init__(self, size: int, fastest: float = 1000.0):
        super().__init__()
        exponents = torch.linspace(math.log10(fastest), -1, size // 2, dtype=torch.float64)
        self.register_buffer("frequencies", (10**exponents).float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> (B, size)."""
        angles = t.to(self.frequencies)[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], 1)


class Condition(nn.Module):
    """The vector that stands for a time and a label: a network's of the time's features, plus the label's row of a
    table. The table's last row is of no label, so that one network knows examples with and without (Ho & Salimans 2022,
    arXiv:2207.12598). It starts at 0 and stays there until an example without its label is learned from.

    Args:
        width: of the vector. classes: K, or None where there are no labels. fastest: as of `TimeFeatures`.
    """

    def __init__(self, width: int, classes: int | None, fastest: float = 1000.0):
        super().__init__()
        self.classes = classes
        self.time = nn.Sequential(TimeFeatures(64, fastest), *mlp([64, width, width], nn.SiLU))
        self.labels = nn.Embedding(classes + 1, width) if classes else None
        if self.labels is not None:
            nn.init.zeros_(self.labels.weight[-1])

    def forward(self, t: Tensor, y: Tensor | None) -> Tensor:
        c = self.time(t)
        if self.labels is None:
            return c
        return c + (self.labels.weight[-1] if y is None else self.labels(y))


class TimedMLP(nn.Module):
    """(x, c) -> a vector like x: layers with SiLU, to each of which a linear map of the vector c is added.

    Args:
        size: elements of x. width: of c. hidden: units of each layer, one layer at least.
    """

    def __init__(self, size: int, width: int, hidden: Sequence[int]):
        super().__init__()
        if not hidden:
            raise UsageError("model.hidden=[]: the network of a time needs a hidden layer; use e.g. model.hidden=[128]")
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip([size, *hidden], hidden, strict=False))
        self.conditions = nn.ModuleList(nn.Linear(width, each, bias=False) for each in hidden)
        self.last = zero(nn.Linear(hidden[-1], size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h, c = x.flatten(1), silu(c)
        for layer, condition in zip(self.layers, self.conditions, strict=True):
            h = silu(layer(h) + condition(c))
        return self.last(h).view_as(x)


class Timed(nn.Module):
    """f(x, t, y): a network of an example, a time and perhaps a label, whose output is 0 before training.

    Args:
        body: takes (x, c), for instance a `TimedMLP`. width: of c. classes: K, or None where there are no labels.
        fastest: as of `TimeFeatures`.

    >>> net = Timed(TimedMLP(2, 8, [16]), width=8, classes=3)
    >>> x, t = torch.randn(5, 2), torch.rand(5)
    >>> net(x, t).shape, torch.equal(net(x, t), net(x, t, y=torch.full((5,), 3)))
    (torch.Size([5, 2]), True)
    """

    def __init__(self, body: nn.Module, width: int, classes: int | None, fastest: float = 1000.0):
        super().__init__()
        self.condition, self.body, self.classes = Condition(width, classes, fastest), body, classes

    def require_unlabelled(self) -> None:
        """Refuse what is asked without labels of a network that has always been told them.

        Raises:
            UsageError: it has.
        """
        table = self.condition.labels
        if table is not None and not bool(table.weight[-1].any()):
            raise UsageError(
                "the model was always told the label, and is asked for what it knows without: train it with"
                " objective.label_dropout=0.1"
            )

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, *shape), t (B,) in [0, 1], y (B,) labels in 0…K -> (B, *shape), of x's type. y = K, and no y, is
        no label; a network without labels doesn't read it."""
        return self.body(x, self.condition(t, y)).to(x.dtype)


def network(
    kind: Kind,
    shape: tuple[int, ...],
    classes: int | None = None,
    *,
    hidden: Sequence[int] = (128, 128, 128),
    channels: int | None = None,
    multipliers: Sequence[int] | None = None,
    blocks: int = 1,
    attention: bool = False,
    patch: int = 1,
    dropout: float = 0.0,
    fastest: float = 1000.0,
) -> Timed:
    """A `Timed` network for examples of this shape; `auto` is a U-Net for images of at least 8x8 pixels, else an MLP.

    Args:
        hidden: of an MLP, units of its layers.
        channels: of a U-Net, like all that follow, feature maps at the largest scale; None is 32, or 16 for images of
            less than 16 pixels a side. For the others see `gentrain.models.unet.UNet`.
        fastest: frequency of the time's features. What is integrated over time takes few steps only if it changes
            slowly.

    Raises:
        UsageError: the U-Net doesn't fit the shape, or the options are for the other kind.

    >>> [type(network("auto", shape).body).__name__ for shape in [(2,), (1, 3, 3), (1, 8, 8)]]
    ['TimedMLP', 'TimedMLP', 'UNet']
    """
    if kind == "auto":
        kind = "unet" if len(shape) == 3 and min(shape[1:]) >= SMALLEST else "mlp"
    if kind == "unet":
        channels = channels or (32 if min(shape[1:], default=0) >= 16 else 16)
        width = 4 * channels
        body = UNet(shape, width, channels, multipliers, blocks, attention, patch, dropout)
        return Timed(body, width, classes, fastest)
    unused = [("channels", channels, None), ("multipliers", multipliers, None), ("blocks", blocks, 1)]
    unused += [("attention", attention, False), ("patch", patch, 1), ("dropout", dropout, 0)]
    for name, value, default in unused:
        if value != default:
            raise UsageError(f"model.{name}={value} is for model.network=unet; an mlp has model.hidden")
    return Timed(TimedMLP(math.prod(shape), 128, hidden), 128, classes, fastest)
