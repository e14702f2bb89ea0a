"""`gentrain -m …`: a sweep, each job of which is a process of its own.

A sweep has a folder, <output>/sweeps/<hash of the command>/, with a copy of the YAML files as they were when it
started, and for each job its record (configuration, run folder, state) and its console output. So editing files doesn't
change jobs that are still to come, a job that crashes takes no other with it, and the same command again skips what is
done and goes on with what is not.

A job hangs on a pipe whose other end is held by the process that started it. It saves and stops when the pipe is
closed: on purpose, or because that process died, however it died. With Hydra's basic launcher that is the sweep's own
process, with joblib's one of its workers, which watches the sweep's process and the signals that it has noted down.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from gentrain import config
from gentrain.console import rounded
from gentrain.errors import Interrupted, RunBusyError, UsageError
from gentrain.files import disk_error, read_json, write_json
from gentrain.tasks.launch import through_hydra

POLL = 0.2  # seconds between two looks at whether the sweep goes on
_PARENT = os.getppid()  # another one later means that it has died


def main(args: list[str], folder: Path | None) -> int:
    """Run or continue the sweep of the command line `args` with the user's own YAML `folder`; the exit code.

    Raises:
        UsageError: nothing can be made of the command line. RunBusyError: this very sweep is being run already.
        Interrupted: a signal asked to stop; the jobs that ran have saved.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("-m under torchrun: start a sweep without torchrun, or one run with it")
    place = _place(args, folder)
    with _running(place, args) as state:
        overrides = [*args, f"hydra.sweep.dir={_quoted(place)}"]
        through_hydra(job, overrides, place / "conf", place / "conf.user" if folder else None)
        unfinished = summary(place)
        if stopped := read_json(state)["signal"]:
            raise Interrupted("sweep stopped; the same command goes on with it", stopped)
    return 1 if unfinished else 0


def _place(args: Sequence[str], folder: Path | None) -> Path:
    """The folder of this very command and these YAML files: a second call finds the first one's."""
    sources = {"conf": config.conf_dir(), **({"conf.user": folder} if folder else {})}
    digest = hashlib.sha256()
    for a in sorted(a for a in args if not a.startswith(("hydra/launcher", "hydra.launcher", "-"))):
        digest.update(a.encode() + b"\n")
    for source in sources.values():
        for file in sorted(source.rglob("*.yaml")):
            digest.update(str(file.relative_to(source)).encode() + file.read_bytes())
    output = [a.partition("=")[2] for a in args if a.startswith("output=")]
    place = Path(output[-1] if output else "outputs").resolve() / "sweeps" / digest.hexdigest()[:12]
    try:
        (place / "jobs").mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            if not (place / name).is_dir():
                shutil.copytree(source, place / f"{name}.new", dirs_exist_ok=True)
                os.replace(place / f"{name}.new", place / name)
    except OSError as error:
        raise disk_error(error, place) from error
    return place


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


@contextlib.contextmanager
def _running(place: Path, args: Sequence[str]) -> Iterator[Path]:
    """Hold the sweep, and note the first signal that asks to stop it in sweep.json, whose path is yielded.

    The second signal has its usual effect. A sweep that came to no job at all leaves nothing behind.
    """
    state = place / "sweep.json"
    lock = FileLock(place / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = (read_json(state) or {}).get("pid", "unknown")
        raise RunBusyError(f"{place}: this sweep is still running (process {pid}); wait for it or stop it") from None
    record = {"command": list(args), "pid": os.getpid(), "signal": 0}
    write_json(state, record)

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        write_json(state, {**record, "signal": number})
        os.write(2, b"sweep: stopping; running jobs save first\n")  # print can't be called from within print

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield state
    finally:
        restore()
        lock.release()
        if not any((place / "jobs").iterdir()):
            shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(OSError):  # others' sweeps and runs may lie there
                place.parent.rmdir()
                place.parent.parent.rmdir()


# --- one job --------------------------------------------------------------------------------------------------------


def job(cfg: DictConfig) -> None:
    """Run one job unless it is done. A launcher may call this in any process: its name is found in this module.

    A job that fails doesn't raise: what became of it stands in its record, and the sweep goes on.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    place, overrides = Path(hydra.sweep.dir), config.said()
    content = OmegaConf.to_container(cfg, resolve=False)
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    path = place / "jobs" / f"{key}.json"
    fresh = {"overrides": overrides, "config": content, "run": None, "state": "waiting", "reason": ""}
    record = {**(read_json(path) or fresh), "number": hydra.job.num}
    command = read_json(place / "sweep.json")["command"]
    label = " ".join(o for o in overrides if o not in command) or "the only job"
    run = run_of(path, record)
    if record["state"] == "done" and run and run.is_dir():
        return _say(f"skip  {label}: done")
    if not _goes_on(place):
        return write_json(path, record)
    _say(f"{'resume' if run and run.is_dir() else 'start'}  {label}")
    write_json(path, {**record, "state": "running", "reason": ""})
    began = time.monotonic()
    try:
        config.require_said(cfg, overrides)
        config.check(cfg)  # before a process is started
        state, reason = _spawn(path, _environment(hydra.launcher.get("n_jobs", 1)))
    except UsageError as error:
        state, reason = "failed", str(error)
    record = {**(read_json(path) or record), "state": state, "reason": reason}
    write_json(path, record)
    if not _alive(place):
        os._exit(1)  # joblib would have its worker wait for more from a sweep that was killed
    _say(f"{state}  {label} in {time.monotonic() - began:.0f} s" + (f": {reason}" if reason else ""))


def _say(line: str) -> None:
    print(f"sweep: {line}", flush=True)


def _alive(place: Path) -> bool:
    """Whether the sweep's process, or what it has started this one by, lives."""
    return read_json(place / "sweep.json")["pid"] == os.getpid() or os.getppid() == _PARENT


def _goes_on(place: Path) -> bool:
    """Whether the sweep's process lives and has not been told to stop."""
    return _alive(place) and not read_json(place / "sweep.json")["signal"]


def _environment(jobs: int) -> dict[str, str]:
    """The variables of a job that shares this machine with `jobs` - 1 others (-1: as many as there are cores)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs == 1:
        return dict(os.environ)
    # OpenMP's threads spin: more of them than cores slows every job several times over
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs) if jobs > 0 else 1), **os.environ}


def _spawn(path: Path, environment: dict[str, str]) -> tuple[str, str]:
    """Run the job of a record in its own process to its end; its state and, unless it is done, the reason."""
    if os.getpid() != read_json(path.parents[1] / "sweep.json")["pid"]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a launcher's workers too: leave it to the sweep
    output = path.with_suffix(".log")
    with open(output, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gentrain.tasks.job", str(path)],
            stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment,
            start_new_session=True,  # the terminal's Ctrl-C is for the sweep, which passes it on once
        )  # fmt: skip
    assert process.stdin is not None
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return _verdict(path, process.pid, process.wait(POLL))
            if not _goes_on(path.parents[1]):
                process.stdin.close()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        process.stdin.close()


def _verdict(path: Path, pid: int, code: int) -> tuple[str, str]:
    """State and reason of the job whose process `pid` has ended with `code`."""
    if code == 0:
        return "done", ""
    if code < 0:
        number = signal.Signals(-code)
        return "interrupted" if number == signal.SIGTERM else "failed", f"killed by {number.name}"
    run = run_of(path, read_json(path))
    status = read_json(run / "status.json") if run else None
    if status and status["pid"] == pid:
        return status["state"], status["reason"]
    lines = path.with_suffix(".log").read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return "failed", said[-1].removeprefix("gentrain: ") if said else f"exit code {code}"


def run_of(path: Path, record: dict[str, Any]) -> Path | None:
    """The run folder of the job's record at `path`, which names it relative to itself."""
    return path.parent / record["run"] if record["run"] else None


# --- all jobs -------------------------------------------------------------------------------------------------------


def summary(place: Path) -> int:
    """Print the table over the sweep's jobs: what differs, state, held-out numbers, run; how many are not done."""
    from gentrain.console import print_table

    records = {path: r for path in (place / "jobs").glob("*.json") if (r := read_json(path))}
    paths = sorted(records, key=lambda path: records[path]["number"])
    settings = [dict(o.partition("=")[::2] for o in records[path]["overrides"]) for path in paths]
    differing = [k for k in settings[0] if len({s.get(k) for s in settings}) > 1] if settings else []
    numbers = [_numbers(run_of(path, records[path])) for path in paths]
    metrics = list(dict.fromkeys(name for n in numbers for name in n))
    rows = []
    for path, s, n in zip(paths, settings, numbers, strict=True):
        run = run_of(path, records[path])
        where = os.path.relpath(run.resolve()) if run else ""
        reason = records[path]["reason"]
        rows.append([*[s.get(k, "") for k in differing], records[path]["state"], *[n.get(m, "") for m in metrics]])
        rows[-1].append(f"{where}: {reason}" if where and reason else where or reason)
    print_table(f"sweep {os.path.relpath(place)}", [*differing, "state", *metrics, "run"], rows)
    return sum(record["state"] != "done" for record in records.values())


def _numbers(run: Path | None) -> dict[str, str]:
    content = read_json(run / "evaluation.json") if run else None
    return {
        f"{row['split']} {row['metric']}": rounded(row["value"], row["stderr"])
        for row in (content["rows"] if content else [])
    }
