"""What the models of the README learn on real MNIST, in numbers that need more than a training run's own.

    python benchmarks/learning.py rbm RUN…        exact validation and test log-likelihood of small RBMs
    python benchmarks/learning.py digits RUN…     share of each digit among 10,000 samples, judged by a classifier

The exact log-likelihood sums over all states of the smaller layer. The classifier is a small convolutional network
trained on the training split alone; its accuracy on the test split is printed with the shares.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gentrain
from gentrain.data.pipeline import Pipeline
from gentrain.data.vision import mnist
from gentrain.device import own_randomness


def pipeline(support: str) -> Pipeline:
    source = mnist(root=None, download=True, validation=None)
    return Pipeline(source, support, batch_size=128, seed=0)  # type: ignore[arg-type]


@torch.no_grad()
def rbm(runs: list[str]) -> None:
    """One row a run: mean exact log-likelihood in nats with its standard error over examples."""
    data = pipeline("binary")
    for run in runs:
        model = gentrain.load(run)
        row = []
        for split in ("validation", "test"):
            values = torch.cat([model.log_prob(b.x) for b in data.evaluation(split, 1000)]).double()
            row.append(f"{split} {values.mean():.2f} ± {values.std() / math.sqrt(len(values)):.2f}")
        print(run, *row, f"log Z {model.log_partition():.2f}", sep="  ", flush=True)


def classifier(data: Pipeline, epochs: int = 3) -> nn.Module:
    """A convolutional classifier of digits in [-1, 1], trained on the training split."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(32),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(64),
        nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    steps = epochs * data.steps_per_epoch
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        batch = data.batch(step)
        optimizer.zero_grad()
        F.cross_entropy(net(batch.x), batch.y).backward()  # type: ignore[arg-type]
        optimizer.step()
        schedule.step()
    return net.eval()


def drawn(run: str, n: int) -> Iterator[Tensor]:
    model = gentrain.load(run)
    with own_randomness(0):
        for _ in range(n // 1000):
            yield model.sample(1000)


@torch.no_grad()
def digits(runs: list[str]) -> None:
    """Accuracy of the judge, then one row a run: share of each digit in percent, and of confident judgements."""
    data = pipeline("signed")
    with torch.enable_grad():
        net = classifier(data)
    right = sum(int((net(b.x).argmax(1) == b.y).sum()) for b in data.evaluation("test", 1000))
    print(f"classifier: {right / 100:.2f} % of the test split right", flush=True)
    for run in runs:
        probabilities = torch.cat([net(x).softmax(1) for x in drawn(run, 10_000)])
        best, label = probabilities.max(1)
        shares = torch.bincount(label, minlength=10) / len(label)
        divergence = (shares * torch.log(shares * 10).nan_to_num(neginf=0)).sum()
        row = " ".join(f"{d}:{100 * s:.1f}" for d, s in enumerate(shares))
        sure = 100 * (best > 0.9).float().mean()
        print(f"{run}  {row}  KL to uniform {divergence:.3f} nats, {sure:.1f} % judged with over 0.9", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rbm", "digits"])
    parser.add_argument("runs", nargs="+")
    arguments = parser.parse_args()
    {"rbm": rbm, "digits": digits}[arguments.what](arguments.runs)


if __name__ == "__main__":
    main()
