"""What a run folder says of itself, read from its JSON and YAML files; a damaged file costs that file alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gentrain import config
from gentrain.errors import GentrainError, UsageError
from gentrain.evaluation import ledger
from gentrain.evaluation.ledger import Row
from gentrain.files import read_json
from gentrain.run import read_metrics, snake
from gentrain.settings import says_where, split_data

UNTOLD = {"output", "trust", "traceback", "data.shape", "data.levels", "data.classes"}
UNTOLD |= {f"trainer.{name}" for name in ("log_every", "evaluate_every", "sample_every", "checkpoint_every", "keep")}
UNTOLD |= {"data.support", "model.shape", "model.levels"}


def untold(key: str) -> bool:
    """Whether a setting never changes what is learned, or only repeats what the data are: no column, no group of its
    own."""
    return key in UNTOLD or says_where(key)


@dataclass
class Record:
    """One run.

    Args:
        settings: flat, by dotted name; a `_target_` stands under the name of its section, short ("model": "rbm").
        rows: of its ledger, one for each measure: the newest checkpoint's, of these that over the most
            examples.
        seconds, rate: of training, without looks: time and examples a second, None where nothing was logged.
        problems: what of its files couldn't be read.
    """

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    data: str = ""
    fingerprint: str = ""
    state: str = "unknown"
    step: int = 0
    reason: str = ""
    rows: list[Row] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    parameters: int | None = None
    seconds: float | None = None
    rate: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def seed(self) -> Any:
        return self.settings.get("seed")

    @property
    def name(self) -> str:
        """`model-objective`, or the folder's name where that can't be told."""
        names = [str(self.settings[key]) for key in ("model", "objective") if key in self.settings]
        return "-".join(names) or self.path.name

    @property
    def done(self) -> bool:
        return self.state == "done"


def find(places: Sequence[Path]) -> list[Path]:
    """The run folders at and under each of `places`.

    Raises:
        UsageError: a place isn't there, or has no run in it.
    """
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise UsageError(f"runs={place}: there is no such folder; runs lie under outputs/ unless you said output=…")
        here = []
        for folder, folders, files in os.walk(place):
            if "config.yaml" in files and "checkpoints" in folders:
                here.append(Path(folder))
                folders.clear()
            folders[:] = sorted(name for name in folders if not name.startswith("."))
        if not here:
            raise UsageError(f"runs={place}: there are no runs in it (folders with config.yaml and checkpoints/)")
        found |= {path.resolve(): path for path in here if path.resolve() not in found}
    return list(found.values())


def read(path: Path) -> Record:
    """The run at `path`."""
    record = Record(path)
    try:
        _read_config(record)
    except GentrainError as error:
        record.problems.append(str(error))
    _read_state(record)
    try:
        record.rows = _newest(ledger.read(path), _steps(path), record)
    except (GentrainError, TypeError) as error:
        told = error if isinstance(error, GentrainError) else f"{path / ledger.NAME}: is no ledger of gentrain's"
        record.problems.append(str(told))
    facts = _mapping(read_json(path / "run.json"))
    count = facts.get("parameters")
    record.parameters = count if isinstance(count, int) else None
    record.fingerprint = str(facts.get("data", ""))
    try:
        record.metrics = [r for r in read_metrics(path) if isinstance(r["step"], int)]
    except (OSError, UnicodeError) as error:
        record.problems.append(f"{path / 'metrics.jsonl'}: can't be read: {error}")
    record.seconds, record.rate = _speed(record)
    return record


def shorten(records: Sequence[Record]) -> None:
    """Spell out the classes of sections in which two different ones have the same short name."""
    for key in {key for record in records for key in record.targets}:
        full: dict[Any, set[str]] = {}
        for record in records:
            if key in record.targets:
                full.setdefault(record.settings[key], set()).add(record.targets[key])
        for record in records:
            if len(full.get(record.settings.get(key), ())) > 1:
                record.settings[key] = record.targets[key]


def flatten(node: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted name; lists as text.

    >>> flatten({"seed": 0, "model": {"hidden": [400], "levels": None}})
    {'seed': 0, 'model.hidden': '[400]', 'model.levels': None}
    """
    scalars = bool | int | float | str | None
    return {k: v if isinstance(v, scalars) else json.dumps(v) for k, v in config.flat(node).items()}


def _read_config(record: Record) -> None:
    plain = config.shown(config.stored(config.read(record.path / "config.yaml")))
    trained = {key: value for key, value in plain.items() if key not in ("expect", "evaluate")}  # how it is judged
    for key, value in flatten(trained).items():
        section, _, last = key.rpartition(".")
        if last == "_target_":
            record.targets[section] = str(value)
            record.settings[section] = snake(str(value).rpartition(".")[2])
        else:
            record.settings[key] = value
    data = plain.get("data")
    if isinstance(data, dict):
        _, own = split_data({"validation": None, **data})
        words = []
        for key in flatten({"data": {k: v for k, v in own.items() if k not in ("validation", "_target_")}}):
            section, _, last = key.rpartition(".")
            name = section if last == "_target_" else key
            if not says_where(key):
                words.append(f"{name.removeprefix('data.')}={record.settings[name]}")
        record.data = " ".join([str(record.settings.get("data", "?")), *words])


def _read_state(record: Record) -> None:
    status = _mapping(read_json(record.path / "status.json"))
    record.state = str(status.get("state", "unknown"))
    record.step = status["step"] if isinstance(status.get("step"), int) else 0
    record.reason = str(status.get("reason", "" if status else "has no readable status.json"))
    if record.state == "running" and not _held(record.path):
        record.state = "killed"
        record.reason = f"no process is at work on it; go on with: gentrain resume run={record.path}"


def _held(run: Path) -> bool:
    """Whether a process holds the run's lock."""
    if not (run / ".lock").exists():
        return False
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a read-only copy: nobody trains there
        return False
    lock.release()
    return False


def _steps(run: Path) -> dict[str, int]:
    """The steps of the checkpoints that are there, by the sha256 of their files."""
    kept = _mapping(_mapping(read_json(run / "checkpoints" / "last.json")).get("files"))
    steps = {}
    for name, sha256 in kept.items():
        digits = "".join(c for c in str(name) if c.isdigit())
        steps[str(sha256)] = int(digits or 0)
    return steps


def _newest(rows: Sequence[Row], steps: Mapping[str, int], record: Record) -> list[Row]:
    """For each measure the row of the newest checkpoint, of several that over the most examples, of these the last."""
    from gentrain.comparison.ranking import Measure, measure

    def rank(row: Row) -> tuple[int, int]:
        return steps.get(row.checkpoint, -1), row.n

    best: dict[Measure, Row] = {}
    for row in rows:
        if not _sound(row):
            record.problems.append(f"{record.path / ledger.NAME}: the row {row.metric} ({row.kind}) is no number")
            continue
        before = best.get(measure(row))
        if before is None or rank(row) >= rank(before):
            best[measure(row)] = row
    return list(best.values())


def _sound(row: Row) -> bool:
    numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in (row.value, row.stderr, row.n))
    words = (row.metric, row.kind, row.unit, row.support, row.protocol, row.split, row.checkpoint)
    return numbers and row.stderr >= 0 and isinstance(row.settings, dict) and all(isinstance(w, str) for w in words)


def _speed(record: Record) -> tuple[float | None, float | None]:
    """Seconds of training and examples a second, from the rates in metrics.jsonl."""
    batch = record.settings.get("data.batch_size")
    seconds, examples, before = 0.0, 0.0, 0
    for line in record.metrics:
        rate = line.get("speed/examples_per_second")
        if isinstance(rate, int | float) and math.isfinite(rate) and rate > 0 and isinstance(batch, int):
            made = max(line["step"] - before, 0) * batch
            seconds, examples, before = seconds + made / rate, examples + made, line["step"]
    return (seconds, examples / seconds) if seconds > 0 else (None, None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
