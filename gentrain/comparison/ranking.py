"""Which numbers may be ranked together, which way is better, and when a difference is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gentrain.errors import UsageError
from gentrain.evaluation.ledger import Row

TIE = 2.0  # combined standard errors within which two numbers count as equal

HIGHER = {
    "exact", "elbo", "ais", "reverse-ais", "dbn-bound", "dbm-bound", "decoder-ais", "pseudo", "parzen",
    "probe", "knn", "retrieval", "precision", "recall", "density", "coverage", "modes", "modes_hit", "high_quality",
}  # fmt: skip
"""Metrics, or else kinds, of which more is better."""
LOWER = {"fid", "frechet", "frechet_distance", "kid", "mmd", "swd", "sliced_wasserstein", "reconstruction_error"}
LOWER |= {"mode_kl", "kl_to_labels", "label_kl"}
"""Metrics, or else kinds, of which less is better. What stands in neither set is shown and never ranked."""
LIKELIHOODS = {"exact", "elbo", "iwae", "ais", "reverse-ais", "dbn-bound", "dbm-bound", "decoder-ais", "parzen"}


class Measure(NamedTuple):
    """What two rows must have in common to be held against each other."""

    metric: str
    kind: str
    unit: str
    support: str
    protocol: str
    split: str


def measure(row: Row) -> Measure:
    return Measure(row.metric, row.kind, row.unit, row.support, row.protocol, row.split)


def direction(m: Measure) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither can be said.

    Likelihoods rise in nats and fall in bits per dimension. A number that is no measure of quality by itself, such as
    the KL term of an ELBO or a free energy, has no direction.

    >>> direction(Measure("log_likelihood", "iwae-5000", "nats", "binary", "dynamic", "test"))
    1
    >>> direction(Measure("log_likelihood", "exact", "bits/dim", "levels", "", "test"))
    -1
    >>> direction(Measure("kl", "kl", "nats", "binary", "dynamic", "test"))
    0
    """
    kind = "iwae" if m.kind.startswith("iwae-") else m.kind
    if kind in LIKELIHOODS:
        return -1 if m.unit.startswith("bits") else 1
    for name in (m.metric, kind):
        if name in HIGHER:
            return 1
        if name in LOWER:
            return -1
    return 0


def rank(rows: Sequence[Row]) -> list[Row]:
    """Rows of one measure, the best first.

    Raises:
        UsageError: they differ in metric, kind, unit, support, protocol or split, or no direction is better.
    """
    measures = sorted({measure(row) for row in rows})
    if len(measures) > 1:
        a, b = measures[:2]
        differ = [f"{name} {x} and {y}" for name, x, y in zip(Measure._fields, a, b, strict=True) if x != y]
        raise UsageError(f"these numbers can't be ranked together: they differ in {', '.join(differ)}")
    if not measures:
        return []
    sign = direction(measures[0])
    if sign == 0:
        m = measures[0]
        raise UsageError(f"metric {m.metric} ({m.kind}) can't be ranked: neither more nor less of it is better")
    return sorted(rows, key=lambda row: -sign * row.value)


def differ(a: float, error_a: float, b: float, error_b: float) -> bool:
    """Whether two numbers lie further apart than two of their combined standard errors, √(a² + b²).

    >>> differ(-86.0, 0.3, -86.8, 0.3), differ(-86.0, 0.3, -87.0, 0.3)
    (False, True)
    """
    return abs(a - b) > TIE * math.hypot(error_a, error_b)
