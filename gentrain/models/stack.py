"""Stacks: models of several layers that are trained one after the other, each on what the ones below make of x."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gentrain import noise
from gentrain.models.autoencoder import Autoencoding
from gentrain.models.layers import dropped


class Stack(nn.Module, ABC):
    """Layers 1 … L, each a model of its own whose examples are the codes of the layer below; layer 1's are x.

    They are the submodules, and so the parts, `layer1` … `layerL`. Whoever trains one leaves the others as they are.
    """

    depth: int

    def stack(self, layers: Sequence[nn.Module]) -> None:
        """Take these for the layers, the lowest first; called once, by the constructor."""
        self.depth = len(layers)
        for i, layer in enumerate(layers, 1):
            self.add_module(f"layer{i}", layer)

    def layer(self, i: int) -> nn.Module:
        """Layer i, from 1."""
        return self.get_submodule(f"layer{i}")

    @abstractmethod
    def up(self, i: int, x: Tensor) -> Tensor:
        """What layer i makes of its own examples (B, units below), expected values: (B, units)."""

    def upward(self, x: Tensor, i: int, sampled: bool = False) -> Tensor:
        """The examples of layer i for data x (B, *shape): x itself for layer 1, the code of layer L for i = L + 1.

        Args:
            sampled: bits are drawn, in every layer, with the expected values for probabilities.
        """
        h = x.flatten(1) if i > 1 else x
        for below in range(1, i):
            h = self.up(below, h)
            h = noise.bernoulli(h) if sampled else h
        return h

    def begin(self, i: int) -> bool:
        """Called before layer i, from 2, is trained for the first time: it may start from what those below have
        learned. Whether anything has changed."""
        return False


class Ends(NamedTuple):
    """What unrolling takes of a layer: h = f(Wx + c) upwards and x = σ(Vh + b) downwards, where V is Wᵀ if tied."""

    weight: Tensor  # W, (units, units below)
    up: Tensor  # c, (units,)
    back: Tensor  # V, (units below, units)
    down: Tensor  # b, (units below,)


class Unrolled(Stack, Autoencoding):
    """A stack whose layers, once trained, become an encoder and a decoder that are trained as one network.

    Until `unroll` the model is the stack: codes go up through its layers and down again. `unroll` copies W and c into
    the encoder and V and b into the decoder, after which the two halves have weights of their own, in `network`. In
    training mode codes and outputs are those of the network, for it is the network that is trained by them.
    """

    network: nn.ModuleDict
    unrolled: Tensor

    @abstractmethod
    def ends(self, i: int) -> Ends:
        """Weights and biases of layer i."""

    def _make_network(self, hidden: Sequence[int], code: nn.Module) -> None:
        sizes = [self.size, *hidden]
        encoder: list[nn.Module] = [nn.Flatten()]
        decoder: list[nn.Module] = []
        for d_in, d_out in pairwise(sizes):
            encoder += [nn.Linear(d_in, d_out), nn.Sigmoid()]
        for d_in, d_out in pairwise(reversed(sizes)):
            decoder += [nn.Linear(d_in, d_out), nn.Sigmoid()]
        network = {"encoder": nn.Sequential(*encoder[:-1], code), "decoder": nn.Sequential(*decoder[:-1])}
        self.network = nn.ModuleDict(network)
        self.register_buffer("unrolled", torch.zeros(()))

    @torch.no_grad()
    def unroll(self) -> None:
        """Begin the network where the stack has come to."""
        up = [m for m in self.network["encoder"].children() if isinstance(m, nn.Linear)]
        down = [m for m in self.network["decoder"].children() if isinstance(m, nn.Linear)]
        for i, (encoder, decoder) in enumerate(zip(up, reversed(down), strict=True), 1):
            ends = self.ends(i)
            encoder.weight.copy_(ends.weight)
            encoder.bias.copy_(ends.up)
            decoder.weight.copy_(ends.back)
            decoder.bias.copy_(ends.down)
        self.unrolled.fill_(1)

    @property
    def _is_network(self) -> bool:
        return self.training or bool(self.unrolled > 0)  # a running average of the weights averages this number too

    def codes(self, x: Tensor) -> Tensor:
        if self._is_network:
            return self.network["encoder"](x)
        return self.upward(x, self.depth + 1)

    def noisy_codes(self, x: Tensor, dropout: Sequence[float]) -> Tensor:
        """The network's codes of x (B, latent_dim) where each layer drops this share of its inputs."""
        shares = iter(dropout)
        for module in self.network["encoder"].children():
            x = module(dropped(x, next(shares)) if isinstance(module, nn.Linear) else x)
        return x

    def outputs(self, z: Tensor) -> Tensor:
        if self._is_network:
            return self.network["decoder"](z).float().view(-1, *self.shape)
        for i in range(self.depth, 0, -1):
            ends = self.ends(i)
            z = nn.functional.linear(z, ends.back, ends.down)
            z = torch.sigmoid(z) if i > 1 else z
        return z.view(-1, *self.shape)


class RBMStack(Stack):
    """A stack whose layers are RBMs, trained by contrastive divergence."""


class AutoencoderStack(Stack):
    """A stack whose layers are autoencoders, trained by reconstruction."""
