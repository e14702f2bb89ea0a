"""Where arithmetic is done: device, precision, threads, memory, and the processes of a distributed run."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gentrain import noise
from gentrain.errors import UsageError
from gentrain.settings import DeviceSettings


@dataclass(frozen=True)
class Device:
    """The device of this process, the precision of its matrix products, and its place among `world` processes."""

    torch: torch.device
    precision: str = "fp32"
    compile: bool = False
    graphs: bool = False
    rank: int = 0
    world: int = 1

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision])

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` as one graph of fused kernels; with `graphs` its kernels are launched together (CUDA graphs)."""
        return torch.compile(function, mode="reduce-overhead" if self.graphs else None)

    def begin_step(self) -> None:
        """Give the buffers that the last step's graphs wrote to free: their results are no longer read."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def uncompiled(self) -> contextlib.AbstractContextManager[Any]:
        """Within it compiled functions run as written: for batches of other sizes, each of which compiles anew."""
        return torch.compiler.set_stance("force_eager") if self.compile else contextlib.nullcontext()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in one message."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process."""
        if self.world == 1:
            return flag
        raised = torch.tensor([float(flag)], device=self.torch)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def agree(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def synchronise(self, module: nn.Module) -> None:
        """Give every process the main process's parameters and buffers."""
        if self.world > 1:
            for t in module.state_dict().values():
                dist.broadcast(t, src=0)

    def describe(self) -> str:
        name = torch.cuda.get_device_name(self.torch) if self.torch.type == "cuda" else self.torch.type
        threads = f", {torch.get_num_threads()} threads" if self.torch.type == "cpu" else ""
        processes = f", {self.world} processes" if self.world > 1 else ""
        return f"{name}, {self.precision}{threads}{processes}"


def setup(settings: DeviceSettings) -> Device:
    """Choose the device and prepare this process for it.

    Raises:
        UsageError: the device isn't there, or can't do the precision.
    """
    name = settings.name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda: torch finds no CUDA GPU here; choose device=cpu or device=auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device=mps: torch finds no Apple GPU here; choose device=cpu or device=auto")
    if settings.precision == "fp16" and name != "cuda":
        raise UsageError(f"device.precision=fp16: needs a CUDA GPU, this is {name}; choose device.precision=bf16")
    if settings.graphs and name != "cuda":
        raise UsageError(f"device.graphs=true: needs a CUDA GPU, this is {name}; leave it false")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.keep_pages:
        keep_pages()
    rank, world = _join()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True  # a resumed run must repeat the uninterrupted one bit for bit
    noise.shard(rank, world)
    return Device(device, settings.precision, settings.compile or settings.graphs, settings.graphs, rank, world)


def _join() -> tuple[int, int]:
    """Join the process group that torchrun announces in the environment; (rank, world)."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1
    if not dist.is_initialized():  # joined once in a process's life: a second training finds the group still there
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), dist.get_world_size()


def is_main_process() -> bool:
    """Whether this is the only process or the first of several."""
    return int(os.environ.get("RANK", 0)) == 0


def keep_pages() -> None:
    """Let glibc keep freed memory.

    By default every activation above 128 KiB is mapped afresh and its pages are faulted in again each step, which on
    a CPU costs up to a third of a step. Older releases of glibc refuse thresholds above 32 MiB.
    """
    if platform.system() != "Linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3
        if not libc.mallopt(m_mmap_threshold, 1 << 30):
            libc.mallopt(m_mmap_threshold, 32 << 20)
        libc.mallopt(m_trim_threshold, 1 << 30)


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Within it, draws come from `seed` and leave the training's generators untouched.

    So how often a run is evaluated or sampled never changes what it learns.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), noise.whole():
        torch.manual_seed(seed)
        yield


def rng_state() -> dict[str, Any]:
    """The state of torch's generators, as tensors."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
