"""Time and peak memory of the dear estimators, on real MNIST, as a table in Markdown.

    python benchmarks/evaluation.py [ais reverse_ais iwae decoder_ais parzen] [--images 10000] [--chains 100]
                                    [--steps 14500] [--samples 5000] [--device cpu] [--threads 2]

AIS anneals an RBM 784-500 by the 14,500 steps of Salakhutdinov & Murray; --steps takes that many evenly spaced ones
instead. IWAE and decoder-AIS judge the first --images test examples under a VAE 784-400-20. The models are untrained,
but start at the data's mean: what is done doesn't depend on the weights. Every estimator runs in a process of its own;
memory is what its peak lies above the process with model, data and libraries loaded, on a GPU torch's own peak.
Nothing is extrapolated: a row says what was run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gentrain.data.pipeline import Pipeline
from gentrain.data.vision import mnist
from gentrain.device import keep_pages
from gentrain.evaluation.ais import AIS, MURRAY, ReverseAIS
from gentrain.evaluation.decoder_ais import DecoderAIS
from gentrain.evaluation.estimator import Estimator, Finding, Subject, seeded
from gentrain.evaluation.likelihood import IWAE
from gentrain.evaluation.parzen import Parzen
from gentrain.models.base import StartsFromMean
from gentrain.models.rbm import RBM
from gentrain.models.vae import VAE

SHAPE = (1, 28, 28)


def schedule(args: argparse.Namespace) -> Any:
    return MURRAY if args.steps is None else [(1.0, args.steps)]


def steps(args: argparse.Namespace) -> int:
    return args.steps or sum(n for _, n in MURRAY)


WORKS: dict[str, tuple[str, Callable[[argparse.Namespace], Estimator], Callable[[argparse.Namespace], str]]] = {
    "ais": (
        "rbm",
        lambda a: AIS(chains=a.chains, schedule=schedule(a)),
        lambda a: f"AIS, {steps(a):,} steps x {a.chains} chains, RBM 784-500, {{n:,}} images",
    ),
    "reverse_ais": (
        "rbm",
        lambda a: ReverseAIS(chains=a.chains, schedule=schedule(a)),
        lambda a: f"reverse AIS, {steps(a):,} steps x {a.chains} chains, 1,000 of burn-in, RBM 784-500, {{n:,}} images",
    ),
    "iwae": (
        "vae",
        lambda a: IWAE(samples=a.samples),
        lambda a: f"IWAE-{a.samples} x {{n:,}} images, VAE 784-400-20",
    ),
    "decoder_ais": (
        "vae",
        lambda a: DecoderAIS(images=a.images, simulated=0),
        lambda a: "decoder-AIS, 200 steps x 16 chains x 10 leapfrogs x {n:,} images, VAE 784-400-20",
    ),
    "parzen": (
        "vae",
        lambda a: Parzen(),
        lambda a: "Parzen, 10,000 centres x {n:,} images, VAE 784-400-20",
    ),
}


class Peak:
    """MiB above what was held at its creation, at the highest since then; exactly so where there is /proc or a GPU."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif self._proc.exists():
            with contextlib.suppress(AttributeError):  # a C library without it
                ctypes.CDLL(None).malloc_trim(0)  # what loading has freed goes back to the system
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark falls to what is held now
        self.before = self._now()

    _proc = Path("/proc/self/status")

    def _now(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if self._proc.exists():
            return int(self._proc.read_text().split("VmHWM:")[1].split()[0]) / 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes

    def above(self) -> float:
        return self._now() - self.before


def measure(name: str, args: argparse.Namespace, results: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(args.threads)
    keep_pages()  # as the command does
    device = torch.device(args.device)
    kind, make, describe = WORKS[name]
    torch.manual_seed(0)
    model = RBM(SHAPE, 500) if kind == "rbm" else VAE(SHAPE, levels=256, latent_dim=20, hidden=[400])
    pipeline = Pipeline(mnist(), "binary", 128, 0, device)
    assert isinstance(model, StartsFromMean)
    model.start_from_mean(pipeline.mean().cpu())
    subject = Subject(model.to(device).eval(), pipeline, n=args.images)
    estimator = make(args)
    memory = Peak(device)
    began = time.perf_counter()
    with seeded(0):
        first, *_ = (f for f in estimator(subject) if isinstance(f, Finding))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    results.put((describe(args).format(n=first.n), seconds, memory.above()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=["ais", "iwae"], metavar="work", help=", ".join(WORKS))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if unknown := [work for work in args.works if work not in WORKS]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(WORKS)}")
    context = multiprocessing.get_context("spawn")
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads"
    print(f"| {where} | seconds | peak memory above the model's, MiB |\n|---|---:|---:|")
    for work in args.works:
        results = context.SimpleQueue()
        process = context.Process(target=measure, args=(work, args, results))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
        label, seconds, memory = results.get()
        print(f"| {label} | {seconds:.1f} | {memory:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
