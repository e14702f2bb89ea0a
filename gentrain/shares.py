"""A batch that several processes share: the whole of it, in its order, and a process's own rows."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def whole(x: Tensor) -> Tensor:
    """The rows of all processes in the batch's order, (B, …), from each one's own x (B / processes, …)."""
    if not _several():
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def own(x: Tensor) -> Tensor:
    """This process's rows of x (B, …)."""
    return x.chunk(dist.get_world_size())[dist.get_rank()] if _several() else x


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
