"""Where distances between examples are measured: the features of a small classifier, or the pixels themselves.

Examples of any support are first brought to [0, 1] by one map (points stay as they are), so that models of one data
set are judged in one space. Of labelled images the features are the last hidden layer of a classifier that gentrain
trains on the data set's own labels, once, and keeps in the cache folder; its sha256 and accuracy stand in every row.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from gentrain import pictures
from gentrain.data.pipeline import Pipeline
from gentrain.data.places import cache_folder
from gentrain.data.randomness import derive, fixed_permutation
from gentrain.device import own_randomness
from gentrain.errors import DiskError, GentrainError, UsageError
from gentrain.evaluation.channels import PerChannel
from gentrain.evaluation.estimator import Subject, seeded
from gentrain.evaluation.inception import inception
from gentrain.files import read_json, write_atomic, write_json
from gentrain.models.base import Generative
from gentrain.models.layers import SMALLEST, mlp

log = logging.getLogger(__name__)

CHUNK = 1000  # samples drawn at a time
KEPT = 256 << 20  # bytes of samples, or of features of one set, that are kept from one estimator to the next
_SAMPLES = 5  # first word of the hashes that seed the samples; the data pipeline has 1 to 4 and 6


# --- examples and samples -------------------------------------------------------------------------------------------


def unit(pipeline: Pipeline, x: Tensor) -> Tensor:
    """Examples or samples in the model's support on the scale they are compared on, float32: levels and bits on
    [0, 1], stored real numbers as they are."""
    if pipeline.spec.support == "real":
        return x.detach().float()
    return pictures.to_unit(x, pipeline.support, pipeline.spec.levels)


def representation(pipeline: Pipeline) -> str:
    """The protocol as far as it still shows on [0, 1]: grey levels are the same to unit, signed and level models.

    >>> from gentrain.data.embedded import digits
    >>> representation(Pipeline(digits(), "signed", 10, 0)), representation(Pipeline(digits(), "binary", 10, 0))
    ('unit', 'binary, dynamic binarization')
    """
    words = pipeline.protocol.split(", ")
    if pipeline.spec.support != "real" and words[0] in ("signed", "levels", "real"):
        words[0] = "unit"
    return ", ".join(word for word in words if word != "scaled to [0,1]")


def finite(model: Generative, x: Tensor, what: str) -> Tensor:
    """x, what the model has given.

    Raises:
        GentrainError: some of it is NaN or infinite.
    """
    if not bool(torch.isfinite(x).all()):
        raise GentrainError(f"{what} of {type(model).__name__}: some are NaN or infinite; the model has diverged")
    return x


_shelves: dict[int, dict[Any, Any]] = {}


def _shelf(subject: Subject) -> dict[Any, Any]:
    """What estimators of one evaluation share. It goes with the subject: in training each look has one of its own."""
    key = id(subject)
    if key not in _shelves:
        _shelves[key] = {}
        weakref.finalize(subject, _shelves.pop, key, None)
    return _shelves[key]


def samples(subject: Subject, n: int) -> Iterator[Tensor]:
    """n samples of the model on [0, 1], `CHUNK` at a time.

    They are a function of the subject's seed: the first m of n are the m that another estimator gets.

    Raises:
        GentrainError: a sample is NaN or infinite.
    """
    kept: list[Tensor] = _shelf(subject).setdefault("samples", [])
    total = math.ceil(n / CHUNK)
    for i in subject.track(range(total), total, "samples"):
        if i < len(kept):
            chunk = kept[i]
        else:
            with seeded(derive(_SAMPLES, subject.seed, i) >> 1):
                chunk = subject.model.sample(CHUNK)
            chunk = unit(subject.pipeline, finite(subject.model, chunk, "samples"))
            if i == len(kept) and (i + 1) * chunk.numel() * chunk.element_size() <= KEPT:
                kept.append(chunk)
        yield chunk[: n - i * CHUNK]


def how_many(subject: Subject, split: str, n: int | None, at_most: int) -> int:
    """The size of the reference: n, or if None `at_most` of them or all that the split has.

    Raises:
        UsageError: the split has fewer than n examples, or doesn't exist.
    """
    have = subject.size(split)
    if n is not None and n > have:
        raise UsageError(f"n_reference={n}: the {split} split of data={subject.spec.name} has {have} examples; ask for"
                         f" {have} at most")  # fmt: skip
    return min(at_most, have) if n is None else n


def examples(subject: Subject, split: str, n: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """n examples of a split on [0, 1] with their labels, at most 500 at a time.

    Fewer than all are drawn at random, for a set may be sorted by label: the same ones in every run.
    """
    size = subject.size(split)
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[fixed_permutation(size, "reference")[:n]] = True
    start = 0
    for batch in subject.track(subject.batches(split), math.ceil(size / 500), f"features of {split}"):
        rows = chosen[start : start + len(batch.x)].to(batch.x.device)
        start += len(batch.x)
        if rows.any():
            yield unit(subject.pipeline, batch.x[rows]), None if batch.y is None else batch.y[rows]


# --- spaces ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """A map from examples on [0, 1] to vectors, (B, *shape) -> (B, d).

    Args:
        name: `classifier`, `pixels` or `inception`. embed: the map.
        settings: what a row must say of it.
    """

    name: str
    embed: Callable[[Tensor], Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of_samples(self, subject: Subject, n: int) -> Tensor:
        """Features of n samples of the model, (n, d)."""
        kept, key = _shelf(subject), ("samples", self.name)
        if key not in kept or len(kept[key]) < n:
            found = _home(torch.cat([self.embed(x) for x in samples(subject, n)]))
            if found.numel() * found.element_size() > KEPT:
                return found
            kept[key] = found
        return kept[key][:n]

    def of_examples(self, subject: Subject, split: str, n: int) -> Tensor:
        """Features of n examples of a split, (n, d), in its order."""
        kept, key = _shelf(subject), (split, n, self.name)
        if key not in kept:
            found = _home(torch.cat([self.embed(x) for x, _ in examples(subject, split, n)]))
            if found.numel() * found.element_size() > KEPT:
                return found
            kept[key] = found
        return kept[key]


def _home(x: Tensor) -> Tensor:
    return x.cpu() if x.device.type == "mps" else x  # Apple's GPUs have no float64, which what follows needs


def labelled(subject: Subject) -> bool:
    return (subject.spec.classes or 0) > 1


def space(subject: Subject, features: str) -> Space:
    """The space that `features` names: `auto` is the classifier of labelled images and the pixels of all else.

    Raises:
        UsageError: the data have no labels to train a classifier with, or Inception can't be had.
    """
    if features == "auto":
        features = "classifier" if labelled(subject) and subject.spec.is_image else "pixels"
    if features == "classifier":
        judge = classifier(subject)
        return Space(features, judge.network.features, {"feature_space": features, **judge.settings})
    if features == "inception":
        return Space(features, inception(subject), {"feature_space": features})
    return Space("pixels", lambda x: x.flatten(1), {"feature_space": "pixels"})


# --- the classifier -------------------------------------------------------------------------------------------------

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
    kept = _shelf(subject)
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
