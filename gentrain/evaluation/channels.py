"""One classifier for images whose channels are images of their own, each with a label of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from gentrain.evaluation.classifier import Network


class PerChannel(nn.Module):
    """A classifier of K kinds of grey images, put to each of C channels; it answers for all of them together.

        log p(y | x) = Σ_c log p(y_c | x_c),  y = y_1 K^(C-1) + … + y_C

    So its cross-entropy is the sum of the channels', and it learns from C images an example.

    Args:
        network: of images (B, 1, H, W).

    >>> import torch
    >>> from gentrain.evaluation.classifier import Network
    >>> PerChannel(Network((1, 8, 8), classes=10))(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 1000])
    """

    network: Network

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    @property
    def spread(self) -> Tensor:
        return self.network.spread

    def features(self, x: Tensor) -> Tensor:
        """Those of all channels, one after the other, (B, C d)."""
        return self.network.features(_apart(x)).view(len(x), -1)

    def forward(self, x: Tensor) -> Tensor:
        """log p(y | x), (B, K^C)."""
        each = self.network(_apart(x)).log_softmax(1).view(*x.shape[:2], -1)
        joint = each[:, 0]
        for c in range(1, x.shape[1]):
            joint = (joint[:, :, None] + each[:, c, None, :]).flatten(1)
        return joint

    def standardise(self, x: Tensor) -> None:
        self.network.standardise(_apart(x))


def _apart(x: Tensor) -> Tensor:
    """Every channel as an image, (B C, 1, H, W)."""
    return x.flatten(0, 1)[:, None]
