"""What a run shows of itself: held-out numbers, pictures, and the closing summary."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch

from gentrain import pictures
from gentrain.data.pipeline import Pipeline
from gentrain.evaluation import ledger
from gentrain.evaluation.heldout import SEED, Estimate, held_out
from gentrain.models.base import Codes, Filters, Generative, Reconstructs
from gentrain.report import Report
from gentrain.trainer import Trainer

SHOWN = 64  # examples in a picture


class Look:
    """The trainer's eyes on the main process: validates and draws at the trainer's request."""

    def __init__(self, report: Report, pipeline: Pipeline):
        self.report = report
        self.pipeline = pipeline
        self.picture: Path | None = None
        split = "validation" if pipeline.spec.sizes.get("validation") else None
        self.split = split
        self._fixed = next(pipeline.evaluation(split or "train", batch_size=SHOWN, limit=SHOWN)).x

    def __call__(self, trainer: Trainer, what: str) -> tuple[str, float] | None:
        if what == "evaluate":
            return self.evaluate(trainer)
        self.draw(trainer.averaged, trainer.step)
        return None

    def evaluate(self, trainer: Trainer) -> tuple[str, float] | None:
        """File the validation numbers; the one that chooses the best checkpoint."""
        if self.split is None:
            return None
        found = held_out(trainer.objective, trainer.averaged, self.pipeline, self.split)
        self.report.scalars(trainer.step, {f"{self.split}/{name}": e.mean for name, e in found.items()})
        monitor = trainer.objective.monitor
        return (monitor, found[monitor].mean) if monitor in found else None

    def draw(self, model: Generative, step: int) -> None:
        """File samples from fixed noise, reconstructions of fixed examples, filters and codes."""
        spec, report = self.pipeline.spec, self.report
        n = SHOWN if pictures.is_image(spec.shape) else 1000
        x = pictures.draw(model, n, SEED)
        path = report.picture(step, "samples", self._show(x, model))
        self.picture = path or self.picture
        if isinstance(model, Reconstructs) and pictures.is_image(spec.shape):
            pairs = pictures.reconstructions(model, self._fixed[: SHOWN // 2], SEED)
            report.picture(step, "reconstructions", pictures.show(pairs, model, spec.levels, columns=8))
        if isinstance(model, Filters) and pictures.is_image(spec.shape):
            report.picture(step, "filters", pictures.to_bytes(pictures.grid(pictures.filters(model, 100))))
        if isinstance(model, Codes):
            report.histogram(step, "codes", pictures.codes(model, self._fixed, SEED))

    def _show(self, x: torch.Tensor, model: Generative) -> np.ndarray:
        if pictures.is_image(model.shape):
            return pictures.show(x, model, self.pipeline.spec.levels)
        real = next(self.pipeline.evaluation("train", batch_size=1000, limit=1000)).x
        points = {"data": real, "samples": x}
        return pictures.scatter({k: v.cpu().reshape(len(v), -1).numpy() for k, v in points.items()})


def test_rows(trainer: Trainer, seed: int, checkpoint: str) -> tuple[list[ledger.Row], dict[str, Estimate]]:
    """The objective's quantities on the test split, as ledger rows and as estimates."""
    began = time.monotonic()
    pipeline = trainer.pipeline
    found = held_out(trainer.objective, trainer.averaged, pipeline, "test")
    seconds = round(time.monotonic() - began, 3)
    rows = [
        ledger.Row(
            metric=name,
            kind=e.kind,
            value=e.mean,
            stderr=e.stderr if math.isfinite(e.stderr) else 0.0,
            unit=e.unit,
            support=trainer.model.support,
            protocol=pipeline.protocol,
            split="test",
            n=e.n,
            settings={"seed": SEED, "ema": trainer.settings.ema is not None},
            seed=seed,
            checkpoint=checkpoint,
            seconds=seconds,
        )
        for name, e in found.items()
    ]
    return rows, found
