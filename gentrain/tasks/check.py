"""Prove a model on tiny spaces: the truth tests for whatever its base classes claim, and exact resume."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gentrain import checkpoint, config
from gentrain import device as devices
from gentrain.console import console, print_table, track
from gentrain.device import Device, own_randomness
from gentrain.errors import Interrupted, UsageError
from gentrain.models.base import Density, Generative
from gentrain.models.continuous import ContinuousFlow
from gentrain.report import Report
from gentrain.settings import CheckSettings, DeviceSettings, TrainerSettings
from gentrain.signals import Stop
from gentrain.tasks.assemble import Assembly, assemble
from gentrain.trainer import Trainer
from gentrain.truth.base import Check, Verdict, applicable, blame, carry_out, differences, prove
from gentrain.truth.objectives import case_of

DATA = (
    ["data=bars"],
    ["data=bars", "data.labels=true"],
    ["data=digits"],
    ["data=ring", "data.std=0.3"],
    ["data=pydoc", "data.length=2"],
    ["data=unpaired"],
    ["data=paired"],
)
"""Tiny sets of each kind; a model is proved on the first that it takes, a continuous one on points in the plane."""
SMALL: Mapping[str, Any] = {"hidden": 8, "latent_dim": 2, "channels": 4, "components": 4, "layers": 2, "flows": 2}
"""Sizes, where the model has them and the user names none: then there is little to sum over and nothing takes long."""
BOUNDS: Mapping[str, float] = {"clip": 0.1}
"""Likewise of the objective: networks of few weights are next to constant within bounds that are meant for many."""
WARM = 20
"""Steps of training before anything is looked at."""


def check(overrides: Sequence[str] = (), folders: Sequence[str | Path] = (), n: int = 10_000) -> list[Check]:
    """Prove a model from Python as `gentrain check <overrides>` does from a shell, printing nothing.

    Raises:
        GentrainError: the model can't be built.
    """
    assembly, cfg = tiny(overrides, [Path(f).resolve() for f in folders])
    return _check(assembly, cfg, n)


def main(settings: CheckSettings, overrides: Sequence[str], folders: Sequence[Path] = ()) -> bool:
    """Prove the model that `overrides` of a `train` configuration name, print the table; whether all held."""
    assembly, cfg = tiny(overrides, folders)
    say = console().print
    spec = assembly.source.spec
    sizes = [f"model.{k}={_brief(v)}" for k, v in assembly.plain["model"].items() if k in SMALL and v is not None]
    count = sum(p.numel() for p in assembly.model.parameters())
    shape = "x".join(map(str, spec.shape))
    say(
        f"{assembly.name} on {spec.name} ({shape}, {assembly.model.support}), {count:,} parameters: {' '.join(sizes)}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    checks = _check(assembly, cfg, settings.n)
    show(checks)
    failed = [c for c in checks if c.held is False]
    held, unchecked = (sum(c.held is value for c in checks) for value in (True, None))
    summary = f"{held} held, {len(failed)} failed, {unchecked} not checked"
    say(summary if not failed else f"{summary}: {'; '.join(c.name for c in failed)}", soft_wrap=True, markup=False)
    return not failed


def _brief(value: Any) -> str:
    return str(value).replace(" ", "")


def show(checks: Sequence[Check]) -> None:
    """Print the table of checks."""
    words = {True: "held", False: "FAILED", None: "-"}

    def number(c: Check, value: float) -> str:
        return "" if value != value else f"{value:.3g}"

    rows = [(c.name, words[c.held], number(c, c.measured), number(c, c.allowed), c.words) for c in checks]
    print_table("check", ("claim", "", "measured", "allowed", "what was done"), rows)


# --- the case ---------------------------------------------------------------------------------------------------------


def tiny(overrides: Sequence[str], folders: Sequence[Path] = ()) -> tuple[Assembly, DictConfig]:
    """Model, objective and the smallest data they take, of the sizes of SMALL; with the configuration.

    Raises:
        UsageError: something doesn't fit, or no set fits the model.
    """
    named = {o.split("=")[0].lstrip("+~") for o in overrides}
    base = [*([] if "data.batch_size" in named else ["data.batch_size=32"]), *overrides]
    base += [] if named & {"device", "device.name"} else ["device=cpu"]
    if "data" in named:
        return _assemble(base, named, folders)
    problem: UsageError | None = None
    for data in DATA:
        try:
            assembly, cfg = _assemble([*data, *base], named, folders)
        except UsageError as error:
            problem = problem or error
            continue
        dense = isinstance(assembly.model, Density | ContinuousFlow) and assembly.model.support in ("unit", "signed")
        if (assembly.model.support == "real" or dense) and data != DATA[3]:  # a grid over the plane can be summed over
            try:
                return _assemble([*DATA[3], *base], named, folders)
            except UsageError:
                pass
        return assembly, cfg
    assert problem is not None
    raise problem


def _assemble(overrides: Sequence[str], named: set[str], folders: Sequence[Path]) -> tuple[Assembly, DictConfig]:
    cfg = config.compose("train", overrides, folders)
    model, objective = config.resolve(cfg)["model"], config.resolve(cfg)["objective"]
    for key, bound in BOUNDS.items():
        if isinstance(objective, dict) and key in objective and f"objective.{key}" not in named:
            config.apply(cfg, [f"objective.{key}={bound}"])
    for key, size in SMALL.items():
        given = model.get(key) if isinstance(model, dict) else None
        if given is not None and f"model.{key}" not in named:
            each = max(1, size // len(given)) if isinstance(given, list) and key == "latent_dim" else size
            small = [min(each, v) for v in given] if isinstance(given, list) else min(size, given)
            config.apply(cfg, [f"model.{key}={_brief(small)}"])
    return assemble(cfg, _device(cfg)), cfg


def _device(cfg: DictConfig) -> Device:
    return devices.setup(DeviceSettings(**config.check(cfg)["device"]))


def _check(assembly: Assembly, cfg: DictConfig, n: int) -> list[Check]:
    plain, seed = assembly.plain, assembly.plain["seed"]

    def fresh() -> Generative:
        with own_randomness(seed + 1):
            return config.build(plain["model"], plain["trust"], Generative, "model")

    resumes = carry_out("a resumed training is the uninterrupted one", lambda: exact_resume(cfg), seed)
    batches = [assembly.pipeline.batch(step) for step in range(WARM)]
    levels = assembly.source.spec.levels
    try:
        with own_randomness(seed):
            case = case_of(assembly.model, assembly.objective, assembly.optim, batches, fresh, levels, n, seed)
    except Exception as error:  # of a user's own model: it is the answer to the question
        return [Check("it trains", False, math.nan, math.nan, blame(error))]
    return [*track(prove(case), applicable(case), "check"), *([resumes] if resumes else [])]


# --- exact resume -----------------------------------------------------------------------------------------------------


class Quiet(Report):
    """A report that keeps the numbers filed with it, and writes nothing."""

    def __init__(self) -> None:
        super().__init__(None)
        self.filed: list[dict[str, float]] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        steady = {name: value for name, value in values.items() if not name.startswith("speed/")}
        self.filed.append({"step": step, **steady})


def bare_trainer(
    folder: Path, assembly: Assembly, device: Device, look: Callable[..., Any] = lambda trainer, what: lambda: None
) -> Trainer:
    """A trainer that writes checkpoints to `folder`; what it reports stands in its `report.filed`."""
    folder.mkdir(exist_ok=True)
    settings = TrainerSettings(**assembly.plain["trainer"])
    return Trainer(
        assembly.model, assembly.objective, assembly.pipeline, assembly.optim, settings, device,
        Quiet(), checkpoint.Keeper(folder, settings.keep), look, assembly.plain,
    )  # fmt: skip


def resumed(trainer: Trainer) -> Trainer:
    """The trainer with the newest checkpoint of its folder loaded."""
    found = checkpoint.newest(trainer.keeper.folder)
    assert found is not None
    trainer.load_state_dict(found[1], found[0])
    return trainer


def learned(state: Mapping[str, Any]) -> dict[str, Any]:
    """What of a training's state a repetition must reproduce: all but the clock, file names and looks."""
    return {k: v for k, v in state.items() if k not in ("elapsed", "keeper", "config", "seen")}


def exact_resume(cfg: DictConfig, steps: int = 6, pause: int = 3) -> Verdict:
    """Train `steps` steps at once, and with a checkpoint, a new process's objects and its loading after `pause`."""
    cfg = copy.deepcopy(cfg)
    config.apply(cfg, [
        f"trainer.steps={steps}", "trainer.epochs=null", "trainer.max_time=null", "trainer.log_every=4",
        f"trainer.evaluate_every={pause}", "trainer.sample_every=0", "trainer.checkpoint_every=0", "trainer.ema=0.9",
    ])  # fmt: skip
    device = _device(cfg)

    def trainer(folder: Path, stop: Stop | None = None) -> Trainer:
        def look(trainer: Trainer, what: str) -> Callable[[], None]:
            if stop is not None:
                stop.requested = signal.SIGTERM
            return lambda: None

        return bare_trainer(folder, assemble(copy.deepcopy(cfg), device), device, look)

    with tempfile.TemporaryDirectory(prefix="gentrain-check-") as name:
        whole = trainer(Path(name, "whole"))
        whole.fit(Stop())
        stop = Stop()
        first = trainer(Path(name, "parts"), stop)
        with contextlib.suppress(Interrupted):
            first.fit(stop)
        second = resumed(trainer(Path(name, "parts")))
        second.fit(Stop())
        found = differences(learned(whole.state_dict()), learned(second.state_dict()))
        moved = differences(learned(whole.state_dict()), learned(first.state_dict()))
        reports = [r.report.filed for r in (whole, first, second) if isinstance(r.report, Quiet)]
    if reports[0] != reports[1] + reports[2]:
        found.append("the reported metrics")
    if not moved:
        raise UsageError("three steps of training change nothing")
    names = ", ".join(name.removeprefix(".") for name in found[:6])
    words = f"{steps} steps against {pause}, a checkpoint, and {steps - pause}: "
    return len(found), 0, words + (f"{names} differ" if found else "state and metrics the same bit for bit")
