"""The settings gentrain itself owns, as typed, range-checked records. Free of torch.

Their defaults and one-line meanings stand in `conf/train.yaml` and `conf/device/*.yaml`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from gentrain.errors import UsageError
from gentrain.types import (
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Range,
    Shape,
    Support,
)


@dataclass(frozen=True)
class RunSettings:
    """The keys at the top of `train.yaml`."""

    seed: NonNegativeInt
    output: str
    trust: list[str]
    traceback: bool


@dataclass(frozen=True)
class DataSettings:
    """What every data set shares; the remaining keys under `data` are the set's own."""

    batch_size: PositiveInt
    validation: NonNegativeInt | None
    binarization: Literal["dynamic", "static", "threshold"]
    dequantize: bool | None
    shape: Shape | None
    levels: PositiveInt | None
    classes: PositiveInt | None
    support: Support | None
    vocabulary: str | None = None
    centres: list[list[float]] | None = None
    captions: list[str] | None = None


@dataclass(frozen=True)
class TrainerSettings:
    """When training ends and what happens on the way; every count is in steps, and a step is one batch."""

    steps: PositiveInt | None
    epochs: PositiveInt | None
    max_time: PositiveFloat | None
    log_every: PositiveInt
    evaluate_every: NonNegativeInt
    sample_every: NonNegativeInt
    checkpoint_every: NonNegativeInt
    keep: PositiveInt
    ema: OpenFraction | None
    clip: PositiveFloat | None
    watch: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None and self.max_time is None:
            raise UsageError(
                "trainer.steps, trainer.epochs and trainer.max_time are all null: give one, e.g. trainer.steps=1000"
            )

    def total_steps(self, steps_per_epoch: int) -> int | None:
        """The step at which training ends, or None if only the clock ends it."""
        ends = [end for end in (self.steps, self.epochs and self.epochs * steps_per_epoch) if end]
        return min(ends) if ends else None


@dataclass(frozen=True)
class DeviceSettings:
    """Where and how arithmetic is done."""

    name: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["fp32", "bf16", "fp16"]
    compile: bool
    graphs: bool
    threads: PositiveInt | None
    keep_pages: bool


@dataclass(frozen=True)
class ResumeSettings:
    """The keys of `conf/resume.yaml`; all others are changes to the run's own configuration."""

    run: str
    force: bool
    traceback: bool


@dataclass(frozen=True)
class SampleSettings:
    """The keys at the top of `conf/sample.yaml`; `kind` comes from its group."""

    run: str | list[str]
    n: PositiveInt
    format: Literal["png", "npz", "txt"] | None
    out: str | None
    sampling: dict[str, Any] | None
    seed: NonNegativeInt
    trust: list[str]
    traceback: bool


@dataclass(frozen=True)
class CheckSettings:
    """The keys of `conf/check.yaml`; all others are those of training."""

    n: PositiveInt
    traceback: bool


@dataclass(frozen=True)
class EvaluateSettings:
    """The keys at the top of `conf/evaluate.yaml`; `data`, `device` and `metric` are sections."""

    run: str
    split: Literal["train", "validation", "test"]
    n: PositiveInt | None
    sampling: dict[str, Any] | None
    seed: NonNegativeInt
    again: bool
    trust: list[str]
    traceback: bool


@dataclass(frozen=True)
class OtherData:
    """The keys of `data` in `conf/evaluate.yaml`."""

    anomaly: str | dict[str, Any] | None


@dataclass(frozen=True)
class Expectation:
    """A number that an experiment should come to: an item of `expect` in `conf/experiment/*.yaml`.

    Args:
        metric, kind, unit, split, protocol: of the ledger's row that it is held against.
        value, tolerance, direction: `within` the tolerance of the value, or `at_least` or `at_most` that.
        source: where the value comes from.
        minutes: what training and evaluation take, on two cores or on a GPU.
        status, measured: what became of it so far, and the number.
    """

    metric: str
    kind: str
    value: Annotated[float, Range()]
    tolerance: NonNegativeFloat
    protocol: str
    source: str
    minutes: dict[Literal["cores2", "gpu"], PositiveFloat]
    status: Literal["reached", "short", "not run"]
    direction: Literal["within", "at_least", "at_most"] = "within"
    unit: str = "nats"
    split: Literal["train", "validation", "test"] = "test"
    measured: float | None = None

    def holds(self, found: float) -> bool:
        """Whether `found` is what was expected. NaN never is.

        >>> reference = dict(metric="log_likelihood", kind="ais", value=-86.0, tolerance=1.0, protocol="binary",
        ...                  source="a paper", minutes={"gpu": 30.0}, status="not run")
        >>> [Expectation(**reference).holds(v) for v in (-87.5, -87.0, -85.0, -84.5, float("nan"))]
        [False, True, True, False, False]
        >>> [Expectation(**reference, direction="at_least").holds(v) for v in (-87.5, -87.0, -80.0)]
        [False, True, True]
        """
        if self.direction == "within":
            return abs(found - self.value) <= self.tolerance
        if self.direction == "at_least":
            return found >= self.value - self.tolerance
        return found <= self.value + self.tolerance

    @property
    def goal(self) -> str:
        """In words: `-205.81 ± 0.05`, `at least -100`, `at least -90.26 - 0.5`."""
        word, sign = {"within": ("", "±"), "at_least": ("at least ", "-"), "at_most": ("at most ", "+")}[self.direction]
        return f"{word}{self.value:g}" + (f" {sign} {self.tolerance:g}" if self.tolerance else "")


@dataclass(frozen=True)
class Judges:
    """Which estimators judge an experiment: `evaluate` in `conf/experiment/*.yaml`, as in `gentrain evaluate`."""

    metrics: list[str]
    metric: dict[str, dict[str, Any]] = field(default_factory=dict)
    n: PositiveInt | None = None
    seed: NonNegativeInt = 0

    @property
    def overrides(self) -> list[str]:
        """The same as overrides of `conf/evaluate.yaml`."""
        settings = [f"metric.{name}.{k}={json.dumps(v)}" for name, node in self.metric.items() for k, v in node.items()]
        return [f"metrics=[{','.join(self.metrics)}]", *settings, f"n={json.dumps(self.n)}", f"seed={self.seed}"]


@dataclass(frozen=True)
class ReproduceSettings:
    """The keys of `conf/reproduce.yaml`; all others are changes to the experiment."""

    experiment: str
    reuse: bool
    record: bool
    traceback: bool


@dataclass(frozen=True)
class CompareSettings:
    """The keys of `conf/compare.yaml`."""

    runs: str | list[str]
    group_by: str | list[str]
    sort: str
    metrics: str | list[str]
    format: Literal["table", "csv", "json", "md", "html"] | None
    out: str | None
    traceback: bool


def says_where(key: str) -> bool:
    """Whether a setting says only where a data set lies and whether it may be fetched; of a nested one too.

    >>> says_where("data.root"), says_where("data.of.download"), says_where("data.path")
    (True, True, False)
    """
    section, _, last = key.rpartition(".")
    return section.split(".")[0] == "data" and last in ("root", "download")


def split_data(node: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shared settings of a `data` node and, apart, what the data set's own function takes."""
    shared = {key: node[key] for key in DataSettings.__dataclass_fields__ if key in node}
    own = {key: value for key, value in node.items() if key not in shared}
    own["validation"] = shared["validation"]
    return shared, own
