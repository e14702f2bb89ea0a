"""What a critic is told of a batch as a whole, so that a generator which makes one thing only gives itself away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class MinibatchDiscrimination(nn.Module):
    """Appends how near each example is to the others: o(x_i)_b = Σ_j exp(-‖M_ib - M_jb‖₁), M_i = T f(x_i), a matrix
    of B rows (kernels) and C columns (Salimans et al. 2016, arXiv:1606.03498, section 3.2).

    The sum is over the batch that is passed through the layer, the example itself included: real and generated examples
    go apart, evaluation wants batches as large as training's, and several processes each compare their own share.

    Args:
        inputs: A, of f. kernels: B. dims: C. reference: rows at the end that are no part of the batch, and left out.

    >>> layer = MinibatchDiscrimination(1, kernels=1, dims=1)
    >>> _ = layer.tensor.weight.data.fill_(1.0)
    >>> layer(torch.tensor([[0.0], [1.0]]))[:, 1].allclose(1 + torch.tensor(-1.0).exp())
    True
    """

    def __init__(self, inputs: int, kernels: int, dims: int, reference: int = 0):
        super().__init__()
        self.kernels, self.dims, self.reference = kernels, dims, reference
        self.tensor = nn.Linear(inputs, kernels * dims, bias=False)  # a bias would go out in the differences

    def forward(self, f: Tensor) -> Tensor:
        """(B + R, A) -> (B, A + kernels)."""
        f = f[: len(f) - self.reference]
        m = self.tensor(f).float().view(-1, self.kernels, self.dims).permute(2, 1, 0).contiguous()
        distance = m.new_zeros(())  # column by column: twice as fast as all differences at once
        for column in m:
            distance = distance + (column[:, :, None] - column[:, None, :]).abs()
        near = torch.exp(-distance).sum(2).T
        return torch.cat([f, near.to(f.dtype)], 1)


class MinibatchDeviation(nn.Module):
    """Appends one channel, everywhere the same number: the standard deviation of each unit over the batch, averaged
    over all units (Karras et al. 2018, arXiv:1710.10196, section 3).

    Args:
        reference: rows at the end that are no part of the batch, and left out.

    >>> MinibatchDeviation()(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))  # (1 + 2)/2
    tensor([[1.0000, 0.0000, 1.5000],
            [3.0000, 4.0000, 1.5000]])
    """

    def __init__(self, reference: int = 0):
        super().__init__()
        self.reference = reference

    def forward(self, f: Tensor) -> Tensor:
        """(B + R, C, …) -> (B, C + 1, …)."""
        f = f[: len(f) - self.reference]
        deviation = (f.float().var(0, correction=0) + 1e-8).sqrt().mean()  # √ has no gradient at 0
        return torch.cat([f, deviation.to(f.dtype).expand_as(f[:, :1])], 1)


ACROSS = (MinibatchDiscrimination, MinibatchDeviation)
"""Layers by which an example's output depends on the others of its batch, in training as otherwise."""


@dataclass(frozen=True)
class Minibatch:
    """What a critic's last layer sees of a batch as a whole.

    Args:
        features: kernels of minibatch discrimination; 0 is none. dims: of each. deviation: whether that is appended.
    """

    features: int = 0
    dims: int = 5
    deviation: bool = False

    def last(self, channels: int, side: int, reference: int) -> list[nn.Module]:
        """From f (B + reference, channels, side, side), or (…, channels) where `side` is 0, to one number an example:
        the appended features, and the critic's last layer."""
        layers: list[nn.Module] = []
        if self.deviation:
            layers.append(MinibatchDeviation(reference))
            channels, reference = channels + 1, 0
        if self.features == 0:
            return [*layers, nn.Conv2d(channels, 1, side) if side else nn.Linear(channels, 1)]
        units = channels * side**2 if side else channels
        layers += [nn.Flatten()] if side else []
        layers.append(MinibatchDiscrimination(units, self.features, self.dims, reference))
        return [*layers, nn.Linear(units + self.features, 1)]
