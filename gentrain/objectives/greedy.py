"""Greedy layer-wise training, and the fine-tuning that follows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.stack import AutoencoderStack, RBMStack, Stack, Unrolled
from gentrain.objectives.reconstruction import Loss, Reconstruction
from gentrain.objectives.stages import Stages
from gentrain.types import PositiveInt
from gentrain.update import Objective, Score, Update


class Greedy(Objective):
    """Trains the layers of a stack one after the other, an equal share of the training each (Hinton et al. 2006).

    Layer i learns by `inner` from what the finished layers below it make of x, which get no gradient and stay as they
    are. Metrics are those of `inner`, named `layer<i>/…`.

    Args:
        hidden: units of the layers, `${model.hidden}`: one part for each.
        inner: trains a single layer.
        sampled: a layer's examples are bits, drawn from the probabilities of the units below, and not these.

    Raises:
        UsageError: `inner` trains several parts.
    """

    needs = Stack
    trained: Tensor

    def __init__(self, hidden: Sequence[PositiveInt], inner: Objective, sampled: bool = False):
        super().__init__()
        self.sampled = sampled
        if tuple(inner.parts) != ("",):
            raise UsageError(
                f"objective.inner={type(inner).__name__}: trains the parts {', '.join(inner.parts)} of a model; a layer"
                " is trained as a whole"
            )
        self.inner = inner
        self.parts = tuple(f"layer{i + 1}" for i in range(len(hidden)))
        self.register_buffer("trained", torch.ones((), dtype=torch.int64))
        self._at: int | None = None  # the same, without asking a device: None if a checkpoint may have been loaded
        self.register_load_state_dict_post_hook(_forget)

    def require(self, model: Stack) -> None:
        if model.depth != len(self.parts):
            raise UsageError(
                f"objective.hidden names {len(self.parts)} layers, and the model has {model.depth}; leave it"
                " ${model.hidden}"
            )
        for i in range(1, model.depth + 1):
            layer = model.layer(i)
            if not self.inner.fits(type(layer)):
                raise UsageError(
                    f"objective.inner={type(self.inner).__name__}: layer {i} of {type(model).__name__} is no"
                    f" {self.inner.needs.__name__} but {type(layer).__name__}"
                )
            self.inner.require(layer)

    def forward(self, model: Stack, batch: Batch, progress: float) -> Iterator[Update]:
        position = progress * model.depth
        i = min(int(position), model.depth - 1) + 1
        if i != self._at:
            if i > int(self.trained) and model.begin(i):
                yield Update()
            self.trained.fill_(i)
            self._at = i
        with torch.no_grad():
            x = model.upward(batch.x, i, self.sampled)
            if i == model.depth and isinstance(model, Unrolled):
                model.observe(model.up(i, x))
        for update in self.inner(model.layer(i), batch._replace(x=x), min(position - i + 1, 1 - 1e-9)):
            metrics = {f"layer{i}/{name}": value for name, value in update.metrics.items()}
            yield replace(update, part=f"layer{i}", metrics=metrics)

    def validate(self, model: Stack, batch: Batch) -> dict[str, Score]:
        i = int(self.trained)
        scores = self.inner.validate(model.layer(i), batch._replace(x=model.upward(batch.x, i)))
        return {f"layer{i}/{name}": score for name, score in scores.items()}


def _forget(module: nn.Module, incompatible: object) -> None:
    assert isinstance(module, Greedy)
    module._at = None


class Finetune(Reconstruction):
    """Reconstruction by the network that a stack is unrolled into; its layers stay as they were pretrained.

    Args:
        loss: as in `Reconstruction`.
    """

    needs = Unrolled
    excludes = ()
    parts = ("network",)

    def __init__(self, loss: Loss = "auto"):
        super().__init__(loss)

    def begin(self, model: Unrolled) -> None:
        model.unroll()


class PretrainRBM(Stages):
    """A stack of RBMs is trained layer by layer, unrolled and fine-tuned (Hinton & Salakhutdinov 2006).

    Args:
        stages: as in `Stages`.
    """

    needs = RBMStack

    def __init__(self, stages: Mapping[str, Any]):
        super().__init__(stages)


class PretrainAutoencoder(Stages):
    """A stack of autoencoders is trained layer by layer, unrolled and fine-tuned (Bengio et al. 2007).

    Args:
        stages: as in `Stages`.
    """

    needs = AutoencoderStack

    def __init__(self, stages: Mapping[str, Any]):
        super().__init__(stages)
