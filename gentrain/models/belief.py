"""Layers of bits, each given the one before: what directed networks of binary units are made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from gentrain.models.base import LatentVariable
from gentrain.models.latent import Discrete


class Affine(NamedTuple):
    """s -> W s + c."""

    weight: Tensor
    bias: Tensor

    def __call__(self, s: Tensor) -> Tensor:
        return linear(s, self.weight, self.bias)


class Cascade(Discrete):
    """s_1 ~ p(s_1), s_2 ~ p(s_2 | s_1), …: layers of independent bits, each given the layer before, as one vector.

    Args:
        first: logits of s_1, (*batch, units).
        then: from each layer to the logits of the next.
        upside_down: the vector is (…, s_2, s_1) rather than (s_1, s_2, …).

    >>> p = Cascade(torch.zeros(2, 1), [Affine(torch.ones(3, 1), torch.zeros(3))])
    >>> p.sample().shape, p.log_prob(torch.zeros(5, 2, 4)).shape
    (torch.Size([2, 4]), torch.Size([5, 2]))
    """

    def __init__(self, first: Tensor, then: Sequence[Affine] = (), upside_down: bool = False):
        self.first, self.then, self.upside_down = first.float(), then, upside_down
        self.sizes = [first.shape[-1], *(len(layer.bias) for layer in then)]
        super().__init__(first, torch.Size([sum(self.sizes)]))

    def layers(self, value: Tensor) -> list[Tensor]:
        """s_1, s_2, … of vectors (…, units of all layers)."""
        if self.upside_down:
            return [*value.split(self.sizes[::-1], -1)][::-1]
        return [*value.split(self.sizes, -1)]

    def joined(self, layers: Sequence[Tensor]) -> Tensor:
        """The vectors that `layers` takes apart."""
        return torch.cat([*layers][::-1] if self.upside_down else [*layers], -1)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        drawn: list[Tensor] = []
        log_p = torch.zeros((), device=u.device)
        for i, threshold in enumerate(self.layers(u)):
            logits = self.then[i - 1](drawn[-1]).float() if i else self.first
            drawn.append((threshold < torch.sigmoid(logits)).to(logits.dtype))
            log_p = log_p + log_bits(logits, drawn[-1])
        return self.joined(drawn), log_p

    def log_prob(self, value: Tensor) -> Tensor:
        layers = self.layers(value)
        log_p = log_bits(self.first, layers[0])
        for layer, (below, above) in zip(self.then, pairwise(layers), strict=True):
            log_p = log_p + log_bits(layer(below).float(), above)
        return log_p

    @property
    def centre(self) -> Tensor:
        """E[s_1], and of each further layer its expectation where the one before is at this centre."""
        means = [torch.sigmoid(self.first)]
        for layer in self.then:
            means.append(torch.sigmoid(layer(means[-1]).float()))
        return self.joined(means)


def log_bits(logits: Tensor, s: Tensor) -> Tensor:
    """log Π_j Bernoulli(s_j; σ(logit_j)) over the last axis."""
    return (s * logits).sum(-1) - softplus(logits).sum(-1)


class Directed(nn.Module):
    """p(s_1 | s_0) p(s_2 | s_1) …: layers of bits with logits W_i s_{i-1} + c_i.

    Args:
        sizes: units of s_0, s_1, ….
        prior: whether s_0 has a distribution too, with logits of its own, `top`.
    """

    def __init__(self, sizes: Sequence[int], prior: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d_in, d_out) for d_in, d_out in pairwise(sizes))
        self.top = nn.Parameter(torch.zeros(sizes[0])) if prior else None

    def linear(self, i: int) -> nn.Linear:
        """The layer from s_{i-1} to s_i, i from 1; negative i count from the end, -1 the last."""
        layer = self.layers[i if i < 0 else i - 1]
        assert isinstance(layer, nn.Linear)
        return layer

    def maps(self) -> list[Affine]:
        """From s_0 to the logits of s_1, from s_1 to those of s_2, …."""
        linears = [self.linear(i) for i in range(1, len(self.layers) + 1)]
        return [Affine(layer.weight, layer.bias) for layer in linears]

    def given(self, s: Tensor) -> Cascade:
        """p(s_1, s_2, … | s_0) for s_0 (B, units)."""
        return cascade(s, self.maps())


def cascade(s: Tensor, maps: Sequence[Affine]) -> Cascade:
    """p(s_1, s_2, … | s_0) for s_0 (B, units)."""
    return Cascade(maps[0](s), maps[1:])


class Helmholtz(LatentVariable):
    """Two networks without a parameter in common: `generative`, p(z) p(x|z), and `recognition`, q(z|x)."""

    generative: nn.Module
    recognition: nn.Module

    @abstractmethod
    def dream(self, n: int) -> tuple[Tensor, Tensor]:
        """n draws of x (n, *shape) with the z (n, *code) that they came of; from `gentrain.noise`, without gradient."""
