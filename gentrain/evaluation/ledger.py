"""The ledger: every evaluated number of a run with what is needed to compare it honestly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from gentrain.errors import DataError
from gentrain.files import write_json

SCHEMA = 1
NAME = "evaluation.json"
CONDITIONS = ("first", "sampling")
"""Settings of a row that are no estimator's: how many examples only, and how the model drew, if not in its own way."""


@dataclass(frozen=True)
class Row:
    """One evaluated number.

    Rows are comparable only within one metric, kind, unit, support, protocol and split. `checkpoint` is the sha256 of
    the weights' file, `settings` those of the estimator, `seconds` what the estimator took for all its rows.
    """

    metric: str
    kind: str
    value: float
    stderr: float
    unit: str
    support: str
    protocol: str
    split: str
    n: int
    settings: dict[str, Any]
    seed: int
    checkpoint: str
    seconds: float

    @property
    def identity(self) -> tuple[Any, ...]:
        """Rows that agree in this are the same measurement; the later replaces the earlier."""
        settings = json.dumps(self.settings, sort_keys=True)
        return (self.metric, self.kind, self.unit, self.split, self.protocol, settings, self.seed, self.checkpoint)

    def made_by(self, call: Mapping[str, Any], split: str, seed: int, checkpoint: str) -> bool:
        """Whether this row came from an estimator with these settings on this split of this checkpoint."""
        where = (self.split, self.seed, self.checkpoint) == (split, seed, checkpoint)
        named = all(key in self.settings and self.settings[key] == value for key, value in call.items())
        return where and named and all(self.settings.get(key) == call.get(key) for key in CONDITIONS)

    @property
    def tag(self) -> str:
        """The row's name in TensorBoard."""
        given = [f"{key}={self.settings[key]}" for key in CONDITIONS if key in self.settings]
        return "/".join([self.split, self.metric, self.kind, *given])


def read(run: Path) -> list[Row]:
    """The rows of a run's evaluation.json; none where there is no file yet.

    Raises:
        DataError: the file is damaged or of another schema; it stays as it is.
    """
    path = run / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    try:
        content = json.loads(text)
        schema, rows = content["schema"], list(content["rows"])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: is no ledger of gentrain's (damaged?); move it away to start another") from error
    if schema != SCHEMA:
        raise DataError(
            f"{path}: is a ledger of schema {schema}, this gentrain writes schema {SCHEMA}; nothing was changed:"
            " use the gentrain it came from, or move the file away"
        )
    known = {f.name for f in fields(Row)}
    for row in rows:
        if not isinstance(row, dict) or set(row) != known:
            raise DataError(f"{path}: a row lacks or has too many of the keys {', '.join(sorted(known))}")
    return [Row(**row) for row in rows]


def add(run: Path, rows: Sequence[Row]) -> None:
    """Add rows to a run's evaluation.json, in place of earlier ones of the same identity.

    Two processes may do so at once. One that dies leaves the old file or the new one.
    """
    with FileLock(run / f".{NAME}.lock"):
        merged = {row.identity: row for row in [*read(run), *rows]}
        write_json(run / NAME, {"schema": SCHEMA, "rows": [asdict(row) for row in merged.values()]})


def on_unit_scale(protocol: str) -> str:
    """A protocol as far as it still shows once examples are brought to [0, 1]. Points stay as they are.

    >>> on_unit_scale("signed"), on_unit_scale("real, scaled to [0,1]"), on_unit_scale("unit, uniform dequantization")
    ('unit', 'unit', 'unit, uniform dequantization')
    >>> on_unit_scale("binary, dynamic binarization"), on_unit_scale("real")
    ('binary, dynamic binarization', 'real')
    """
    first, *rest = protocol.split(", ")
    grey = first in ("signed", "levels") or "scaled to [0,1]" in rest
    return ", ".join(["unit" if grey else first, *(word for word in rest if word != "scaled to [0,1]")])
