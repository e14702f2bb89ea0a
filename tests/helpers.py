"""Shared by the tests of reliability: trainers without a run folder, exact comparison, models and data that fit."""

from __future__ import annotations

import signal
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from torch import nn

from gentrain import config
from gentrain import device as devices
from gentrain.errors import Interrupted, UsageError
from gentrain.evaluation.ais import Mean, anneal, log_mean
from gentrain.models.energies import TemperedPath
from gentrain.settings import DeviceSettings
from gentrain.signals import Stop
from gentrain.tasks.assemble import Assembly, assemble
from gentrain.tasks.check import Quiet as Recorder
from gentrain.tasks.check import bare_trainer as trainer_in
from gentrain.tasks.check import learned, resumed
from gentrain.trainer import Trainer
from gentrain.truth.base import differences

__all__ = [
    "DATA", "MODELS", "OBJECTIVES", "SMALL", "Recorder", "annealed_both_ways",
    "bare_trainer", "build", "covering_pairs", "data_for", "differences", "fit", "fitting_pairs", "learned", "resumed",
    "shaken",
]  # fmt: skip

M = TypeVar("M", bound=nn.Module)
MODELS = config.groups()["model"]
OBJECTIVES = config.groups()["objective"]
SMALL = ["device=cpu", "data.batch_size=20"]
DATA = (["data=digits"], ["data=bars"], ["data=ring"], ["data=pydoc"], ["data=unpaired"], ["data=paired"])
"""One set of each kind; a model is tested on the first that it takes."""


def build(*overrides: str) -> Assembly:
    """Everything a training is made of, from overrides."""
    cfg = config.compose("train", [*SMALL, *overrides])
    return assemble(cfg, devices.setup(DeviceSettings(**config.check(cfg)["device"])))


def data_for(model: str, *overrides: str) -> list[str]:
    """The overrides of the first data set that `model`, with other `overrides`, takes."""
    reasons = []
    for data in DATA:
        try:
            build(f"model={model}", *overrides, *data)
            return data
        except UsageError as error:
            reasons.append(str(error))
    raise AssertionError(f"model={model} takes none of the embedded data sets: {reasons}")


def fitting_pairs() -> list[tuple[str, str]]:
    """Every (model, objective) of conf/ such that the model has what the objective needs."""
    named = {group: [(o, _class(group, o)) for o in config.groups()[group]] for group in ("model", "objective")}
    return [(m, o) for m, model in named["model"] for o, objective in named["objective"] if objective.fits(model)]


def covering_pairs() -> list[tuple[str, str]]:
    """Every model with its own objective, and every other objective with the model of the shortest name that it fits,
    which is a plain one: where all pairs would take too long, and what is asked of one is not asked of the other."""
    pairs = [(model, _own_objective(model)) for model in MODELS]
    left = [o for o in OBJECTIVES if o not in {objective for _, objective in pairs}]
    fitting = fitting_pairs()
    return pairs + [min((pair for pair in fitting if pair[1] == o), key=lambda pair: len(pair[0])) for o in left]


def _own_objective(model: str) -> str:
    """That which the model's file names, or the file that it begins with."""
    named = "override /objective@_global_.objective"
    for entry in OmegaConf.load(config.conf_dir() / "model" / f"{model}.yaml")["defaults"]:
        if entry == "_self_":
            break
        if isinstance(entry, str):
            return _own_objective(entry)
        if named in entry:
            return entry[named]
    raise AssertionError(f"conf/model/{model}.yaml names no objective")


def _class(group: str, option: str) -> Any:
    node = OmegaConf.load(config.conf_dir() / group / f"{option}.yaml")
    return config.locate(node["_target_"], [])


@torch.no_grad()
def shaken(module: M, size: float = 0.3) -> M:
    """Nothing at its start: there shifts and log-scales are zero, and whatever forgets them is right."""
    for p in module.parameters():
        p.add_(size * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return module


def bare_trainer(folder: Path, *overrides: str, look: Any = lambda trainer, what: None) -> Trainer:
    """A trainer that writes checkpoints to `folder`; what it reports stands in its `report.filed`."""
    assembly = build(*overrides)
    return trainer_in(folder, assembly, devices.setup(DeviceSettings(**assembly.plain["device"])), look)


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


def annealed_both_ways(path: TemperedPath[Any], samples: torch.Tensor, exact: float, betas: list[float]) -> list[Mean]:
    """AIS from the base and from as many exact samples of the model: each interval must hold the exact log Z."""
    up = list(pairwise(betas))
    *_, weights = anneal(path, path.start(len(samples)), up)
    forward = log_mean(weights)
    assert forward.low is not None and forward.low < exact - path.log_partition < forward.high
    *_, weights = anneal(path, path.state(samples), [(b, a) for a, b in reversed(up)])
    backward = log_mean(weights)
    assert backward.low is not None and backward.low < path.log_partition - exact < backward.high
    return [forward, backward]
