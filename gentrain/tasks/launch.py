"""`gentrain …` and `gentrain -m …`: Hydra composes, and each job of a sweep is a process of its own.

A sweep has a folder, <output>/sweeps/<hash of the command>/, that holds a copy of the YAML files as they were when it
started, and for each job a record (its configuration, run folder and state) and its console output. So editing files
doesn't change jobs that are still to come, a job that crashes takes no other with it, and the same command again
skips what is done and resumes what is not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from gentrain import config
from gentrain.errors import Interrupted, UsageError
from gentrain.files import disk_error


def main(args: list[str]) -> int:
    """Run the command line `args` through Hydra; the exit code."""
    args, folder = _take_config_dir(args)
    sweeping = any(a in ("-m", "--multirun") for a in args)
    if not sweeping:
        _through_hydra(one, args, config.conf_dir(), folder)
        if _problems:
            raise _problems.pop()
        return 0
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("-m under torchrun: start a sweep without torchrun, or one run with it")
    from gentrain.tasks import sweep

    place = _sweep_folder(args, folder)
    overrides = [*args, f"hydra.sweep.dir={_quoted(place)}"]
    previous = signal.signal(signal.SIGTERM, _terminated)
    interrupted = 0
    try:
        _through_hydra(job, overrides, place / "conf", place / "conf.user" if folder else None)
    except (KeyboardInterrupt, Interrupted) as stop:
        interrupted = getattr(stop, "signal", signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, previous)
    failed = sweep.summary(place)
    if interrupted:
        raise Interrupted("sweep stopped; the same command goes on with it", interrupted)
    return 1 if failed else 0


def one(cfg: DictConfig) -> None:
    """Train as composed by Hydra, which would announce an exception in its own words if it saw one."""
    from hydra.core.hydra_config import HydraConfig

    try:
        config.check(cfg)  # before torch is imported
        from gentrain.tasks import train

        train.main(cfg, list(HydraConfig.get().overrides.task))
    except Exception as error:
        _problems.append(error)


def job(cfg: DictConfig) -> object:
    """Run one job of a sweep; a name of its module, so that a launcher can send it to another process."""
    from hydra.core.hydra_config import HydraConfig

    from gentrain.tasks import sweep

    hydra = HydraConfig.get()
    return sweep.job(cfg, Path(hydra.sweep.dir), list(hydra.overrides.task), hydra.launcher.get("n_jobs", 1))


_problems: list[Exception] = []


def _through_hydra(task: Callable[[DictConfig], object], args: Sequence[str], conf: Path, folder: Path | None) -> None:
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand exceptions on; gentrain.cli words them
    extra = ["--config-dir", str(folder)] if folder else []
    before = sys.argv
    sys.argv = ["gentrain", *extra, *args]
    try:
        hydra.main(version_base="1.3", config_path=str(conf), config_name="train")(task)()
    except SystemExit as end:  # argparse's own complaint about a flag, already printed
        if end.code not in (0, None):
            raise UsageError("see gentrain --help") from end
    except Exception as error:
        words = [a for a in args if not a.startswith("-")]
        raise config.explain(error, words, "train") from error
    finally:
        sys.argv = before


def _take_config_dir(args: list[str]) -> tuple[list[str], Path | None]:
    """Split `--config-dir DIR` off the arguments.

    Raises:
        UsageError: DIR is no folder.
    """
    for i, a in enumerate(args):
        name, _, value = a.partition("=")
        if name in ("--config-dir", "-cd"):
            value = value or (args[i + 1] if i + 1 < len(args) else "")
            rest = args[:i] + args[i + (1 if "=" in a else 2) :]
            if not Path(value).is_dir():
                raise UsageError(f"--config-dir {value}: there is no such folder")
            return rest, Path(value).resolve()
    return args, None


def _sweep_folder(args: Sequence[str], folder: Path | None) -> Path:
    """The folder of this very command, with its copy of the YAML files; a second call finds the first one's."""
    output = [a.partition("=")[2] for a in args if a.startswith("output=")]
    digest = hashlib.sha256()
    for a in sorted(a for a in args if not a.startswith(("hydra", "-"))):  # the launcher may change between calls
        digest.update(a.encode() + b"\n")
    sources = {"conf": config.conf_dir(), **({"conf.user": folder} if folder else {})}
    for source in sources.values():
        for file in sorted(source.rglob("*.yaml")):
            digest.update(str(file.relative_to(source)).encode() + file.read_bytes())
    place = Path(output[-1] if output else "outputs").resolve() / "sweeps" / digest.hexdigest()[:12]
    try:
        for name, source in sources.items():
            if not (place / name).is_dir():
                shutil.copytree(source, place / f"{name}.new", dirs_exist_ok=True)
                os.replace(place / f"{name}.new", place / name)
    except OSError as error:
        raise disk_error(error, place) from error
    return place


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _terminated(number: int, frame: FrameType | None) -> None:
    raise Interrupted("sweep stopped", number)
