"""The estimators that come with gentrain, at the settings of their YAML files."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from gentrain import config
from gentrain.evaluation.estimator import Estimator


@functools.cache
def standard() -> Mapping[str, Estimator]:
    """Name -> estimator, every one in `conf/metrics`."""
    folder = config.conf_dir() / "metrics"
    nodes = {path.stem: config.read(path) for path in sorted(folder.glob("*.yaml"))}
    return {name: config.build(config.resolve(node), (), Estimator) for name, node in nodes.items()}
