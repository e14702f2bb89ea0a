"""The estimators that come with gentrain, at the settings of their YAML files."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from gentrain import config
from gentrain.errors import UsageError, nearest
from gentrain.evaluation.estimator import Estimator, Subject

WATCHED = 1000
"""Samples that are drawn to watch a training by: enough for a curve. Distances come out larger than from many."""


@functools.cache
def _files() -> Mapping[str, dict[str, Any]]:
    """Name -> the settings of its file, every one in `conf/metrics`."""
    folder = config.conf_dir() / "metrics"
    return {path.stem: config.resolve(config.read(path)) for path in sorted(folder.glob("*.yaml"))}


@functools.cache
def standard() -> Mapping[str, Estimator]:
    """Name -> estimator, every one in `conf/metrics`."""
    return {name: config.build(dict(node), (), Estimator) for name, node in _files().items()}


def watchers(names: Sequence[str], subject: Subject) -> list[Estimator]:
    """The estimators that `trainer.watch` names, at the settings of their files but with WATCHED samples.

    Raises:
        UsageError: there is no such estimator, or it can't judge the subject.
    """
    found = []
    for name in names:
        if name not in _files():
            known = ", ".join(_files())
            raise UsageError(
                f"trainer.watch=[{name}]: there is no such metric.{nearest(name, _files())} Valid: {known}"
            )
        node = dict(_files()[name])
        node |= {key: WATCHED for key in ("n_fake", "samples") if node.get(key, 0) > WATCHED}
        estimator = config.build(node, (), Estimator)
        if (reason := estimator.unfit(subject)) is not None:
            raise UsageError(f"trainer.watch=[{name}]: {type(subject.model).__name__} {reason}; leave it out")
        found.append(estimator)
    return found
