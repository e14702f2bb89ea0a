"""The run folder: one training, self-describing, owned by one process at a time."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from gentrain.errors import DiskError, RunBusyError, UsageError
from gentrain.files import disk_error, read_json, remove_temporaries, write_atomic, write_json


def snake(name: str) -> str:
    """A class name as it stands in file names.

    >>> snake("NonSaturating"), snake("VAE"), snake("DCGAN"), snake("LabelSmoothing")
    ('non_saturating', 'vae', 'dcgan', 'label_smoothing')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class Run:
    """A run folder, held under a lock that the operating system drops when the process dies, however it dies."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            status = read_json(path / "status.json") or {}
            raise RunBusyError(
                f"{path}: is still running (process {status.get('pid', 'unknown')}); wait for it or stop it first"
            ) from None
        except OSError as error:
            raise disk_error(error, path) from error
        remove_temporaries(self.checkpoints)

    @classmethod
    def create(cls, root: Path, data: str, name: str) -> Run:
        """Make `<root>/<data>/<name>/<time>-<4 hex>/`, a folder that no other run has.

        Raises:
            DiskError: `root` can't be written.
        """
        parent = root / data / name
        while True:
            path = parent / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            try:
                parent.mkdir(parents=True, exist_ok=True)
                path.mkdir()
                for folder in ("checkpoints", "samples", ".hydra"):
                    (path / folder).mkdir()
            except FileExistsError as error:
                if parent.is_dir():
                    continue
                raise disk_error(error, parent) from error
            except OSError as error:
                raise disk_error(error, path) from error
            return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Take over an existing run folder.

        Raises:
            UsageError: it is no run folder. RunBusyError: another process is at work in it.
        """
        return cls(require_run(path))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def describe(self, config: Mapping[str, Any], composed: str, overrides: Sequence[str], facts: dict) -> None:
        """Write what the run is: its configuration, command, code, versions and data."""
        self.describe_config(config)
        write_atomic(self.path / ".hydra" / "config.yaml", composed.encode())
        write_atomic(self.path / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(list(overrides)).encode())
        write_json(self.path / "run.json", {"command": sys.argv, **environment(), **facts})

    def describe_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml: what the next resume goes by."""
        text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
        write_atomic(self.path / "config.yaml", text.encode())

    def status(self, state: str, step: int, reason: str = "") -> None:
        """Write status.json. A disk that is full now must not hide why the run ended."""
        now = datetime.datetime.now().isoformat(timespec="seconds")
        record = {"state": state, "step": step, "reason": reason, "pid": os.getpid(), "time": now}
        with contextlib.suppress(DiskError):
            write_json(self.path / "status.json", record)

    def close(self) -> None:
        self._lock.release()


def require_run(path: str | Path) -> Path:
    """The run folder at `path`, or a UsageError that says what is there instead."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UsageError(f"run={path}: there is no such folder; runs lie under outputs/<data>/<model>-<objective>/")
    if not (path / "config.yaml").is_file() or not (path / "checkpoints").is_dir():
        raise UsageError(f"run={path}: is not a run folder (no config.yaml and checkpoints/ in it)")
    return path


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a line cut short by a crash is passed over."""
    records = []
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def environment() -> dict[str, Any]:
    """The code, interpreter, libraries and machine of this process."""
    packages = ("gentrain", "torch", "torchvision", "hydra-core", "omegaconf", "numpy")
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "folder": os.getcwd(),
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }


def _git() -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout that gentrain itself lies in; None outside one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if "gentrain/run.py" not in git("ls-files", "--full-name", str(Path(__file__))):
            return None
        # what `reproduce record=true` writes of one experiment is no change to the code that the next one runs
        changed = git("status", "--porcelain", "-uno", "--", ":(top)", ":(top,exclude)docs/results*")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None
