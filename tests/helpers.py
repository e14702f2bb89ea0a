"""Shared by the tests of reliability: trainers without a run folder, exact comparison, models and data that fit."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from gentrain import checkpoint, config
from gentrain import device as devices
from gentrain.errors import Interrupted, UsageError
from gentrain.report import Report
from gentrain.settings import DeviceSettings, TrainerSettings
from gentrain.signals import Stop
from gentrain.tasks.assemble import Assembly, assemble
from gentrain.trainer import Trainer

MODELS = config.groups()["model"]
OBJECTIVES = config.groups()["objective"]
SMALL = ["device=cpu", "data.batch_size=20"]
DATA = (["data=digits"], ["data=bars"], ["data=ring"], ["data=pydoc"])
"""One set of each kind; a model is tested on the first that it takes."""


def build(*overrides: str) -> Assembly:
    """Everything a training is made of, from overrides."""
    cfg = config.compose("train", [*SMALL, *overrides])
    return assemble(cfg, devices.setup(DeviceSettings(**config.check(cfg)["device"])))


def data_for(model: str) -> list[str]:
    """The overrides of the first data set that `model` takes."""
    reasons = []
    for data in DATA:
        try:
            build(f"model={model}", *data)
            return data
        except UsageError as error:
            reasons.append(str(error))
    raise AssertionError(f"model={model} takes none of the embedded data sets: {reasons}")


def fitting_pairs() -> list[tuple[str, str]]:
    """Every (model, objective) of conf/ such that the model has what the objective needs."""
    named = {group: [(o, _class(group, o)) for o in config.groups()[group]] for group in ("model", "objective")}
    return [
        (m, o)
        for m, model in named["model"]
        for o, objective in named["objective"]
        if issubclass(model, objective.needs)
    ]


def _class(group: str, option: str) -> Any:
    node = OmegaConf.load(config.conf_dir() / group / f"{option}.yaml")
    return config.locate(node["_target_"], [])


class Recorder(Report):
    """A report that keeps the numbers filed with it, and writes nothing."""

    def __init__(self) -> None:
        super().__init__(None)
        self.filed: list[dict[str, float]] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        steady = {name: value for name, value in values.items() if not name.startswith("speed/")}
        self.filed.append({"step": step, **steady})


def bare_trainer(folder: Path, *overrides: str, look: Any = lambda trainer, what: None) -> Trainer:
    """A trainer that writes checkpoints to `folder`; what it reports stands in its `report.filed`."""
    folder.mkdir(exist_ok=True)
    assembly = build(*overrides)
    settings = TrainerSettings(**assembly.plain["trainer"])
    device = devices.setup(DeviceSettings(**assembly.plain["device"]))
    return Trainer(
        assembly.model, assembly.objective, assembly.pipeline, assembly.optim, settings, device,
        Recorder(), checkpoint.Keeper(folder, settings.keep), look, assembly.plain,
    )  # fmt: skip


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested structures of plain types and tensors differ, bit for bit; NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(-7e30), b.nan_to_num(-7e30))
        return [] if same else [path]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        extra = [f"{path}.{k} (in one only)" for k in {*a} ^ {*b}]
        return extra + [d for k in a if k in b for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        if len(a) != len(b):
            return [f"{path} (lengths {len(a)}, {len(b)})"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b and type(a) is type(b) else [f"{path}: {a} != {b}"]


def learned(state: Mapping[str, Any]) -> dict[str, Any]:
    """What of a training's state a repetition must reproduce: all but the clock, file names and looks."""
    return {k: v for k, v in state.items() if k not in ("elapsed", "keeper", "config", "seen")}


def fit(trainer: Trainer, until: int | None = None) -> Trainer:
    """Train to the end, or to a stop by SIGTERM that is asked for during step `until`."""
    with Stop() as stop:
        if until is None:
            trainer.fit(stop)
            return trainer
        advance = trainer._train_step

        def step() -> None:
            advance()
            if trainer.step == until:
                stop.requested = signal.SIGTERM

        trainer._train_step = step  # type: ignore[method-assign]
        try:
            trainer.fit(stop)
        except Interrupted:
            return trainer
    raise AssertionError(f"the training was not stopped at step {until}")


def resumed(trainer: Trainer) -> Trainer:
    """The trainer with the newest checkpoint of its folder loaded."""
    found = checkpoint.newest(trainer.keeper.folder)
    assert found is not None
    trainer.load_state_dict(found[1], found[0])
    return trainer
