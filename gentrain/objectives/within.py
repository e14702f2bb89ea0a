"""Training a submodule as if it were the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import Generative
from gentrain.types import PositiveInt
from gentrain.update import Objective, Score, Update, following


class Within(Objective):
    """Trains a submodule of a model by an objective of its own, as if that were the model.

    Its parts and metrics are those of `inner`, under the submodule's name. Data come to it as they come to the model.

    Args:
        part: the submodule's name. inner: the objective.
        every: each so-many-th example of a batch is used, so that batches can be smaller than those of other stages.

    Raises:
        UsageError: a process's share of the batch is no multiple of `every`.
    """

    needs = Generative

    def __init__(self, part: str, inner: Objective, every: PositiveInt = 1):
        super().__init__()
        self.part, self.inner, self.every = part, inner, every
        self.parts = tuple(f"{part}.{name}" if name else part for name in inner.parts)

    def require(self, model: Generative) -> None:
        module = model.get_submodule(self.part)
        if not self.inner.fits(type(module)):
            raise UsageError(
                f"objective.inner={type(self.inner).__name__}: trains a {self.inner.needs.__name__}, which"
                f" {self.part} of {type(model).__name__}, a {type(module).__name__}, is not"
            )
        self.inner.require(module)

    def begin(self, model: Generative) -> None:
        self.inner.begin(model.get_submodule(self.part))

    def forward(self, model: Generative, batch: Batch, progress: float) -> Iterator[Update]:
        updates, done = self.inner(model.get_submodule(self.part), self._some(batch), progress), None
        while (update := following(updates, done)) is not None:
            part = f"{self.part}.{update.part}" if update.part else self.part
            metrics = {f"{self.part}/{name}": value for name, value in update.metrics.items()}
            done = yield replace(update, part=part, metrics=metrics)

    def _some(self, batch: Batch) -> Batch:
        if self.every == 1:
            return batch
        if len(batch.x) % self.every:
            raise UsageError(f"objective.every={self.every}: {len(batch.x)} examples of a step are no multiple of it")
        return Batch._make(None if t is None else t[:: self.every] for t in batch)

    def validate(self, model: Generative, batch: Batch) -> dict[str, Score]:
        scores = self.inner.validate(model.get_submodule(self.part), batch)
        return {f"{self.part}/{name}": score for name, score in scores.items()}
