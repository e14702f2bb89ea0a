"""Random draws for training whose leading axis is the batch.

Every process of a distributed run holds the same generator state and draws for the *whole* batch, then keeps its own
rows. So two processes with half the batch each see exactly the noise that one process would have seen, the generator
state is the same everywhere, and a checkpoint of one process restores any number of them. Alone (the usual case) the
draws are torch's own and cost nothing more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributions import Distribution

_rank, _world = 0, 1


def shard(rank: int, world: int) -> None:
    """Say which share of every batch this process holds: rows [rank * B, (rank + 1) * B) of world * B."""
    global _rank, _world
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} must lie in [0, {world})")
    _rank, _world = rank, world


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Within it this process draws for itself alone: sampling and evaluation on one process of many."""
    rank, world = _rank, _world
    shard(0, 1)
    try:
        yield
    finally:
        shard(rank, world)


def own_rows(full: Tensor, rows: int) -> Tensor:
    """This process's share, of `rows` rows, of what every process holds the whole of."""
    return full if _world == 1 else full[_rank * rows : (_rank + 1) * rows]


def normal(*shape: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal draws of `shape`, whose first axis is this process's share of the batch."""
    if _world == 1:
        return torch.randn(*shape, device=device, dtype=dtype)
    return own_rows(torch.randn(shape[0] * _world, *shape[1:], device=device, dtype=dtype), shape[0])


def uniform(*shape: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Uniform draws from [0, 1) of `shape`, whose first axis is this process's share of the batch."""
    if _world == 1:
        return torch.rand(*shape, device=device, dtype=dtype)
    return own_rows(torch.rand(shape[0] * _world, *shape[1:], device=device, dtype=dtype), shape[0])


def bernoulli(p: Tensor) -> Tensor:
    """Draws from Bernoulli(p) as zeros and ones of p's type; the first axis of `p` is the batch.

    Comparing with uniforms is several times faster on a CPU than `torch.bernoulli`.
    """
    u = uniform(*p.shape, device=p.device)
    return torch.lt(u, p.detach(), out=u).to(p.dtype)


def categorical(logits: Tensor) -> Tensor:
    """Draws from softmax(logits), (B, K) with B the batch, as indices (B,), by Gumbel's trick."""
    u = uniform(*logits.shape, device=logits.device)
    return (logits.detach().float() - (-u.log()).log()).argmax(-1)


def sample(distribution: Distribution, rows: int) -> Tensor:
    """`rows` independent draws of a distribution without batch shape, (rows, *event_shape)."""
    return own_rows(distribution.sample(torch.Size([rows * _world])), rows)


def replicate(draw: Callable[[int], Tensor], k: int) -> Tensor:
    """`draw(k)`, where draw(n) gives n independent draws for all rows of this process's share of a batch.

    Of several processes each has draws of its own, and all advance their generators by as much. They aren't those that
    one process would have: for distributions that say nothing of how their noise goes with the rows.
    """
    return draw(k) if _world == 1 else draw(k * _world)[_rank * k : (_rank + 1) * k]


def of_all_processes(x: Tensor) -> Tensor:
    """The whole batch, in its order, where several processes share it: no gradient is averaged here. Within `whole` a
    process has all of it already, and asks nobody."""
    if _world == 1 or not (dist.is_available() and dist.is_initialized()):
        return x
    shares = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, x.contiguous())
    return torch.cat(shares)


def joined(x: Tensor) -> Tensor:
    """The whole batch where several processes share it, with gradients to this one's rows x.

    For a loss of the whole batch that every process computes: averaged over processes, the gradients are then those of
    that loss, so here they are taken as many times.
    """
    if _world == 1:
        return x
    rows, full = len(x), of_all_processes(x.detach())
    own = x * _world - x.detach() * (_world - 1)
    return torch.cat([full[: _rank * rows], own, full[(_rank + 1) * rows :]])
