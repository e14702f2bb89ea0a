"""One job of a sweep, as a process of its own, and the closing table over all of them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gentrain.errors import GentrainError
from gentrain.files import read_json, write_json


def job(cfg: DictConfig, place: Path, overrides: list[str], jobs: int) -> dict[str, Any]:
    """Run one job of the sweep in folder `place` unless it is done; its record.

    A job that fails doesn't raise: what became of it stands in its record, and the sweep goes on.
    """
    content = OmegaConf.to_container(cfg, resolve=False)
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    path = place / f"{key}.json"
    record = read_json(path) or {"overrides": overrides, "config": content, "run": None, "state": "new", "reason": ""}
    label = " ".join(overrides) or "(defaults)"
    if record["state"] == "done":
        _say(f"skip  {label}: done")
        return record
    verb = "resume" if record["run"] and Path(record["run"], "config.yaml").exists() else "start"
    _say(f"{verb}  {label}")
    write_json(path, {**record, "state": "running"})
    began = time.monotonic()
    code = _spawn(path, jobs)
    record = {**(read_json(path) or record), "seconds": round(time.monotonic() - began, 1)}
    record["state"], record["reason"] = _verdict(record, code, path.with_suffix(".log"))
    write_json(path, record)
    reason = f": {record['reason']}" if record["reason"] else ""
    _say(f"{record['state']}  {label} in {record['seconds']:g} s{reason}")
    return record


def _say(line: str) -> None:
    print(f"sweep: {line}", flush=True)


def _spawn(record: Path, jobs: int) -> int:
    """Run a job's process to its end and return its exit code; if we are stopped, it is told to save and stop too."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = dict(os.environ)
    if jobs != 1:  # OpenMP's threads spin: more of them than cores slows every job several times over
        share = max(1, cores // (jobs if jobs > 0 else cores))
        environment.setdefault("OMP_NUM_THREADS", str(share))
    command = [sys.executable, "-m", "gentrain.tasks.sweep", str(record)]
    with open(record.with_suffix(".log"), "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            return process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise


def _verdict(record: dict[str, Any], code: int, log: Path) -> tuple[str, str]:
    """State and reason of a job whose process has ended with `code`."""
    status = read_json(Path(record["run"]) / "status.json") if record["run"] else None
    if code == 0:
        return "done", ""
    if code < 0:
        return "failed", f"killed by {signal.Signals(-code).name}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    reason = lines[-1].removeprefix("gentrain: ") if lines else f"exit code {code}"
    state = status["state"] if status and status["state"] not in ("running", "done") else "failed"
    return state, reason


def summary(place: Path) -> int:
    """Print the table over the sweep's jobs: what differs, state, held-out numbers; how many are not done."""
    from rich.table import Table

    from gentrain.report import console

    records = [r for p in place.glob("*.json") if (r := read_json(p)) and "overrides" in r]
    records.sort(key=lambda r: r["overrides"])
    settings = [dict(o.split("=", 1) for o in r["overrides"]) for r in records]
    keys = list(dict.fromkeys(k for s in settings for k in s))
    differing = [k for k in keys if len({s.get(k) for s in settings}) > 1]
    numbers = [_numbers(r) for r in records]
    metrics = list(dict.fromkeys(name for n in numbers for name in n))
    table = Table(title=f"sweep {place}", title_justify="left")
    for heading in (*differing, "state", *metrics, "run"):
        table.add_column(heading, overflow="fold")
    for r, s, n in sorted(
        zip(records, settings, numbers, strict=True), key=lambda row: [str(v) for v in row[1].items()]
    ):
        where = os.path.relpath(r["run"]) if r["run"] else r["reason"]
        table.add_row(*[s.get(k, "") for k in differing], r["state"], *[n.get(m, "") for m in metrics], where)
    console().print(table)
    return sum(r["state"] != "done" for r in records)


def _numbers(record: dict[str, Any]) -> dict[str, str]:
    content = read_json(Path(record["run"]) / "evaluation.json") if record["run"] else None
    rows = content["rows"] if content else []
    return {f"{r['split']} {r['metric']} ({r['kind']})": f"{r['value']:.2f} ± {r['stderr']:.2f}" for r in rows}


def child(record: Path) -> int:
    """The process of one job: train it, or go on with its run."""
    _die_with_parent()
    content = read_json(record)
    run = content["run"]
    try:
        if run and Path(run, "config.yaml").exists():
            from gentrain.tasks.resume import resume

            resume(run)
        else:
            from gentrain.tasks import train

            cfg = OmegaConf.create(content["config"])
            assert isinstance(cfg, DictConfig)
            OmegaConf.set_struct(cfg, True)
            made = lambda path: write_json(record, {**content, "run": str(path.resolve())})  # noqa: E731
            train.main(cfg, content["overrides"], made)
    except GentrainError as error:
        print(f"gentrain: {' '.join(str(error).split())}", file=sys.stderr)
        return error.code
    return 0


def _die_with_parent() -> None:
    """Have Linux send SIGTERM to this process when the sweep dies, so that it saves and stops rather than lingers."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            pr_set_pdeathsig = 1
            ctypes.CDLL("libc.so.6").prctl(pr_set_pdeathsig, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(child(Path(sys.argv[1])))
