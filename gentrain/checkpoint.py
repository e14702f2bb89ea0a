"""Checkpoints: plain types in torch's zip format, written atomically, verified on load, never executed.

`checkpoints/last.json` and `best.json` name a file with its sha256. A file that they don't list (a crash fell between
the two writes) is verified by the checksums inside the zip format.
"""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gentrain import __version__
from gentrain.errors import CheckpointError
from gentrain.files import read_json, write_atomic, write_json

SCHEMA = 1
log = logging.getLogger(__name__)


def save(path: Path, state: Mapping[str, Any]) -> str:
    """Write `state` (plain types and tensors) to `path`; its sha256.

    Raises:
        DiskError: the disk is full; an older file at `path` is intact.
    """
    buffer = io.BytesIO()
    torch.save({"format": "gentrain", "schema": SCHEMA, "version": __version__, **state}, buffer)
    content = buffer.getvalue()
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def load(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Read and verify a checkpoint onto the CPU.

    Raises:
        CheckpointError: it is missing, damaged, foreign, hostile or written by a newer gentrain.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    _verify(path, content, sha256)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises five kinds for a broken file, none of which names it
        raise CheckpointError(
            f"{path}: not a gentrain checkpoint: it holds something other than tensors and plain values"
            " (nothing of it was executed)"
        ) from error
    if not isinstance(state, dict) or state.get("format") != "gentrain" or not isinstance(state.get("schema"), int):
        raise CheckpointError(f"{path}: not a gentrain checkpoint (a file of another program)")
    if state["schema"] > SCHEMA:
        raise CheckpointError(f"{path}: was written by gentrain {state.get('version')}; this is {__version__}: upgrade")
    missing = [key for key in ("config", "step", "model") if key not in state]
    if missing:
        raise CheckpointError(f"{path}: not a gentrain checkpoint that was written whole: lacks {', '.join(missing)}")
    return state


def _verify(path: Path, content: bytes, sha256: str | None) -> None:
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(f"{path}: damaged: its sha256 is not the one recorded when it was written")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            broken = archive.testzip()
    except Exception as error:
        raise CheckpointError(f"{path}: not a gentrain checkpoint, or cut short ({len(content):,} bytes)") from error
    if broken is not None:
        raise CheckpointError(f"{path}: damaged: the checksum of {broken!r} inside it is wrong")


def load_state(module: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """`module.load_state_dict`, with what doesn't fit named in one line.

    Raises:
        CheckpointError: keys are missing or unexpected, or shapes differ.
    """
    own = module.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)} there, {tuple(own[key].shape)} here"
        for key in own
        if key in state and hasattr(own[key], "shape") and own[key].shape != state[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + ("; …" if len(problems) > 6 else "")
        raise CheckpointError(f"{path}: is of another {type(module).__name__}: {shown}")
    module.load_state_dict(state)


class Keeper:
    """Keeps the last few checkpoints of a run and the best by validation.

    Args:
        folder: the run's `checkpoints/`.
        keep: how many of the newest stay, besides the best.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        self.best: dict[str, Any] | None = None
        self._files: dict[str, str] = {}  # name -> sha256, oldest first

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "files": dict(self._files)}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Go back to how things stood at `step`: files of later steps are another future's, and go."""
        self.best = state["best"]
        recorded = {**state["files"], **_recorded(self.folder)}
        names = [p.name for p in sorted(self.folder.glob("step-*.pt"))]
        for name in names:
            if _step(name) > step:
                (self.folder / name).unlink()
        self._files = {name: recorded.get(name, "") for name in names if _step(name) <= step}
        if self.best and self.best["file"] not in self._files:  # a later best had replaced it
            self.best = None
        self._write_best()

    def improves(self, value: float) -> bool:
        """Whether `value` beats the best so far. NaN never does."""
        return value > (self.best["value"] if self.best else float("-inf"))

    def save(self, step: int, state: Mapping[str, Any], best: tuple[str, float] | None = None) -> Path:
        """Write the checkpoint of `step`; with `best=(metric, value)` it becomes the best one.

        Order matters: the new file is complete before `last.json` names it, and older ones go only after that.
        """
        path = self.folder / f"step-{step:08d}.pt"
        if best is not None:
            self.best = {"file": path.name, "step": step, "metric": best[0], "value": best[1]}
        sha256 = save(path, {**state, "keeper": self.state_dict()})
        self._files[path.name] = sha256
        protected = {self.best["file"]} if self.best else set()
        doomed = [name for name in list(self._files)[: -self.keep] if name not in protected]
        for name in doomed:
            del self._files[name]
        record = {"file": path.name, "step": step, "sha256": sha256, "files": self._files}
        write_json(self.folder / "last.json", record)
        if best is not None:
            self._write_best()
        for name in doomed:
            (self.folder / name).unlink(missing_ok=True)
        return path

    def _write_best(self) -> None:
        if self.best is None:
            (self.folder / "best.json").unlink(missing_ok=True)
        else:
            write_json(self.folder / "best.json", {**self.best, "sha256": self._files.get(self.best["file"], "")})


def _step(name: str) -> int:
    return int(name.removeprefix("step-").removesuffix(".pt"))


def _recorded(folder: Path) -> dict[str, str]:
    record = read_json(folder / "last.json")
    files = record.get("files") if isinstance(record, dict) else None
    return {str(k): str(v) for k, v in files.items() if v} if isinstance(files, dict) else {}


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that verifies, or None where there is none at all.

    A damaged one is passed over with a warning that names it.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    problem: CheckpointError | None = None
    for path, sha256 in _candidates(folder):
        try:
            return path, load(path, sha256)
        except CheckpointError as error:
            log.warning("%s; trying the one before it", error)
            problem = problem or error
    if problem is not None:
        raise problem
    return None


def _candidates(folder: Path) -> Iterator[tuple[Path, str | None]]:
    recorded = _recorded(folder)
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        yield path, recorded.get(path.name)


def find(path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that a user means by a run folder or a checkpoint file.

    Raises:
        CheckpointError: there is none, or it is unusable.
    """
    if path.is_dir():
        found = newest(path / "checkpoints")
        if found is None:
            raise CheckpointError(f"{path}: holds no checkpoint yet; let it train, or gentrain resume run={path}")
        return found
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such run folder or checkpoint file")
    return path, load(path, _recorded(path.parent).get(path.name))
