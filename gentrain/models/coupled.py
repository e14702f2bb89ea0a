"""Networks for two domains that are one network where they deal with what the domains have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.domains import LearnsFromPairs
from gentrain.models.layers import double, mlp
from gentrain.models.normalisation import Norm
from gentrain.models.pyramid import descent

leaky = partial(nn.LeakyReLU, 0.2)


@dataclass(frozen=True)
class Layout:
    """What coupled networks are built from; all have leaky rectifiers (0.2).

    Args:
        shape: of one example. bounded: whether it lives in [-1, 1], or in the reals.
        network: `mlp`, or `conv` for images with sides of 8 to 64, which stride-2 convolutions halve down to 4 to 7.
        hidden: units of the fully connected layers, after the convolutions of `conv`.
        channels: feature maps of conv's first layer, doubled at each halving; None is 32.
        norm: of all hidden layers but those at the image: `none`, `batch` or `layer`, see `Norm`.
        alike: whether the layers of either domain's own start from the same weights.

    Raises:
        UsageError: an mlp without hidden layers or with channels, or `conv` asked of what is no fitting image.
    """

    shape: tuple[int, ...]
    bounded: bool
    network: str
    hidden: Sequence[int]
    channels: int | None
    norm: str
    alike: bool = False

    def __post_init__(self) -> None:
        if self.network == "conv":
            descent(self.shape, self.width)
        elif self.channels is not None:
            raise UsageError(f"model.channels={self.channels}: is for model.network=conv; an mlp has model.hidden")
        if not self.hidden:
            raise UsageError("model.hidden=[]: the layers that both domains share are these; give one or more")

    @property
    def width(self) -> int:
        return self.channels or 32

    @property
    def units(self) -> Callable[[int], nn.Module] | None:
        """The normalisation of so many units."""
        return None if self.norm == "none" else lambda width: Norm(self.norm, 0).layers(width, 0)[0]

    @property
    def maps(self) -> Callable[[int], nn.Module] | None:
        """That of so many feature maps."""
        return None if self.norm == "none" else lambda width: Norm(self.norm, 0).layers(width, 2)[0]


def after(norm: Callable[[int], nn.Module] | None, width: int) -> list[nn.Module]:
    """What follows a layer."""
    return [*([] if norm is None else [norm(width)]), leaky()]


class Inwards(nn.Module):
    """Two networks (B, *shape) -> features (B, d) with a first layer of their own, all others tied.

    Attributes:
        x, pair: the first layers. shared: the others. features: d.
    """

    def __init__(self, layout: Layout):
        super().__init__()
        hidden = list(layout.hidden)
        if layout.network == "conv":
            down, sides = descent(layout.shape, layout.width, leaky, norm=layout.maps)
            each = len(down) // (len(sides) - 1)
            size = (layout.width << (len(sides) - 2)) * math.prod(sides[-1])
            inner = [*down[each:], nn.Flatten(), *mlp([size, *hidden], leaky, norm=layout.units)]
        else:
            inner = [*mlp(hidden, leaky, norm=layout.units)] if len(hidden) > 1 else []
        if inner:
            inner += after(layout.units, hidden[-1])
        self.x, self.pair, self.shared = self.first(layout), self.first(layout), nn.Sequential(*inner)
        if layout.alike:
            self.pair.load_state_dict(self.x.state_dict())
        self.features = hidden[-1]

    @staticmethod
    def first(layout: Layout) -> nn.Sequential:
        if layout.network == "conv":
            down, _ = descent(layout.shape, layout.width, leaky)
            return nn.Sequential(*down[:2])
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(layout.shape), layout.hidden[0]), leaky())

    def of_x(self, x: Tensor) -> Tensor:
        return self.shared(self.x(x))

    def of_pair(self, pair: Tensor) -> Tensor:
        return self.shared(self.pair(pair))


class Outwards(nn.Module):
    """Two networks (B, latent) -> (B, *shape) with a last layer of their own, all others tied."""

    def __init__(self, layout: Layout, latent: int):
        super().__init__()
        hidden = list(reversed(layout.hidden))
        if layout.network == "conv":
            _, sides = descent(layout.shape, layout.width)
            widths = [layout.width << i for i in range(len(sides) - 1)]
            base = (widths[-1], *sides[-1])
            inner = [*mlp([latent, *hidden, math.prod(base)], leaky, norm=layout.units), nn.Unflatten(1, base)]
            for (narrow, wide), size in reversed(list(zip(pairwise(widths), sides[1:-1], strict=True))):
                inner += [*after(layout.maps, wide), double(wide, narrow, size)]
            inner += after(layout.maps, widths[0])
        else:
            inner = [*mlp([latent, *hidden], leaky, norm=layout.units), *after(layout.units, hidden[-1])]
        self.shared, self.x, self.pair = nn.Sequential(*inner), self.last(layout), self.last(layout)
        if layout.alike:
            self.pair.load_state_dict(self.x.state_dict())

    @staticmethod
    def last(layout: Layout) -> nn.Sequential:
        shape = layout.shape
        if layout.network == "conv":
            layers: list[nn.Module] = [double(layout.width, shape[0], (shape[1], shape[2]))]
        else:
            layers = [nn.Linear(layout.hidden[0], math.prod(shape)), nn.Unflatten(1, shape)]
        return nn.Sequential(*layers, *([nn.Tanh()] if layout.bounded else []))

    def to_x(self, z: Tensor) -> Tensor:
        return self.x(self.shared(z)).float()

    def to_pair(self, z: Tensor) -> Tensor:
        return self.pair(self.shared(z)).float()

    def to_both(self, z: Tensor) -> tuple[Tensor, Tensor]:
        h = self.shared(z)
        return self.x(h).float(), self.pair(h).float()


class CoupledCritic(nn.Module):
    """Two critics (B, *shape) -> (B,) with a first layer of their own, all others tied; and, of the same features, the
    log-odds of labels, where there are any.

    Args:
        classes: labels; 0 is none.
    """

    def __init__(self, layout: Layout, classes: int = 0):
        super().__init__()
        self.body = Inwards(layout)
        self.verdict = nn.Linear(self.body.features, 1)
        self.classifier = nn.Linear(self.body.features, classes) if classes else None

    def labels(self, features: Tensor) -> Tensor:
        """Log-odds of each label, (B, K), by features (B, d)."""
        assert self.classifier is not None
        return self.classifier(features).float()

    def of_x(self, x: Tensor) -> Tensor:
        return self.verdict(self.body.of_x(x)).float().flatten()

    def of_pair(self, pair: Tensor) -> Tensor:
        return self.verdict(self.body.of_pair(pair)).float().flatten()


class Coupled(LearnsFromPairs):
    """Learns by coupled critics. Has the parts `generator` and `discriminator`."""

    generator: nn.Module
    discriminator: CoupledCritic

    def judge_both(self, both: Tensor) -> Tensor:
        """What each domain's critic says of its own half: x, (B, *shape), and behind them as many of `pair`: (2B,)."""
        x, pair = both.chunk(2)
        return torch.cat([self.discriminator.of_x(x), self.discriminator.of_pair(pair)])
