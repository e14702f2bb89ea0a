"""What the autoregressive models' short cuts buy, as ratios.

    python benchmarks/autoregressive.py pixelcnn [--rounds 5] [--n 16] [--side 28]    sampling with and without caches

The two contenders take turns in one process. Ratios are taken within a round, and their median is printed with the
smallest and largest, so a machine that speeds up or slows down between rounds favours neither.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from gentrain.models.gated_pixel_cnn import GatedPixelCNN
from gentrain.models.pixel_cnn import PixelCNN
from gentrain.models.raster import Raster


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(what: str, contenders: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Median seconds of each contender, and of the first one's over the others' within a round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            times[name].append(seconds(work))
    first = next(iter(contenders))
    for name, own in times.items():
        ratios = [a / b for a, b in zip(times[first], own, strict=True)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        gain = f"{first} / {name} = {middle:.1f} ({low:.1f} to {high:.1f})"
        print(f"{what}  {name:>9}  {statistics.median(own):8.3f} s  {gain}", flush=True)


def pixelcnn(rounds: int, n: int, side: int) -> None:
    """Sampling n images with caches, and by the whole network for every pixel. Both give the same images."""

    def sample(model: Raster, cached: bool) -> torch.Tensor:
        torch.manual_seed(0)
        return model.sample(n, cached=cached)

    shape = (1, side, side)
    for kind in (PixelCNN, GatedPixelCNN):
        torch.manual_seed(0)
        model = kind(shape, 2, channels=16, blocks=5, kernel=7).eval()
        if not torch.equal(sample(model, True), sample(model, False)):
            raise SystemExit(f"{kind.__name__}: the images differ")
        what = f"{kind.__name__} 16 x 5, {n} images of {side}x{side}"
        compare(what, {"uncached": lambda m=model: sample(m, False), "cached": lambda m=model: sample(m, True)}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pixels = commands.add_parser("pixelcnn", help=pixelcnn.__doc__)
    pixels.add_argument("--rounds", type=int, default=5)
    pixels.add_argument("--n", type=int, default=16)
    pixels.add_argument("--side", type=int, default=28)
    arguments = parser.parse_args()
    if arguments.command == "pixelcnn":
        pixelcnn(arguments.rounds, arguments.n, arguments.side)


if __name__ == "__main__":
    main()
