"""The process of one job of a sweep: `python -m gentrain.tasks.job RECORD`. It trains, or goes on with its run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from gentrain.errors import GentrainError
from gentrain.files import read_json, write_json
from gentrain.tasks.sweep import run_of

PATIENCE = 60.0  # seconds for a former process of the same job to save and end, when its sweep was killed


def main(path: Path) -> int:
    """Carry out the job of the record at `path`; the exit code."""
    threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
    record = read_json(path)
    run = run_of(path, record)
    try:
        if run is not None and (run / "config.yaml").exists():
            with contextlib.suppress(Timeout), FileLock(run / ".lock").acquire(timeout=PATIENCE):
                pass
            from gentrain.tasks.resume import resume

            resume(run.resolve(), [f"trust={json.dumps(record['config']['trust'])}"])
            return 0
        from gentrain.tasks import train

        def made(folder: Path) -> None:
            write_json(path, {**record, "run": os.path.relpath(folder.resolve(), path.parent)})

        cfg = OmegaConf.create(record["config"])
        assert isinstance(cfg, DictConfig)
        OmegaConf.set_struct(cfg, True)
        train.main(cfg, record["overrides"], made)
    except GentrainError as error:
        print(f"gentrain: {' '.join(str(error).split())}", file=sys.stderr)
        return error.code
    return 0


def _stop_with_the_sweep() -> None:
    """Ask this process to save and stop when nobody holds the other end of its input any more."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
