"""The settings gentrain itself owns, as typed, range-checked records. Free of torch.

Their defaults and one-line meanings stand in `conf/train.yaml` and `conf/device/*.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gentrain.errors import UsageError
from gentrain.types import NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt, Shape, Support


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
    dequantize: bool
    shape: Shape | None
    levels: PositiveInt | None
    classes: PositiveInt | None
    support: Support | None


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
    """The keys of `conf/sample.yaml`."""

    run: str
    n: PositiveInt
    kind: Literal["prior", "reconstruct", "interpolate"]
    format: Literal["png", "npz"]
    out: str | None
    seed: NonNegativeInt
    trust: list[str]
    traceback: bool


@dataclass(frozen=True)
class EvaluateSettings:
    """The keys at the top of `conf/evaluate.yaml`; `device` and `metric` come from their groups."""

    run: str
    split: Literal["train", "validation", "test"]
    n: PositiveInt | None
    seed: NonNegativeInt
    again: bool
    trust: list[str]
    traceback: bool


def split_data(node: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shared settings of a `data` node and, apart, what the data set's own function takes."""
    shared = {key: node[key] for key in DataSettings.__dataclass_fields__ if key in node}
    own = {key: value for key, value in node.items() if key not in shared}
    own["validation"] = shared["validation"]
    return shared, own
