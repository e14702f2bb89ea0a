"""Train a model: assemble, make the run folder, fit, and say how it ended."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gentrain import checkpoint, config
from gentrain import device as devices
from gentrain.console import clock
from gentrain.device import Device
from gentrain.errors import GentrainError, Interrupted, Stopped, out_of_memory
from gentrain.evaluation import ledger
from gentrain.evaluation.estimator import Subject
from gentrain.evaluation.heldout import Estimate
from gentrain.evaluation.standard import watchers
from gentrain.files import disk_error, is_disk_error, read_json
from gentrain.report import Report
from gentrain.run import Run
from gentrain.settings import DeviceSettings, TrainerSettings
from gentrain.signals import Stop
from gentrain.tasks.assemble import Assembly, assemble
from gentrain.tasks.look import Look, test_rows
from gentrain.trainer import Trainer

log = logging.getLogger("gentrain")


@dataclass(frozen=True)
class Outcome:
    """A finished training: its folder, the steps it took, and the test split's numbers by name."""

    path: Path
    step: int
    test: Mapping[str, Estimate]


def train(overrides: Sequence[str] = (), folders: Sequence[str | Path] = ()) -> Outcome:
    """Train from Python as `gentrain <overrides>` does from a shell.

    Args:
        overrides: as on the command line, e.g. ["model=rbm", "data=mnist", "trainer.steps=2000"].
        folders: further folders of YAML files (`--config-dir`).

    Raises:
        GentrainError: as the command line reports it; `UsageError` before anything is written.
    """
    cfg = config.compose("train", overrides, [Path(f).resolve() for f in folders])
    return main(cfg, overrides)


def main(cfg: DictConfig, overrides: Sequence[str] = (), made: Callable[[Path], object] = lambda path: None) -> Outcome:
    """Train as `cfg`, a composed `train` configuration, says; `made` is told the run folder once it exists."""
    config.require_said(cfg, overrides)
    composed = OmegaConf.to_yaml(cfg)
    plain = config.check(cfg)
    with Stop() as stop:
        device = devices.setup(DeviceSettings(**plain["device"]))
        assembly = assemble(cfg, device)
        watchers(plain["trainer"]["watch"], Subject(assembly.model, assembly.pipeline))  # refused before there is a run
        run = None
        path = None
        if device.is_main:
            run = Run.create(Path(plain["output"]).expanduser(), assembly.source.spec.name, assembly.name)
            path = run.path
            made(path)
        path = Path(device.agree(str(path)))
        stored = config.stored(cfg)
        with watched(run, assembly.plain) as report_to:
            if run is not None:
                count = sum(p.numel() for p in assembly.model.parameters())
                facts = {"device": device.describe(), "data": assembly.source.fingerprint(), "parameters": count}
                run.describe(stored, composed, overrides, facts)
            trainer, look = prepare(assembly, device, path, stored, report_to, first_step=0)
            return fit(trainer, look, stop, run, path, assembly)


def prepare(
    assembly: Assembly, device: Device, path: Path, stored: dict[str, Any], main: bool, first_step: int
) -> tuple[Trainer, Look]:
    """The trainer of a run folder with its report and pictures."""
    settings = TrainerSettings(**assembly.plain["trainer"])
    total = settings.total_steps(assembly.pipeline.steps_per_epoch)
    report = Report(path if main else None, first_step, total)
    watching = watchers(settings.watch, Subject(assembly.model, assembly.pipeline))
    look = Look(report, assembly.pipeline, watching, assembly.source.fingerprint() if watching else "")
    keeper = checkpoint.Keeper(path / "checkpoints", settings.keep)
    trainer = Trainer(
        assembly.model, assembly.objective, assembly.pipeline, assembly.optim, settings, device, report, keeper, look,
        stored,
    )  # fmt: skip
    if device.compile:
        _compile(assembly, device, report)
    return trainer, look


def _compile(assembly: Assembly, device: Device, report: Report) -> None:
    """Compile where a step spends its time: what the objective names, else the model's networks."""
    objective, networks = assembly.objective, list(assembly.model.children())
    for name in objective.compiled:
        setattr(objective, name, device.compiled(getattr(objective, name)))
    for network in networks if not objective.compiled else []:
        network.forward = device.compiled(network.forward)
    if not objective.compiled and not networks:
        report.say(f"device.compile: {type(assembly.model).__name__} has no networks to compile")


def fit(trainer: Trainer, look: Look, stop: Stop, run: Run | None, path: Path, assembly: Assembly) -> Outcome:
    """Train to the end, evaluate on the test split, and close the books."""
    report = trainer.report
    settings = hparams(assembly, config.shown(trainer.config))
    if run is not None:
        run.status("running", trainer.step)
    count = sum(p.numel() for p in trainer.model.parameters())
    report.say(
        f"{assembly.name} on {assembly.source.spec.name} ({trainer.pipeline.protocol}): {count:,} parameters, "
        f"{trainer.pipeline.steps_per_epoch:,} steps an epoch, on {trainer.device.describe()}"
    )
    report.say(f"run {path}")
    report.hparams(settings)
    ok = False
    try:
        trainer.fit(stop)
        found = _finish(trainer, look, stop, path, assembly) if trainer.device.is_main else {}
        ok = True
    except Interrupted:
        if trainer.step == 0:
            report.say("stopped before the first step was done: there is nothing to save")
        raise
    finally:
        report.hparams_end(ok)
        if not stop.requested:  # who sent a signal may not wait for long, and resuming draws it anyway
            report.curve()
        report.close()
    if run is not None:
        run.status("done", trainer.step)
    return Outcome(path, trainer.step, found)


def _finish(trainer: Trainer, look: Look, stop: Stop, path: Path, assembly: Assembly) -> dict[str, Estimate]:
    """Test numbers into the ledger, a last picture, and the closing table."""
    trainer.model.eval()
    trainer.averaged.eval()
    record = read_json(path / "checkpoints" / "last.json") or {}
    with trainer.device.uncompiled(), stop.at_once():
        rows, found = test_rows(trainer, assembly.plain["seed"], record.get("sha256", ""))
        file = look.draw(trainer)
    ledger.add(path, rows)
    trainer.report.scalars(trainer.step, {f"test/{name}": e.mean for name, e in found.items()})
    file()
    for name in ("samples", "particles"):
        trainer.report.animation(trainer.step, name)
    table = [("run", str(path)), ("steps", f"{trainer.step:,} in {clock(trainer.elapsed)}")]
    table += [(f"test {name} ({e.kind})", str(e)) for name, e in found.items()]
    all_runs = path.parents[2] if path.parent.name == assembly.name else path  # a copy may lie elsewhere
    table += [("samples", str(look.picture)), ("tensorboard", f"tensorboard --logdir {all_runs}")]
    trainer.report.table("done", table)
    return found


def hparams(assembly: Assembly, plain: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run as flat names and scalars, for tables."""
    flat: dict[str, Any] = {"seed": plain["seed"], "data": assembly.source.spec.name}
    names = assembly.name.split("-")
    flat |= {"model": names[0], "objective": names[1], "data.batch_size": plain["data"]["batch_size"]}
    for section in ("model", "objective", "optim"):
        for key, value in plain[section].items():
            if value is not None and key not in ("_target_", "shape", "levels", "vocabulary"):
                flat[f"{section}.{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


# --- how it ended ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watched(run: Run | None, plain: dict[str, Any]) -> Iterator[bool]:
    """Log to the run's train.log, and on the way out record in status.json how it ended. Yields whether `run` is ours.

    Raises:
        GentrainError: what went wrong, in words; the traceback is in the log.
    """
    if run is None:
        yield False
        return
    handler = logging.FileHandler(run.path / "train.log", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("gentrain")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield True
    except BaseException as error:
        problem = translate(error, plain, run.path)
        record = read_json(run.path / "checkpoints" / "last.json") or {}
        with contextlib.suppress(OSError):
            log.error("%s", problem, exc_info=error)
        run.status(problem.state, record.get("step", 0), str(problem))
        raise problem from error
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        handler.close()
        run.close()


def translate(error: BaseException, plain: dict[str, Any], path: Path) -> GentrainError:
    """Any exception as one line a user can act on."""
    if isinstance(error, Stopped):
        error = error.interrupted
    if isinstance(error, Interrupted):
        return Interrupted(f"{error}; go on with: gentrain resume run={path}", error.signal)
    if isinstance(error, GentrainError):
        return error
    if (full := out_of_memory(error, plain["data"]["batch_size"])) is not None:
        return full
    if is_disk_error(error):
        assert isinstance(error, OSError)
        return disk_error(error, Path(error.filename or path))
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"stopped at once; go on with: gentrain resume run={path}", 2)
    text = str(error).splitlines()
    return GentrainError(
        f"{type(error).__name__}: {text[0] if text else 'no message'} (traceback in {path / 'train.log'}, "
        "or say traceback=true)"
    )
