"""What a run shows of itself: held-out numbers, pictures, and the closing summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from gentrain import pictures
from gentrain.data.pipeline import Pipeline
from gentrain.evaluation import health, ledger
from gentrain.evaluation.estimator import Estimator, Finding, Subject, seeded
from gentrain.evaluation.heldout import SEED, Estimate, held_out
from gentrain.evaluation.standard import standard
from gentrain.models.base import Codes, Filters, Generative, Reconstructs
from gentrain.models.domains import TranslatesBack, Translator
from gentrain.models.energies import Unnormalised
from gentrain.models.sequence import Writes
from gentrain.report import Report
from gentrain.trainer import Trainer

SHOWN = 64  # examples in a picture
TEXTS, LENGTH = 4, 400  # texts that are written to be read, and their characters
LOOKED_AT = 1000  # validation examples that the cheap estimators see: enough for a curve, and no delay to training
EARLY = 0.1  # of training, in which nothing is said of the model's health: what isn't there yet has not collapsed


class Look:
    """The trainer's eyes on the main process: validates and draws at the trainer's request.

    Every method first finds out all it wants to know and writes nothing; the function it returns files that.
    """

    def __init__(self, report: Report, pipeline: Pipeline, watched: Sequence[Estimator] = (), fingerprint: str = ""):
        self.report = report
        self.watched = watched
        self.fingerprint = fingerprint  # of the training set, under which those who watch keep what they learn of it
        self.pipeline = pipeline
        self.picture: Path | None = None
        self._wrote = -1
        self._said: set[str] = set()  # complaints that still hold and need no second mention
        split = "validation" if pipeline.spec.sizes.get("validation") else None
        self.split = split
        self._fixed = next(pipeline.evaluation(split or "train", batch_size=SHOWN, limit=SHOWN))

    def __call__(self, trainer: Trainer, what: str) -> Callable[[], tuple[str, float] | None]:
        return self.evaluate(trainer) if what == "evaluate" else self.draw(trainer)

    def evaluate(self, trainer: Trainer) -> Callable[[], tuple[str, float] | None]:
        """The validation numbers and the signs of health; filing them returns what chooses the best checkpoint."""
        found: dict[str, Estimate] = {}
        values: dict[str, float] = {}
        if self.split is not None:
            found = held_out(trainer.objective, trainer.averaged, self.pipeline, self.split)
            cheap = [e for e in standard().values() if e.cheap]
            values = self._found_by(cheap, trainer, self.split) | {name: e.mean for name, e in found.items()}
        values |= self._found_by(self.watched, trainer, self.split or "train")
        energies = self._free_energies(trainer)
        subject = Subject(trainer.averaged, self.pipeline, self.split or "train")
        signs = health.examine(subject, SEED, objective=trainer.objective)

        def file() -> tuple[str, float] | None:
            numbers = {f"{self.split or 'train'}/{name}": value for name, value in values.items()}
            numbers |= {f"health/{sign.name}": sign.number for sign in signs} | energies
            if numbers:
                self.report.scalars(trainer.step, numbers)
            complaints = health.complaints(signs) if trainer.progress >= EARLY else []
            for complaint in complaints:
                if complaint.name not in self._said:
                    self.report.say(f"health: {complaint.line}")
            self._said = {complaint.name for complaint in complaints}
            monitor = trainer.objective.monitor
            return (monitor, found[monitor].mean) if monitor in found else None

        return file

    def _found_by(self, estimators: Sequence[Estimator], trainer: Trainer, split: str) -> dict[str, float]:
        """What those of the estimators that fit the model find on the first held-out examples."""
        n = min(LOOKED_AT, self.pipeline.spec.sizes[split])
        subject = Subject(trainer.averaged, self.pipeline, split, n, data=self.fingerprint)
        fitting = [e for e in estimators if e.unfit(subject) is None]
        with seeded(SEED):
            found = [f for estimator in fitting for f in estimator(subject)]
        return {f.metric: f.value for f in found if isinstance(f, Finding)}

    def _free_energies(self, trainer: Trainer) -> dict[str, float]:
        """Mean free energies of training examples and of the chains: apart, the chains are where the data aren't."""
        model = trainer.averaged
        if not isinstance(model, Unnormalised):
            return {}
        n = min(LOOKED_AT, self.pipeline.spec.sizes["train"])
        places = {"train": next(self.pipeline.evaluation("train", n, n)).x}
        with seeded(SEED):
            particles = trainer.objective.fantasies(model)
            places |= {} if particles is None else {"particles": particles}
            return {f"{name}/free_energy": float(model.free_energy(x).double().mean()) for name, x in places.items()}

    def draw(self, trainer: Trainer) -> Callable[[], None]:
        """Samples from fixed noise, reconstructions and translations of fixed examples, filters, the chains' states; of
        text, texts."""
        model, step = trainer.averaged, trainer.step
        if isinstance(model, Writes):
            return self._write(model, step)
        spec = self.pipeline.spec
        images = pictures.is_image(spec.shape)
        x, columns = pictures.draw(model, SHOWN if images else 1000, SEED)
        drawn = {"samples": self._show(x, model, columns)}
        if isinstance(model, Reconstructs) and images:
            pairs = pictures.reconstructions(model, *self._some(SHOWN // 2), SEED)
            drawn["reconstructions"] = pictures.show(pairs, model, spec.levels, columns=8)
        if isinstance(model, Translator) and images:
            drawn["translations"] = self._translations(model)
        if isinstance(model, Filters) and images:
            drawn["filters"] = pictures.to_bytes(pictures.grid(pictures.filters(model, 100)))
        with seeded(SEED):
            particles = trainer.objective.fantasies(model)
        if particles is not None:
            drawn["particles"] = self._show(particles[:SHOWN] if images else particles, model)
        codes = pictures.codes(model, self._fixed.x, SEED) if isinstance(model, Codes) else None

        def file() -> None:
            paths = {name: self.report.picture(step, name, pixels) for name, pixels in drawn.items()}
            self.picture = paths["samples"] or self.picture
            if codes is not None:
                self.report.histogram(step, "codes", codes)

        return file

    def _write(self, model: Writes, step: int) -> Callable[[], None]:
        if step == self._wrote:  # the last look of a training often falls on its end
            return lambda: None
        with seeded(SEED):
            texts = model.write(TEXTS, LENGTH)

        def file() -> None:
            self._wrote = step
            self.picture = self.report.writing(step, "samples", texts) or self.picture

        return file

    def _translations(self, model: Translator) -> np.ndarray:
        """Rows of `pictures.translations` of fixed examples, both ways beside each other where the model goes both."""
        batch, ways = self._fixed, (False, True) if isinstance(model, TranslatesBack) else (False,)
        rows = []
        for back in ways:
            x = batch.x if back else batch.pair
            assert x is not None
            x, truth = x[: SHOWN // 4], self.pipeline.answers(batch, back)
            truth = None if truth is None else truth[: SHOWN // 4]
            rows.append(pictures.translations(model, x, truth, SEED, back=back))
        tiles, columns = pictures.abreast(torch.cat(rows, 1))
        return pictures.show(tiles, model, self.pipeline.spec.levels, columns)

    def _some(self, n: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The first n of the fixed examples, and their labels."""
        x, y = self._fixed.x, self._fixed.y
        return x[:n], None if y is None else y[:n]

    def _show(self, x: torch.Tensor, model: Generative, columns: int | None = None) -> np.ndarray:
        if pictures.is_image(model.shape):
            return pictures.show(x, model, self.pipeline.spec.levels, columns)
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
            settings={"estimator": "objective", "seed": SEED, "ema": trainer.settings.ema is not None},
            seed=seed,
            checkpoint=checkpoint,
            seconds=seconds,
        )
        for name, e in found.items()
    ]
    return rows, found
