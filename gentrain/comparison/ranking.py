"""Which numbers may be ranked together, which way is better, and when a difference is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from gentrain.errors import UsageError
from gentrain.evaluation.ledger import Row, on_unit_scale

TIE = 2.0  # combined standard errors within which two numbers count as equal

HIGHER = (
    "log_likelihood", "elbo", "pseudo_log_likelihood", "precision", "recall", "density", "coverage", "classes_covered",
    "modes_hit", "high_quality", "knn_accuracy", "probe_accuracy*", "precision_at_*", "anomaly_*",
    "label_agreement", "noun_agreement", "attribute_agreement", "completion_log_likelihood", "translation_accuracy",
    "translation_back_accuracy",
    "adaptation_accuracy", "pair_agreement", "pixel_agreement",
)  # fmt: skip
"""Metrics of which more is better; `*` stands for any ending."""
LOWER = (
    "fid", "kid", "mmd", "swd", "label_kl", "mode_kl", "forward_kl", "reverse_kl", "reconstruction_error",
    "cross_entropy", "classification_error", "class_cross_entropy", "cluster_error",
    "completion_error",
    "translation_error", "translation_fid", "translation_back_error", "translation_back_fid",
)  # fmt: skip
"""Metrics of which less is better. What stands in neither list is shown and never ranked."""


class Measure(NamedTuple):
    """What two rows must have in common to be held against each other."""

    metric: str
    kind: str
    unit: str
    support: str
    protocol: str
    split: str
    drawn: str = ""


PICTURED = ("fid", "kid", "mmd", "swd", "precision", "recall", "density", "coverage", "classes_covered", "label_kl",
            "confident_share", "completion_error", "translation_*")  # fmt: skip
"""Metrics that see examples and samples on [0, 1] alone: to them grey levels are the same, whatever the support."""


def measure(row: Row) -> Measure:
    support, protocol = row.support, row.protocol
    if any(fnmatchcase(row.metric, name) for name in PICTURED):
        support, protocol = "", on_unit_scale(protocol)
    return Measure(row.metric, row.kind, row.unit, support, protocol, row.split, _drawn(row))


def _drawn(row: Row) -> str:
    """How many samples a distance between sets compares with what: the Frechet distance, precision and recall depend on
    it, while means over examples don't. And how the model drew, where that was another way than its own."""
    s, words = row.settings, []
    if "n_fake" in s:
        real = f"{s['n_real']:,}" if isinstance(s.get("n_real"), int) else "all"
        words.append(f"{s['n_fake']:,} samples against {real} of {s.get('reference', row.split)}")
    if isinstance(s.get("sampling"), dict):
        words.append(f"drawn by {', '.join(f'{key}={value}' for key, value in sorted(s['sampling'].items()))}")
    return ", ".join(words)


def direction(m: Measure) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither can be said.

    Likelihoods rise in nats and fall in bits per dimension. A number that is no measure of quality by itself, such as
    the KL term of an ELBO, a free energy or log Z, has no direction.

    >>> direction(Measure("log_likelihood", "iwae-5000", "nats", "binary", "dynamic", "test"))
    1
    >>> direction(Measure("log_likelihood", "exact", "bits/dim", "levels", "", "test"))
    -1
    >>> direction(Measure("kl", "kl", "nats", "binary", "dynamic", "test"))
    0
    """
    if any(fnmatchcase(m.metric, name) for name in HIGHER):
        return -1 if m.unit == "bits/dim" else 1
    return -1 if m.metric in LOWER else 0


def rank(rows: Sequence[Row]) -> list[Row]:
    """Rows of one measure, the best first.

    Raises:
        UsageError: they differ in metric, kind, unit, support, protocol, split or how they were drawn; or neither
            direction is better.
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
