"""Stacks: models of several layers that are trained one after the other, each on what the ones below make of x."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


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

    def upward(self, x: Tensor, i: int) -> Tensor:
        """The examples of layer i for data x (B, *shape): x itself for layer 1, the code of layer L for i = L + 1."""
        h = x.flatten(1) if i > 1 else x
        for below in range(1, i):
            h = self.up(below, h)
        return h
