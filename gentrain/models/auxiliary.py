"""What adversarial models have in common whose players know more than an example: labels, codes, categories."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from typing import Any, TypeVar

from torch import Tensor, nn

from gentrain.errors import UsageError
from gentrain.models.critics import Extended, Perceives
from gentrain.models.gan import GeneratorNetwork
from gentrain.models.layers import LARGEST, SMALLEST
from gentrain.models.minibatch import Minibatch
from gentrain.models.normalisation import Norm
from gentrain.models.players import (
    Network,
    bound_spectrum,
    conv_critic,
    conv_generator,
    dense_critic,
    dense_generator,
    radford,
)
from gentrain.types import Support

T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """What the networks of both players are built from; the arguments are those of the models.

    Raises:
        UsageError: `conv` for what is no square image, or `channels` or `dense` for an mlp.
    """

    shape: tuple[int, ...]
    levels: int | None
    network: str
    hidden: Sequence[int]
    discriminator_hidden: Sequence[int] | None
    channels: int | None
    norm: str | None
    discriminator_norm: str | None
    spectral_norm: bool
    dense: Sequence[int] = ()

    def __post_init__(self) -> None:
        shape = self.shape
        if not self.convolves:
            if self.channels is not None:
                raise UsageError(f"model.channels={self.channels} is for model.network=conv; an mlp has model.hidden")
            if self.dense:
                raise UsageError(f"model.dense={list(self.dense)} is for model.network=conv; an mlp has model.hidden")
        elif len(shape) != 3 or self.levels is None:
            raise UsageError(f"model.network=conv takes images, and one example here has shape {shape}; use mlp")
        elif shape[1] != shape[2] or not SMALLEST <= shape[1] <= LARGEST:
            raise UsageError(
                f"model.network=conv takes square images with a side of {SMALLEST} to {LARGEST} pixels, not"
                f" {shape[1]}x{shape[2]}; resize the images or use model.network=mlp"
            )

    @property
    def convolves(self) -> bool:
        return self.network == "conv"

    @property
    def support(self) -> Support:
        return "real" if self.levels is None else "signed"

    def _norm(self, kind: str | None) -> Norm:
        return Norm(kind or ("batch" if self.convolves else "none"), 0)

    def generator(self, inputs: int) -> Network:
        """(B, inputs) -> (B, *shape)."""
        norm = self._norm(self.norm)
        if self.convolves:
            network = conv_generator(inputs, self.shape, self.channels or 64, norm, self.dense)
            return network.apply(radford)
        return dense_generator(inputs, self.hidden, self.shape, norm, bounded=self.levels is not None)

    def trunk(self, further: int = 0) -> tuple[Network, int]:
        """A critic without its last layer, (B, C + further, H, W) or flat (B, D + further) -> (B, width), and width."""
        norm = self._norm(self.discriminator_norm or self.norm)
        if self.convolves:
            channels, *sides = self.shape
            critic = conv_critic((channels + further, *sides), self.channels or 64, norm, Minibatch(), self.dense)
        else:
            hidden = self.discriminator_hidden
            units = list(reversed(self.hidden)) if hidden is None else list(hidden)
            critic = dense_critic((math.prod(self.shape) + further,), units, norm, Minibatch())
        *layers, last = critic.children()
        assert isinstance(last.weight, Tensor)
        return Network([*layers, nn.Flatten()]), last.weight[0].numel()

    def finish(self, critic: nn.Module) -> None:
        """A critic's start, once all of its layers are there."""
        if self.convolves:
            critic.apply(radford)
        if self.spectral_norm:
            bound_spectrum(critic)


class Remembers(nn.Module):
    """A critic that several losses ask the same, and that computes it once.

    Attributes:
        discriminator: the network.
    """

    discriminator: nn.Module
    _known: list[tuple[tuple[Tensor, ...], Any]] | None = None

    def recalled(self, asked: tuple[Tensor, ...], answer: Callable[[], T]) -> T:
        """`answer`, once for each tensors `asked` about and parameters of the critic within `remembering`."""
        if self._known is None:
            return answer()
        key = (*asked, *self.discriminator.parameters())  # an objective that looks ahead puts others in their place
        for known, found in self._known:
            if len(known) == len(key) and all(map(is_, known, key)):
                return found
        self._known.append((key, answer()))
        return self._known[-1][1]

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Within it what the critic has said of a tensor is not computed again. No parameter may change."""
        self._known = []
        try:
            yield
        finally:
            self._known = None


class Auxiliary(Remembers, GeneratorNetwork, Extended, Perceives):
    """Its critic tells more of an example than whether it is real: outputs that a game alone would not teach.

    Attributes:
        discriminator: the network, with the layers up to the features as `trunk`.
    """

    @abstractmethod
    def opinion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's output, (B,), and what else it tells, (B, …)."""

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`opinion`, once for each x and parameters of the critic within `remembering`."""
        return self.recalled((x,), lambda: self.opinion(x))

    def discriminate(self, x: Tensor) -> Tensor:
        return self.judge(x)[0]

    def features(self, x: Tensor) -> Tensor:
        trunk = self.discriminator.trunk
        assert isinstance(trunk, Network)
        return trunk(x).float()


class TwoHeads(nn.Module):
    """A verdict and `head` from the same features, which are `width` numbers: (B, …) -> (B,) and (B, …)."""

    def __init__(self, trunk: Network, width: int, head: nn.Module):
        super().__init__()
        self.trunk, self.verdict, self.head = trunk, nn.Linear(width, 1), head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.verdict(features).float().flatten(), self.head(features).float()
