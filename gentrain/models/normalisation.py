"""Normalisation of hidden units, by the batch, the example, or a reference batch that stays the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentrain.errors import UsageError


class ReferenceBatchNorm(nn.Module):
    """γ (x - μ)/√(σ² + ε) + β, with μ and σ² of each channel over a reference batch (Salimans et al. 2016, section 3.5;
    Goodfellow 2016, arXiv:1701.00160, section 4.3).

    The reference goes through all layers behind the batch, as its last rows, and so is at each layer what the weights
    of today make of it. What becomes of an example depends on it and the reference alone, in training as otherwise.

    Args:
        channels: of x (B + R, channels, …). reference: R.

    >>> x, reference = torch.tensor([[7.0], [3.0]]), torch.tensor([[1.0], [3.0]])
    >>> y = ReferenceBatchNorm(1, reference=2)(torch.cat([x, reference])).flatten()  # μ = 2, σ = 1
    >>> torch.allclose(y, torch.tensor([5.0, 1.0, -1.0, 1.0]), atol=1e-4)
    True
    """

    def __init__(self, channels: int, reference: int, eps: float = 1e-5):
        super().__init__()
        self.reference, self.eps = reference, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        batch, reference = wide[: -self.reference], wide[-self.reference :]
        everywhere = [i for i in range(x.dim()) if i != 1]
        variance, mean = torch.var_mean(reference, everywhere, correction=0, keepdim=True)
        own_mean, own_variance = self.moments(batch, mean, variance)
        behind = [len(reference), *[-1] * (x.dim() - 1)]  # the reference is normalised by its own statistics alone
        mean = torch.cat([own_mean, mean.expand(behind)])
        variance = torch.cat([own_variance, variance.expand(behind)])
        channels = [1, -1] + [1] * (x.dim() - 2)
        scale = self.weight.view(channels) * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias.view(channels) - mean * scale, wide, scale).to(x.dtype)

    def moments(self, batch: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, (B, channels, 1, …), by which each example of the batch is normalised, from those of the
        reference, (1, channels, 1, …)."""
        rows = [len(batch), *[-1] * (batch.dim() - 1)]
        return mean.expand(rows), variance.expand(rows)


class VirtualBatchNorm(ReferenceBatchNorm):
    """The same, with μ and σ² of each example over the reference batch and the example itself (Salimans et al. 2016,
    arXiv:1606.03498, section 3.5).

    >>> x, reference = torch.tensor([[5.0]]), torch.tensor([[1.0], [3.0]])
    >>> y = VirtualBatchNorm(1, reference=2)(torch.cat([x, reference])).flatten()
    >>> torch.allclose(y[0], torch.tensor((5 - 3) / (8 / 3) ** 0.5), atol=1e-4)  # μ = 3, σ² = (2² + 2² + 0)/3
    True
    """

    def moments(self, batch: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        places = list(range(2, batch.dim()))
        if places:
            own_variance, own_mean = torch.var_mean(batch, places, correction=0, keepdim=True)
        else:
            own_variance, own_mean = torch.zeros_like(batch), batch
        # Of two groups with shares a and 1 - a: no difference of large squares.
        a = 1 / (self.reference + 1)
        spread = a * own_variance + (1 - a) * variance + a * (1 - a) * (own_mean - mean).square()
        return a * own_mean + (1 - a) * mean, spread


@dataclass(frozen=True)
class Norm:
    """Which normalisation a player's hidden layers have.

    Args:
        kind: "batch", "none", "layer" (over an example's units or whole map, Ba et al. 2016, arXiv:1607.06450),
            "instance" (over an example's map, a channel at a time; Ulyanov et al. 2016, arXiv:1607.08022), "virtual" or
            "reference".
        reference: examples in the reference batch of the last two.
    """

    kind: str
    reference: int

    @property
    def rows(self) -> int:
        """Examples of the reference that go through the layers behind the batch."""
        return self.reference if self.kind in ("virtual", "reference") else 0

    @property
    def bias(self) -> bool:
        """Whether the layer before needs a bias: most of these would take it away again."""
        return self.kind == "none"

    def layers(self, channels: int, dims: int) -> list[nn.Module]:
        """The layer, or none, for an output (B, channels, …) with `dims` further axes: 0 or 2.

        Raises:
            UsageError: there is no such normalisation of these.
        """
        match self.kind:
            case "batch":
                return [nn.BatchNorm2d(channels) if dims else nn.BatchNorm1d(channels)]
            case "layer":
                return [nn.GroupNorm(1, channels)]
            case "instance" if dims:
                return [nn.InstanceNorm2d(channels, affine=True)]
            case "virtual":
                return [VirtualBatchNorm(channels, self.reference)]
            case "reference":
                return [ReferenceBatchNorm(channels, self.reference)]
            case "none":
                return []
            case _:
                raise UsageError(f"norm={self.kind}: there is no such normalisation of {'maps' if dims else 'vectors'}")


AFFINE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, ReferenceBatchNorm)
"""The layers above, each with γ and β as `weight` and `bias`."""
