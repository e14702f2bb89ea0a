"""The ledger: every evaluated number of a run with what is needed to compare it honestly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gentrain.files import read_json, write_json

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One evaluated number.

    Rows are comparable only within one metric, kind, unit, support, protocol and split. `checkpoint` is the sha256 of
    the weights' file, `settings` those of the estimator, `seconds` what it took.
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
        settings = tuple(sorted((k, str(v)) for k, v in self.settings.items()))
        return (self.metric, self.kind, self.split, self.protocol, settings, self.seed, self.checkpoint)


def read(run: Path) -> list[Row]:
    """The rows of a run's evaluation.json; none where there is no file yet."""
    content = read_json(run / "evaluation.json")
    return [Row(**row) for row in content["rows"]] if isinstance(content, dict) else []


def add(run: Path, rows: Sequence[Row]) -> None:
    """Add rows to a run's evaluation.json, in place of earlier ones of the same identity."""
    merged = {row.identity: row for row in [*read(run), *rows]}
    write_json(run / "evaluation.json", {"schema": SCHEMA, "rows": [asdict(row) for row in merged.values()]})
