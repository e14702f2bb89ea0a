"""Held-out quantities of an objective: means over a split with their standard errors, the same draws every time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.console import rounded
from gentrain.data.pipeline import Pipeline
from gentrain.device import own_randomness
from gentrain.models.base import Generative
from gentrain.update import Objective, Score

SEED = 20_061  # of the estimator's own draws: one constant, so that numbers of different runs share their noise


@dataclass(frozen=True)
class Estimate:
    """A mean over n examples with its standard error, in `unit`, of a `kind` that it may be compared within."""

    mean: float
    stderr: float
    n: int
    kind: str
    unit: str

    def __str__(self) -> str:
        return f"{rounded(self.mean, self.stderr)} {self.unit}"


@torch.no_grad()
def held_out(objective: Objective, model: Generative, pipeline: Pipeline, split: str) -> dict[str, Estimate]:
    """Every quantity that `objective.validate` knows, over the whole split.

    Examples come mixed, as some quantities are of a batch as a whole, such as a squared discrepancy: of batches that
    differ its mean is too large. The standard error is the sample deviation over examples divided by √n; it does not
    cover the estimator's noise.
    """
    scores: dict[str, list[Score]] = {}
    with own_randomness(SEED):
        for batch in pipeline.evaluation(split, mixed=True):
            for name, score in objective.validate(model, batch).items():
                scores.setdefault(name, []).append(score)
    return {name: _estimate(parts) for name, parts in scores.items()}


def _estimate(parts: list[Score]) -> Estimate:
    values: Tensor = torch.cat([score.values.double() for score in parts])
    n = len(values)
    stderr = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(float(values.mean()), stderr, n, parts[0].kind, parts[0].unit)
