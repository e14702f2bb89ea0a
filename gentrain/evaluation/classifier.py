"""The classifier that judges labelled images: gentrain trains it on the data set's own labels, once, and keeps it.

It lies in the cache folder; its sha256 and accuracy stand in every row that rests on it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from gentrain.data.places import cache_folder
from gentrain.device import own_randomness
from gentrain.errors import DiskError, UsageError
from gentrain.evaluation.channels import PerChannel
from gentrain.evaluation.estimator import Subject
from gentrain.evaluation.judged import labelled, representation, shelf, unit
from gentrain.files import read_json, write_atomic, write_json
from gentrain.models.layers import SMALLEST, mlp

log = logging.getLogger(__name__)

RECIPE = 1
"""Goes up whenever architecture or training below change: cached classifiers of other recipes are not used."""
STEPS, EPOCHS, BATCH, RATE = 1000, 40, 128, 3e-3
"""It is trained for STEPS batches or EPOCHS, whichever ends first."""
STACKS = 20_000
"""Of examples whose channels are images of their own, so many are enough, in smaller batches: each is several."""
WIDTH = 64
"""Features: few, so that a covariance of a few thousand samples is well determined."""


class Network(nn.Module):
    """Classifies examples on [0, 1]: two convolutions for images from 8x8, else two hidden layers; then `WIDTH`
    rectified units and a linear layer. Its features are those units, divided by their root mean square on training
    data, so that distances of different data sets have about one scale.

    Args:
        shape: of one example. classes: number of labels.
    """

    shift: Tensor
    scale: Tensor
    spread: Tensor

    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        self.images = len(shape) == 3
        per_channel = (shape[0], 1, 1) if self.images else shape
        self.register_buffer("shift", torch.zeros(per_channel))
        self.register_buffer("scale", torch.ones(per_channel))
        self.register_buffer("spread", torch.ones(()))
        if self.images and min(shape[1:]) >= SMALLEST:
            height, width = shape[1] // 4, shape[2] // 4
            self.body = nn.Sequential(
                nn.Conv2d(shape[0], 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(64 * height * width, WIDTH), nn.ReLU(),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(nn.Flatten(), mlp([math.prod(shape), 128, 128, WIDTH]), nn.ReLU())
        self.head = nn.Linear(WIDTH, classes)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, scaled, (B, WIDTH)."""
        return self.body((x - self.shift) / self.scale) / self.spread

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, classes)."""
        return self.head(self.body((x - self.shift) / self.scale))

    def standardise(self, x: Tensor) -> None:
        """Take shift and scale from examples: of each channel of an image, of each coordinate of a point."""
        dims = (0, 2, 3) if self.images else (0,)
        self.shift.copy_(x.mean(dims, keepdim=True)[0])
        self.scale.copy_(x.std(dims, keepdim=True)[0].clamp_min(1e-3))


@dataclass(frozen=True)
class Classifier:
    """A trained network, the sha256 of its file, and its accuracy on `split`, of n examples."""

    network: Network | PerChannel
    sha256: str
    accuracy: float
    split: str
    n: int

    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each of x, on [0, 1], is put under the label y (B,): (B,), bools."""
        return self.network(x).argmax(1) == y

    @property
    def settings(self) -> dict[str, Any]:
        """What a row says of it."""
        return {"classifier": self.sha256, "classifier_accuracy": self.accuracy, "classifier_split": self.split}


def classifier(subject: Subject) -> Classifier:
    """The classifier of the subject's data set: from the cache, or trained and put there.

    It is trained on the training split as models of this protocol see it, with fixed seeds; its accuracy is that on the
    test split, without one on the validation split. Of two processes one trains and the other waits.

    Raises:
        UsageError: the data have no labels. DiskError: the cache folder can't be written.
    """
    if not labelled(subject):
        raise UsageError(
            f"data={subject.spec.name} has no labels to train a classifier with; set features=pixels, or auto"
        )
    kept = shelf(subject)
    if "classifier" not in kept:
        kept["classifier"] = _cached(subject)
    return kept["classifier"]


def _cached(subject: Subject) -> Classifier:
    if not subject.data:
        raise ValueError("Subject.data must be the fingerprint of the training set: the classifier is kept under it")
    words = f"{subject.data}|{representation(subject.pipeline)}|{RECIPE}"
    folder = cache_folder() / "classifiers"
    path = folder / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"{folder}: can't be made: {error.strerror}; set XDG_CACHE_HOME to a folder that can"
        ) from error
    with FileLock(path.with_suffix(".lock")):
        found = _read(path, subject)
        if found is None:
            network = _train(subject)
            split, accuracy, n = _accuracy(network, subject)
            buffer = io.BytesIO()
            weights = {key: value.cpu() for key, value in network.state_dict().items()}
            torch.save({"network": weights, "accuracy": accuracy, "split": split, "n": n}, buffer)
            content = buffer.getvalue()
            found = Classifier(network, hashlib.sha256(content).hexdigest(), accuracy, split, n)
            write_atomic(path, content)
            about = {"sha256": found.sha256, "data": subject.spec.name, "words": words}
            write_json(path.with_suffix(".json"), about)
    return found


def _network(subject: Subject) -> Network | PerChannel:
    spec = subject.spec
    if spec.channel_classes is not None:
        return PerChannel(Network((1, *spec.shape[1:]), spec.channel_classes)).to(subject.device)
    return Network(spec.shape, spec.classes or 0).to(subject.device)


def _read(path: Path, subject: Subject) -> Classifier | None:
    """The cached classifier; None if there is none or it is damaged, which is said."""
    if not path.exists():
        return None
    about = read_json(path.with_suffix(".json"))
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if not isinstance(about, dict) or sha256 != about.get("sha256"):
        log.warning("%s: damaged: its sha256 is not the one recorded; training the classifier again", path)
        return None
    state = torch.load(io.BytesIO(content), map_location=subject.device, weights_only=True)
    network = _network(subject)
    network.load_state_dict(state["network"])
    return Classifier(network.eval().requires_grad_(False), sha256, state["accuracy"], state["split"], state["n"])


def _train(subject: Subject) -> Network | PerChannel:
    pipeline = subject.pipeline
    limit, batch_size = (
        (None, BATCH) if subject.spec.channel_classes is None else (STACKS, BATCH // subject.spec.shape[0])
    )
    # What stands on levels is kept as bytes: a quarter of the memory, and the same numbers whatever the support.
    top = (
        0
        if pipeline.spec.support == "real" or "dequantization" in pipeline.protocol
        else (pipeline.spec.levels or 2) - 1
    )
    small = 0 < top < 256
    parts = []
    for batch in pipeline.evaluation("train", 500, limit):
        x = unit(pipeline, batch.x)
        parts.append(((x * top).round().byte() if small else x, batch.y))
    x, y = (torch.cat(column) for column in zip(*parts, strict=True))

    def as_floats(bytes_: Tensor) -> Tensor:
        return bytes_.float() / top if small else bytes_

    steps = min(STEPS, EPOCHS * math.ceil(len(x) / BATCH))
    with own_randomness(RECIPE), torch.enable_grad():
        network = _network(subject)
        network.standardise(as_floats(x[:10_000]))
        optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for _ in subject.track(range(steps), steps, f"classifier of {subject.spec.name}"):
            rows = torch.randint(len(x), (batch_size,)).to(x.device)
            loss = nn.functional.cross_entropy(network(as_floats(x[rows])), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            network.spread.copy_(network.features(as_floats(x[:10_000])).square().mean().sqrt().clamp_min(1e-6))
    return network.eval().requires_grad_(False)


def _accuracy(network: Network | PerChannel, subject: Subject) -> tuple[str, float, int]:
    split = next(s for s in ("test", "validation", "train") if subject.spec.sizes.get(s))
    right = total = 0
    for batch in subject.pipeline.evaluation(split, 500):
        assert batch.y is not None
        right += int((network(unit(subject.pipeline, batch.x)).argmax(1) == batch.y).sum())
        total += len(batch.y)
    return split, right / total, total
