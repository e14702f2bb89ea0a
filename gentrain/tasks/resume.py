"""Continue a run in its own folder from its newest checkpoint, as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gentrain import checkpoint, config
from gentrain import device as devices
from gentrain.console import console
from gentrain.errors import UsageError
from gentrain.files import read_json
from gentrain.run import Run, require_run
from gentrain.settings import DeviceSettings, TrainerSettings, says_where
from gentrain.signals import Stop
from gentrain.tasks.assemble import assemble
from gentrain.tasks.load import stored_config
from gentrain.tasks.train import Outcome, fit, prepare, watched

FREE = ("trainer.", "device.", "output", "traceback", "trust")
BOUND = ("trainer.ema", "trainer.clip", "device.precision")
"""Settings under FREE, and where data lie, say how long, how often and where; all others, and BOUND, are part of what
is learned."""


def resume(run: str | Path, overrides: Sequence[str] = (), force: bool = False) -> Outcome | None:
    """Go on with a run; None if it had already reached its end.

    Args:
        run: its folder. overrides: changes, e.g. ["trainer.steps=20000"]. force: accept changes to what is learned.

    Raises:
        UsageError: no run folder, or a change that would make the rest another experiment.
        RunBusyError: another process is at work in it. CheckpointError: no checkpoint of it is usable.
    """
    path = require_run(run)
    with Stop() as stop:
        folder = Run.open(path) if devices.is_main_process() else None
        try:
            found = checkpoint.newest(path / "checkpoints")
            cfg = _configuration(path, found[1] if found else None, overrides, force)
            plain = config.check(cfg)
            if found is not None and _complete(path, found[1], plain):
                if folder is not None:
                    done = f"{path} is done at step {found[1]['step']:,}; to go on, say trainer.steps=MORE"
                    console().print(done, markup=False, highlight=False, soft_wrap=True)
                    folder.close()
                return None
            device = devices.setup(DeviceSettings(**plain["device"]))
            assembly = assemble(cfg, device)
        except BaseException:
            if folder is not None:
                folder.close()
            raise
        stored = config.stored(cfg)
        with watched(folder, assembly.plain) as is_main:
            if folder is not None:
                folder.describe_config(stored)  # a change holds for later resumes too
            first = found[1]["step"] + 1 if found else 0
            trainer, look = prepare(assembly, device, path, stored, is_main, first)
            if found is not None:
                trainer.load_state_dict(found[1], found[0])
                trainer.report.say(f"resumed at step {trainer.step:,} from {found[0].name}")
            return fit(trainer, look, stop, folder, path, assembly)


def _complete(path: Path, state: Mapping[str, Any], plain: dict[str, Any]) -> bool:
    """Whether the run is done and nothing asks for more of it."""
    status = read_json(path / "status.json") or {}
    settings = TrainerSettings(**plain["trainer"])
    before = TrainerSettings(**config.resolve(stored_config(dict(state)))["trainer"])
    ends = ("steps", "epochs", "max_time")
    return status.get("state") == "done" and all(getattr(settings, e) == getattr(before, e) for e in ends)


def _configuration(path: Path, state: Mapping[str, Any] | None, overrides: Sequence[str], force: bool) -> DictConfig:
    """The run's configuration with the changes asked for; what was learned so far was learned under the checkpoint's.

    The folder's config.yaml may have been edited since: a difference there is a change like any other.
    """
    edited = config.read(path / "config.yaml")
    OmegaConf.update(edited, "trust", [])  # who gave us this folder doesn't say whose code we trust
    config.apply(edited, overrides)
    if state is not None and not force:
        before = config.flat(state["config"])
        after = config.flat(config.stored(edited))
        changes = [
            f"{key}: {before.get(key)} -> {after.get(key)}"
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key) and not _is_free(key)
        ]
        if changes:
            raise UsageError(
                f"run={path}: these changes would make the rest of the run another experiment: {'; '.join(changes)}. "
                "Undo them, start a new run, or accept them with force=true"
            )
    return edited


def _is_free(key: str) -> bool:
    return says_where(key) or (key.startswith(FREE) and not key.startswith(BOUND))
