"""Speed of autoregressive models against the plain way of computing the same.

    python benchmarks/autoregressive.py nade        a training step of NADE-500 on 28x28 bits, against a loop of pixels
    python benchmarks/autoregressive.py pixelcnn    sampling 28x28 bits from caches, against a whole pass for each pixel

Both ways are run in turn, in one process, on the same parameters; times are medians, and what they give is compared
first: gradients, or images bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gentrain.models.gated_pixel_cnn import GatedPixelCNN
from gentrain.models.nade import NADE
from gentrain.models.pixel_cnn import PixelCNN
from gentrain.models.raster import Raster


def medians(ways: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way in every round, all ways in turn in a round; the first round isn't counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(repeats + 1):
        for name, way in ways.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


def table(title: str, times: dict[str, list[float]], plain: str) -> None:
    """A Markdown table; the ratio is the median over rounds of the plain way's time to each way's in the same round."""
    print(f"| {title} | ms (median) | times as fast as {plain} |\n|---|---|---|")
    for name, seconds in times.items():
        ratio = statistics.median(p / s for p, s in zip(times[plain], seconds, strict=True))
        print(f"| {name} | {1e3 * statistics.median(seconds):.1f} | {ratio:.2f} |")


def where(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def loop_loss(model: NADE, x: Tensor) -> Tensor:
    """-log p(x), averaged, pixel by pixel through autograd."""
    v, a, logits = x.flatten(1), model.hidden_bias.expand(len(x), -1), []
    for i in range(model.size):
        logits.append(torch.sigmoid(a) @ model.output_weight[i, 0])
        a = a + v[:, i, None] * model.weight[i]
    logits = torch.stack(logits, 1) + model.likelihood.bias
    return binary_cross_entropy_with_logits(logits, v, reduction="none").sum(1).mean()


def nade(device: torch.device, repeats: int, batch: int, hidden: int) -> None:
    torch.manual_seed(0)
    model = NADE((1, 28, 28), levels=2, hidden=hidden).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    x = (torch.rand(batch, 1, 28, 28, device=device) < 0.2).float()
    losses = {"NADE": lambda: -model.log_prob(x).mean(), "loop over pixels": lambda: loop_loss(model, x)}
    ours, theirs = (torch.autograd.grad(loss(), list(model.parameters())) for loss in losses.values())
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    assert worst < 1e-3, f"gradients differ by {worst}"

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def once() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return once

    times = medians({name: step(loss) for name, loss in losses.items()}, repeats, device)
    table(f"training step, {hidden} hidden units, {batch} images ({where(device)})", times, "loop over pixels")


def pixelcnn(device: torch.device, repeats: int, batch: int) -> None:
    for kind in (PixelCNN, GatedPixelCNN):
        torch.manual_seed(0)
        model = kind((1, 28, 28), levels=2, channels=16, blocks=5, kernel=7).to(device).eval()

        def sample(cached: bool, model: Raster = model) -> Tensor:
            torch.manual_seed(0)
            return model.sample(batch, cached=cached)

        assert torch.equal(sample(True), sample(False)), "the images differ"
        times = medians({"cached": lambda: sample(True), "uncached": lambda: sample(False)}, repeats, device)
        table(f"sampling {batch} images, {kind.__name__} 16 x 5 ({where(device)})", times, "uncached")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; torch's own choice if left out")
    parser.add_argument("--repeats", type=int, default=11)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("nade", help="a training step of NADE against a loop over pixels")
    training.add_argument("--batch", type=int, default=100)
    training.add_argument("--hidden", type=int, default=500)
    sampling = commands.add_parser("pixelcnn", help="sampling of both PixelCNNs with and without caches")
    sampling.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.command == "nade":
        nade(args.device, args.repeats, args.batch, args.hidden)
    if args.command == "pixelcnn":
        pixelcnn(args.device, args.repeats, args.batch)


if __name__ == "__main__":
    main()
