"""Earlier generated examples, shown to a critic among today's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gentrain import noise


class Pool(nn.Module):
    """What a generator has made before, so that its critic doesn't forget (Shrivastava et al. 2017, arXiv:1612.07828,
    section 2.3; here as in Zhu et al. 2017, section 4).

    The first `size` examples are kept and pass. From then on an example passes with probability ½; else an earlier one,
    drawn evenly, comes out, and the new one takes its place. Examples of a batch go in one after the other.

    Of several processes each has the same pool, which the whole batch goes through.

    Args:
        size: examples that it holds; 0 lets all pass. shape: of one.

    >>> pool = Pool(2, (1,))
    >>> pool(torch.tensor([[1.0], [2.0]])).flatten(), pool.images.flatten()
    (tensor([1., 2.]), tensor([1., 2.]))
    """

    images: Tensor
    held: Tensor

    def __init__(self, size: int, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """As many examples as x (B, *shape), each new or earlier."""
        size = len(self.images)
        if not size:
            return x
        new = noise.of_all_processes(x)
        with noise.whole():
            u = noise.uniform(len(new), 2, device=x.device)
        order = torch.arange(len(new), device=x.device)
        places = torch.arange(size, device=x.device)
        fills = self.held + order < size
        place = torch.where(fills, self.held + order, (u[:, 0] * size).long().clamp_(max=size - 1))
        swaps = ~fills & (u[:, 1] < 0.5)
        stays = fills | swaps

        def last(wanted: Tensor, before: Tensor | int) -> Tensor:
            """Where in [images, new] the latest example lies that is in the `wanted` place, of those `before`."""
            there = (place == wanted[:, None]) & stays & (order < before)
            latest = torch.where(there, order, -1).amax(1)
            return torch.where(latest >= 0, size + latest, wanted)

        every = torch.cat([self.images, new.to(self.images.dtype)])
        out = every[torch.where(swaps, last(place, order[:, None]), size + order)]
        self.images.copy_(every[last(places, len(new))])
        self.held.add_(len(new)).clamp_(max=size)
        return noise.own_rows(out, len(x)).to(x.dtype)
