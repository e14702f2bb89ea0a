"""Files that are whole or not there: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from gentrain.errors import DiskError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO}


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content`; after a crash at any moment it holds the old bytes or the new ones.

    Raises:
        DiskError: the disk is full or the folder can't be written; the old file is intact and no temporary is left.
    """
    temporary = path.with_name(f".{path.name}.tmp.{os.getpid()}")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path, len(content)) from error


def disk_error(error: OSError, path: Path, needed: int | None = None) -> DiskError:
    """The operating system's complaint in words: what could not be written, what is free, what was needed."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    sizes = ""
    if needed is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):
            sizes = f" (needs {needed:,} bytes, {shutil.disk_usage(path.parent).free:,} are free)"
    return DiskError(f"{path}: can't be written: {reason}{sizes}; free some space or choose another output=FOLDER")


def is_disk_error(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _DISK


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The parsed file, or None where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def remove_temporaries(folder: Path) -> None:
    """Delete what a process that died while writing has left behind."""
    for stale in folder.glob(".*.tmp.*"):
        stale.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
