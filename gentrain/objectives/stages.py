"""Objectives in sequence."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.base import Generative
from gentrain.update import Objective, Score, Update


class Stages(Objective):
    """Trains by one objective after another, each for its share of the training.

    A stage's objective sees a progress of its own, from 0 to 1, and may change the model when it begins. The parts are
    those of all stages: a part of several keeps one optimizer, and `optim.parts` gives each its own settings, while the
    schedule of the learning rate runs over the whole training. Held-out numbers are those of the stage that trained
    last.

    Args:
        stages: name -> {share, objective}, in their order; shares are relative to their sum, and 0 leaves a stage out.

    Raises:
        UsageError: there is no stage but such as are left out, or one has a negative share or no objective.
    """

    needs = Generative
    stage: Tensor

    def __init__(self, stages: Mapping[str, Any]):
        super().__init__()
        shares, self.objectives = [], nn.ModuleDict()
        for name, stage in stages.items():
            if not isinstance(stage, Mapping) or {*stage} != {"share", "objective"}:
                raise UsageError(f"objective.stages.{name}: a stage is {{share: …, objective: …}}")
            share, objective = stage["share"], stage["objective"]
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < float("inf"):
                raise UsageError(f"objective.stages.{name}.share={share}: must be a number, 0 or more")
            if not isinstance(objective, Objective):
                raise UsageError(f"objective.stages.{name}.objective: must name an objective by its _target_")
            shares.append(share)
            self.objectives[name] = objective
        if not any(shares):
            raise UsageError(f"objective.stages={[*stages]}: give at least one stage a share above 0")
        self.ends = [end / sum(shares) for end in accumulate(shares)]
        self.parts = tuple(dict.fromkeys(part for objective in self._all for part in objective.parts))
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))
        self._at: int | None = None  # the same, without asking a device: None if a checkpoint may have been loaded
        self.register_load_state_dict_post_hook(_forget)

    @property
    def _all(self) -> list[Objective]:
        return [objective for objective in self.objectives.values() if isinstance(objective, Objective)]

    def require(self, model: Generative) -> None:
        for name, objective in zip(self.objectives, self._all, strict=True):
            if not objective.fits(type(model)):
                raise UsageError(
                    f"objective.stages.{name}: {type(objective).__name__} can't train {type(model).__name__}, which is"
                    f" no {objective.needs.__name__} or one of a kind that it excludes"
                )
            objective.require(model)

    def position(self, progress: float) -> tuple[int, float]:
        """The stage at this point of training, and the progress within it, in [0, 1)."""
        at = min(bisect_right(self.ends, progress), len(self.ends) - 1)
        begin = self.ends[at - 1] if at else 0.0
        return at, min((progress - begin) / (self.ends[at] - begin), 1 - 1e-9)

    def forward(self, model: Generative, batch: Batch, progress: float) -> Iterator[Update]:
        at, within = self.position(progress)
        objective = self._all[at]
        if at != self._at:
            if at > int(self.stage):
                objective.begin(model)
                yield Update()
            self.stage.fill_(at)
            self._at = at
        yield from objective(model, batch, within)

    def fantasies(self, model: Generative) -> Tensor | None:
        return self._all[int(self.stage)].fantasies(model)

    def validate(self, model: Generative, batch: Batch) -> dict[str, Score]:
        return self._all[int(self.stage)].validate(model, batch)


def _forget(module: nn.Module, incompatible: object) -> None:
    assert isinstance(module, Stages)
    module._at = None
